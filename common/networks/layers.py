"""Layers the networks share."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

_GROUP_COUNTS: Final = (32, 16, 8, 4, 2, 1)


def conv_norm_relu(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Give a 3 x 3 convolution that keeps the size, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Give U-Net's block: two `conv_norm_relu`."""
    return nn.Sequential(conv_norm_relu(inputs, outputs), conv_norm_relu(outputs, outputs))


class EncoderDecoder(nn.Module):
    """The frame of U-Net and SDU-Net: five levels down and up again with skip connections.

    Parameters
    ----------
    in_channels, classes
        Channels of the image and of the logits.
    width
        Channels of the first level; the others have 2, 4, 8 and 8 times as many, the way up 4, 2, 1 and 1 times.
    block
        Makes the block of a level from its input and output channels.
    """

    def __init__(self, in_channels: int, classes: int, width: int, block: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        down = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        up = [4 * width, 2 * width, width, width]
        below = [down[-1], *up[:-1]]
        self.down = nn.ModuleList(block(i, o) for i, o in zip([in_channels, *down[:-1]], down, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(c, c, 2, 2) for c in below)
        self.up = nn.ModuleList(block(c + skip, o) for c, skip, o in zip(below, down[-2::-1], up, strict=True))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W), H and W multiples of 16, to logits (n, K, H, W)."""
        features, skips = images, list[Tensor]()
        for level, block in enumerate(self.down):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        for skip, enlarge, block in zip(skips[-2::-1], self.enlarge, self.up, strict=True):
            features = block(torch.cat([skip, enlarge(features)], 1))
        logits: Tensor = self.head(features)
        return logits


def group_count(channels: int) -> int:
    """Give the largest number of groups up to 32 (Wu and He, ECCV 2018) that divides into groups of two or more."""
    return next((count for count in _GROUP_COUNTS if channels % count == 0 and channels >= 2 * count), 1)


def _group_norm_like(norm: nn.BatchNorm2d) -> nn.Module:
    group = nn.GroupNorm(group_count(norm.num_features), norm.num_features, norm.eps, norm.affine)
    if norm.affine:
        group.weight.data.copy_(norm.weight.data)  # what a pretrained encoder has learned of scale stays
        group.bias.data.copy_(norm.bias.data)
    # timm fuses the activation into some of its normalisations
    fused = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
    return nn.Sequential(group, *fused) if fused else group


def replace_batch_norm(module: nn.Module) -> None:
    """Put a `GroupNorm` in the place of every `BatchNorm2d`, in place, keeping scale and shift."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _group_norm_like(child))
        else:
            replace_batch_norm(child)


class PaddedToMultiple(nn.Module):
    """A network that takes any image of at least 32 x 32.

    The image is padded to the next multiple of 32 by repeating its edge (a reflection could show a lesion twice), half
    on either side, and the logits are cut back. Sizes that are multiples of 32 pass untouched.
    """

    MULTIPLE: Final = 32

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, K, H, W)."""
        height, width = images.shape[-2:]
        more_h, more_w = -height % self.MULTIPLE, -width % self.MULTIPLE
        if not (more_h or more_w):
            logits: Tensor = self.network(images)
            return logits
        top, left = more_h // 2, more_w // 2
        padded = nn.functional.pad(images, (left, more_w - left, top, more_h - top), mode="replicate")
        logits = self.network(padded)
        return logits[..., top : top + height, left : left + width]
