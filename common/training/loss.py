"""The loss: Dice and binary cross-entropy, with equal weights (appendix A.3) or others, made right for soft masks."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH: Final = 1.0
"""The epsilon of the paper's equation 1, in pixels ("a small real number").

One pixel is small beside any target, and bounds the gradient on an empty mask, where Dice alone has none or an endless
one.
"""


def soft_dice(probs: Tensor, targets: Tensor) -> Tensor:
    """Give the Dice loss that has its minimum, 0, at ``probs == targets`` for soft targets too.

    The Dice semimetric loss in L1 form (Wang et al., MICCAI 2023, arXiv 2303.16296):
    ``1 - (|x| + |y| - |x - y| + eps) / (|x| + |y| + eps)``. For binary targets ``|x - y| = |x| + |y| - 2 <x, y>``,
    and it is the paper's equation 1.

    Parameters
    ----------
    probs, targets
        Float, (n, K, H, W), in [0, 1].

    Returns
    -------
    Tensor
        (n, K), one loss a plane: the metric is per image, so the loss is not summed over the batch.
    """
    sizes = probs.sum((2, 3)) + targets.sum((2, 3))
    distances = (probs - targets).abs().sum((2, 3))
    return distances / (sizes + SMOOTH)


def paper_dice(probs: Tensor, targets: Tensor) -> Tensor:
    """Give the paper's equation 1 to the letter.

    With soft targets its minimum is not at the target: for one pixel of 0.5 the best answer is 1, and for a fuzzy
    lesion a hard one that is too large. Shapes as in `soft_dice`.
    """
    sizes = probs.sum((2, 3)) + targets.sum((2, 3))
    overlaps = (probs * targets).sum((2, 3))
    return 1 - (2 * overlaps + SMOOTH) / (sizes + SMOOTH)


def dice_bce(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, dice: "Dice" = soft_dice, dice_share: float = 0.5
) -> Tensor:
    """Give the training loss: the batch's mean of each image's ``2 (s dice + (1 - s) BCE)``; ``dice + BCE`` for ``s = 1/2``.

    Parameters
    ----------
    logits
        Float, (n, K, H, W).
    targets
        Float, (n, K, H, W), in [0, 1].
    weights
        Float, (n,), at least 0: each image's factor. Weights with mean 1 over the data set keep the loss's scale.
    dice
        Which Dice loss.
    dice_share
        The ``s``, in [0, 1]. Both losses have their minimum at soft targets, so every share has (but for `paper_dice`).

    Returns
    -------
    Tensor
        A scalar, float32. With soft targets its floor is the targets' own mean entropy in nats times ``2 (1 - s)``, not 0
        (and with `paper_dice` more).
    """
    logits = logits.float()  # half precision has too few digits for sums over an image
    bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2, 3))
    # a factor of exactly 1 changes no bit: equal shares are the paper's sum
    per_image = 2 * dice_share * dice(torch.sigmoid(logits), targets).mean(1) + 2 * (1 - dice_share) * bce
    return per_image.mean() if weights is None else (per_image * weights).mean()


Dice = Callable[[Tensor, Tensor], Tensor]
"""Probabilities and targets, (n, K, H, W) both, to one loss a plane, (n, K)."""

DICE_OF: Final[dict[str, Dice]] = {"dice-bce": soft_dice, "paper": paper_dice}
"""The Dice loss of each value of a training's `loss`."""
