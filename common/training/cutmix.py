"""CutMix: an image gets a box of another image of its batch, and its mask the same box of the other's mask.

Right for soft masks, and for any: at each pixel the mask is still that of what is seen there. Both images are augmented
before. A process that holds a part of the batch mixes in what one process would have: it prepares the partners of its
images, too, where they are not among them (`Mix.needed`).
"""

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

AREA: Final = (0.1, 0.5)
"""Part of the image that the box takes: enough to matter, and the image stays the larger part."""


@dataclass(frozen=True)
class Mix:
    """Who is mixed with whom, and where.

    Attributes
    ----------
    rows
        int64 (n,): positions in the whole batch of the images that get a box.
    partners
        int64 (n,): positions in the whole batch of those it comes from; an image's own where it gets none.
    uniform
        float32 (n, 3), in [0, 1): the box's area, its place across and down.
    """

    rows: Tensor
    partners: Tensor
    uniform: Tensor

    @classmethod
    def of(cls, count: int, probability: float, generator: torch.Generator) -> Self:
        """Draw for a batch of `count` images from a CPU generator."""
        rows = torch.arange(count)
        uniform = torch.rand(count, 4, generator=generator)
        turn = int(torch.randint(1, max(count, 2), (1,), generator=generator))  # nobody is its own partner
        partners = torch.where(uniform[:, 0] < probability, (rows + turn) % count, rows)
        return cls(rows, partners, uniform[:, 1:])

    def part(self, rows: slice | Tensor) -> Self:
        """Give what concerns some images of the batch, by position."""
        return type(self)(self.rows[rows], self.partners[rows], self.uniform[rows])

    @property
    def needed(self) -> Tensor:
        """Positions in the whole batch of all images that mixing takes: first `rows`, then partners not among them."""
        strangers = sorted(set(self.partners.tolist()) - set(self.rows.tolist()))
        return torch.cat([self.rows, torch.tensor(strangers, dtype=torch.int64)])


def cutmix(images: Tensor, targets: Tensor, weights: Tensor | None, mix: Mix) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mix a batch.

    Parameters
    ----------
    images, targets
        Float, (m, C, H, W) and (m, K, H, W), of the images `Mix.needed` names, in its order.
    weights
        Float, (m,): theirs in the loss.
    mix
        Who with whom.

    Returns
    -------
    tuple
        Images, targets and weights of the n images `Mix.rows` names. An image's weight is that of its two parts, each by its
        area: half an image that is trusted and half one that is not are trusted half.
    """
    where = (mix.needed == mix.partners[:, None]).int().argmax(1)  # in `images`, of each partner
    partners = where.to(images.device, non_blocking=True)
    box = _boxes(mix.uniform.to(images.device, non_blocking=True), images.shape[2], images.shape[3])
    count = len(mix.rows)
    mixed = [torch.where(box, both[partners], both[:count]) for both in (images, targets)]
    if weights is None:
        return mixed[0], mixed[1], None
    share = box.float().mean((1, 2, 3))
    return mixed[0], mixed[1], torch.lerp(weights[:count], weights[partners], share)


def _boxes(uniform: Tensor, height: int, width: int) -> Tensor:
    """Give which pixels are in each image's box: bool (n, 1, H, W); a box lies within its image and has its shape."""
    side = (AREA[0] + (AREA[1] - AREA[0]) * uniform[:, 0]).sqrt()[:, None]
    across = _within(side, uniform[:, 1:2], width)
    down = _within(side, uniform[:, 2:3], height)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _within(side: Tensor, place: Tensor, pixels: int) -> Tensor:
    centres = (torch.arange(pixels, device=side.device) + 0.5) / pixels
    start = (1 - side) * place
    return (centres >= start) & (centres < start + side)
