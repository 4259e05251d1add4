"""The five augmentations of appendix A.1, on a whole batch, image and mask together.

Crop, flip and rotation are one affine map, and one bilinear sampling takes image and mask through it, so a mask stays
soft and stays on its lesion. What lies outside the original image is 0 in both: black as ultrasound is outside its
sector, and no target. (Reflection would show lesions again where the mask says there are none.)

The paper gives the ranges; here every augmentation is applied to every image, the flip with probability one half, one
percentage holds for rows and columns, and contrast is taken about the image's own mean.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn import functional

KEPT_MIN: Final = 0.7
ANGLE_MAX: Final = math.radians(45.0)
GAMMA: Final = (0.7, 1.3)
CONTRAST: Final = (0.7, 1.3)


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch: float32, (n, 7), uniform in [0, 1).

    Columns: part kept, its place across and down, flip, angle, gamma, contrast.
    """

    uniform: Tensor

    @classmethod
    def of(cls, count: int, generator: torch.Generator) -> Self:
        """Draw for `count` images from a CPU generator."""
        return cls(torch.rand(count, 7, generator=generator))

    def part(self, rows: slice | Tensor) -> Self:
        """Give the numbers of some images of the batch, by position."""
        return type(self)(self.uniform[rows])


def augment(images: Tensor, masks: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Augment a batch.

    Parameters
    ----------
    images
        Float, (n, C, H, W), in [0, 1].
    masks
        Float, (n, K, H, W), in [0, 1]; on the same device.
    draw
        The batch's random numbers.

    Returns
    -------
    tuple of Tensor
        New images and masks of the same shapes and ranges.
    """
    channels = images.shape[1]
    height, width = images.shape[2:]
    uniform = draw.uniform.to(images.device, non_blocking=True)
    grid = functional.affine_grid(_maps(uniform, height / width), [len(images), 1, height, width], align_corners=False)
    both = functional.grid_sample(torch.cat([images, masks], 1), grid, padding_mode="zeros", align_corners=False)
    gamma = _between(GAMMA, uniform[:, 5])
    contrast = _between(CONTRAST, uniform[:, 6])
    warped = both[:, :channels].clamp(0, 1).pow(gamma)
    mean = warped.mean((1, 2, 3), keepdim=True)
    return ((warped - mean) * contrast + mean).clamp(0, 1), both[:, channels:].clamp(0, 1)


def _between(limits: tuple[float, float], uniform: Tensor) -> Tensor:
    return (limits[0] + (limits[1] - limits[0]) * uniform)[:, None, None, None]


def _maps(uniform: Tensor, aspect: float) -> Tensor:
    """Give (n, 2, 3) maps from output to input coordinates, both in [-1, 1]: turn back, flip back, go to the crop."""
    kept = KEPT_MIN + (1 - KEPT_MIN) * uniform[:, 0]
    angle = ANGLE_MAX * (2 * uniform[:, 4] - 1)
    flip = torch.where(uniform[:, 3] < 0.5, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    # a turn keeps pixels square, so the sides' ratio enters where rows become columns
    across = torch.stack([kept * flip * cos, kept * flip * sin * aspect, (1 - kept) * (2 * uniform[:, 1] - 1)], 1)
    down = torch.stack([-kept * sin / aspect, kept * cos, (1 - kept) * (2 * uniform[:, 2] - 1)], 1)
    return torch.stack([across, down], 1)
