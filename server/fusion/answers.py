"""What a fusion takes: one site's masks of some labels of a chunk's images."""

from collections.abc import Sequence

import numpy as np

from consilium.common.errors import DataError
from consilium.common.soft_mask import SoftMasks


def checked_rows(shape: tuple[int, int, int, int], masks: SoftMasks, known: Sequence[int] | None) -> list[int]:
    """Check an answer before it is folded; gives the positions of the labels its masks are of.

    Parameters
    ----------
    shape
        Of the fusion: (n, K, H, W).
    masks
        uint8 (n, known labels, H, W).
    known
        Which labels the masks are of, by position, each once; all of them where None.

    Raises
    ------
    DataError
        If the masks are of another shape or kind, or a label is not there or named twice.
    """
    count, labels, *size = shape
    rows = list(range(labels) if known is None else known)
    wanted = (count, len(rows), *size)
    if masks.shape != wanted or masks.dtype != np.uint8:
        raise DataError(f"soft masks here are uint8 {wanted}; got {masks.dtype} {masks.shape}")
    if not rows or len(set(rows)) != len(rows) or not set(rows) <= set(range(labels)):
        raise DataError(f"known labels are positions from 0 to {labels - 1}, each once, at least one; got {rows}")
    return rows
