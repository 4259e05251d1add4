"""Strong augmentation: the gray of an image is changed further, after the five augmentations of appendix A.1.

Another gamma and another contrast, blur, and noise, as another machine, gain or depth would give; never the mask, which
stays true: nothing is moved or covered (that is `cutmix`'s work). This is what keeps a student that learns from masks
computed on the clean image from learning their errors by heart.

All images of a batch are changed at once, on their own device. Each image's random numbers are its own, so a process that
holds a part of the batch does to its images what one process would do to all. On a GPU the noise is another than on a CPU.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn import functional

GAMMA: Final = (0.7, 1.4)
CONTRAST: Final = (0.6, 1.4)
"""Gamma and contrast come on top of the paper's: both together range over about 0.5 to 1.9."""
BLUR_MAX: Final = 0.006
"""Standard deviation of the Gaussian, as a part of the image's longer side: 2.3 pixels at 384."""
SPECKLE_MAX: Final = 0.3
"""Standard deviation of the noise that grows with brightness, as a part of the brightness."""
NOISE_MAX: Final = 0.05
"""Standard deviation of the noise that does not, of the range."""


@dataclass(frozen=True)
class Distortion:
    """The random numbers of a batch: ``uniform`` float32 (n, 6), in [0, 1), and ``seeds`` int64 (n,) of the noise.

    Columns: gamma, contrast, whether to blur (one half), how much, speckle, noise.
    """

    uniform: Tensor
    seeds: Tensor

    @classmethod
    def of(cls, count: int, generator: torch.Generator) -> Self:
        """Draw for `count` images from a CPU generator."""
        return cls(torch.rand(count, 6, generator=generator), torch.randint(2**62, (count,), generator=generator))

    def part(self, rows: slice | Tensor) -> Self:
        """Give the numbers of some images of the batch, by position."""
        return type(self)(self.uniform[rows], self.seeds[rows])


def distort(images: Tensor, draw: Distortion) -> Tensor:
    """Change the gray of a batch.

    Parameters
    ----------
    images
        Float, (n, C, H, W), in [0, 1].
    draw
        The batch's random numbers.

    Returns
    -------
    Tensor
        New images of the same shape and range. The noise is the same in each of an image's channels.
    """
    uniform = draw.uniform.to(images.device, non_blocking=True)[:, :, None, None, None]
    gamma = GAMMA[0] + (GAMMA[1] - GAMMA[0]) * uniform[:, 0]
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * uniform[:, 1]
    bent = images.pow(gamma)
    mean = bent.mean((1, 2, 3), keepdim=True)
    stretched = ((bent - mean) * contrast + mean).clamp(0, 1)
    blurred = _blur(stretched, BLUR_MAX * max(images.shape[2:]) * draw.uniform[:, 3] * (draw.uniform[:, 2] < 0.5))
    spread = SPECKLE_MAX * uniform[:, 4] * blurred + NOISE_MAX * uniform[:, 5]
    return (blurred + spread * _noise(draw.seeds, images)).clamp(0, 1)


def _blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image by its own Gaussian, sigma in pixels, CPU tensor (n,); 0 leaves an image as it is."""
    radius = math.ceil(3 * float(sigmas.max()))
    if not radius:
        return images
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offsets / sigmas.clamp(min=1e-3)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(images.device, non_blocking=True)
    count, channels, height, width = images.shape
    each = kernels.repeat_interleave(channels, 0)[:, None, None]  # (n C, 1, 1, taps)
    planes = images.reshape(1, count * channels, height, width)
    padded = functional.pad(planes, [radius] * 4, mode="replicate")
    across = functional.conv2d(padded, each, groups=count * channels)
    return functional.conv2d(across, each.transpose(2, 3), groups=count * channels).reshape(images.shape)


def _noise(seeds: Tensor, images: Tensor) -> Tensor:
    """Give standard normal noise, (n, 1, H, W), each image's from its own seed."""
    size, device = (1, 1, *images.shape[2:]), images.device
    fields = [
        torch.randn(size, generator=torch.Generator(device).manual_seed(seed), device=device) for seed in seeds.tolist()
    ]
    return torch.cat(fields)
