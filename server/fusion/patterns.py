"""Patterns: which combinations of small whole numbers occur at the pixels, so that work is done once for each of them."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_MOST: Final = 2**52


def find(columns: Sequence[npt.NDArray[np.integer]], base: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the combinations of columns that occur.

    Parameters
    ----------
    columns
        At least one; each holds a number from 0 to ``base - 1`` for each of N pixels.

    Returns
    -------
    at, pattern
        int64 (P,): a pixel that has the pattern, ascending by the columns' values, the first column first; int64 (N,): the
        pattern of each pixel.
    """
    code, size = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        if size > _MOST // base:
            kinds, code = np.unique(code, return_inverse=True)
            size = len(kinds)
        code = code * base + column
        size *= base
    _, at, pattern = np.unique(code, return_index=True, return_inverse=True)
    return at.astype(np.int64), pattern.astype(np.int64)
