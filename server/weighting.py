"""Image weights: how much of the student's loss each image is worth, by how sure the pseudo mask is of itself.

Exclusion keeps an image or leaves it out; a weight is the same thought without a threshold. Self-Dice finds bad pseudo masks
better than gray-level entropy does: it asks how much of the mask is fuzzy in relation to the target, not to the image. It
needs the pseudo mask alone, no site's own mask. Agreement between the sites sees more: where they are sure, and of different
things. It needs every site's mask.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks

CHUNK: Final = 128
"""Masks looked at a time; bounds memory."""


def self_dice(masks: SoftMasks) -> npt.NDArray[np.float64]:
    """Give the soft Dice between each pseudo mask and itself cut at one half.

    With ``b = 1[y > 1/2]`` it is ``(|y| + |b| - |y - b|) / (|y| + |b|)``, which is ``2 sum(y over b) / (|y| + |b|)``: 1 for
    a binary mask, less the fuzzier the target and its surroundings. It sees what the teachers are unsure of, not what they are
    sure of and wrong about. A mask without a target pixel has 0: there is no target to be sure of.

    Parameters
    ----------
    masks
        Pseudo masks, uint8 (n, K, H, W); may be memory-mapped. Of several labels the union counts, as in exclusion.

    Returns
    -------
    NDArray
        float64 (n,), in [0, 1]; the same on every machine, as all sums are of whole numbers.
    """
    parts = [_self_dice(masks[at : at + CHUNK]) for at in range(0, len(masks), CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0)


def agreement_weights(agreement: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Make weights of how far the sites agree about each image.

    Parameters
    ----------
    agreement
        float64 (n,), in [0, 1]; NaN where fewer than two sites were folded in.

    Returns
    -------
    NDArray
        float64 (n,). An image with one site's mask alone weighs as the mean of the others, 1 if there are none: nothing
        speaks for it, and nothing against it.
    """
    known = ~np.isnan(agreement)
    return np.where(known, agreement, agreement[known].mean() if known.any() else 1.0)


def set_weights(masks: SoftMasks, agreement: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give what each image adds to its transferal set's standing, float64 (n,): self-Dice times agreement."""
    return agreement_weights(agreement) * self_dice(masks)


def image_weights(
    method: str, masks: SoftMasks, agreement: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64] | None:
    """Give each image's relative weight in the loss, float64 (n,); None for equal ones.

    Parameters
    ----------
    method
        A study's `image-weights`.
    masks
        Pseudo masks; see `self_dice`.
    agreement
        See `agreement_weights`; needed by the methods that are named after it.
    """
    if method == "none":
        return None
    if method == "self-dice":
        return self_dice(masks)
    if agreement is None:
        raise DataError(f'image-weights = "{method}" needs how far the sites agree about each image')
    return agreement_weights(agreement) if method == "agreement" else set_weights(masks, agreement)


def _self_dice(masks: SoftMasks) -> npt.NDArray[np.float64]:
    planes = np.asarray(masks).max(axis=1)
    target = planes >= TARGET_LEVEL
    inside = np.where(target, planes, 0).sum((1, 2), dtype=np.int64)
    sizes = planes.sum((1, 2), dtype=np.int64) + 255 * target.sum((1, 2), dtype=np.int64)
    found: npt.NDArray[np.float64] = 2 * inside / np.maximum(sizes, 1)
    return found
