"""Attention U-Net (Oktay et al., MIDL 2018, arXiv 1804.03999), in the two-dimensional form ultrasound papers compare.

The additive gate of the paper's equations 1 and 2: ``q = psi(relu(W_x x + W_g g))``, the skip connection is multiplied
by ``sigmoid(q)``. Departures from the paper, all part of the commonly compared form of 34.88 M parameters: the gating
signal is the enlarged coarser level, so both inputs of a gate have one resolution; batch normalisation follows every 1 x 1
convolution; a level is enlarged by repeating pixels and a 3 x 3 convolution; 64 to 1024 channels.
"""

import torch
from torch import Tensor, nn

from consilium.common.networks.layers import conv_norm_relu, double_conv


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


class AttentionGate(nn.Module):
    """Lets a skip connection through where the gating signal finds it relevant."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = channels // 2
        self.of_skip = _pointwise(channels, between)
        self.of_signal = _pointwise(channels, between)
        self.psi = _pointwise(between, 1)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Weigh the skip connection; both inputs and the result are (n, channels, H, W)."""
        query = self.psi(torch.relu(self.of_skip(skip) + self.of_signal(signal)))
        return skip * torch.sigmoid(query)


class AttentionUNet(nn.Module):
    """U-Net of 64 to 1024 channels with a gate on each of its four skip connections."""

    def __init__(self, in_channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        down = [width, 2 * width, 4 * width, 8 * width, 16 * width]
        up = down[-2::-1]
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip([in_channels, *down[:-1]], down, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2.0), conv_norm_relu(2 * c, c)) for c in up)
        self.gates = nn.ModuleList(AttentionGate(c) for c in up)
        self.up = nn.ModuleList(double_conv(2 * c, c) for c in up)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W), H and W multiples of 16, to logits (n, K, H, W)."""
        features, skips = images, list[Tensor]()
        for level, block in enumerate(self.down):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        for skip, enlarge, gate, block in zip(skips[-2::-1], self.enlarge, self.gates, self.up, strict=True):
            signal = enlarge(features)
            features = block(torch.cat([gate(skip, signal), signal], 1))
        logits: Tensor = self.head(features)
        return logits
