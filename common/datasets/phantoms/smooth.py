"""Smooth random curves and fields, and smooth steps: what tissue is drawn with. Lengths are in image sides."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline

Float = npt.NDArray[np.float32]


@lru_cache(maxsize=64)
def _spline_rows(coarse: int, size: int) -> Float:
    """Cubic B-spline weights, ``(size, coarse)``: a smooth curve through any ``coarse`` random numbers."""
    knots = np.arange(-3, coarse + 1) / (coarse - 3)
    at = (np.arange(size) + 0.5) / size
    rows = np.asarray(BSpline.design_matrix(at, knots, 3).toarray(), np.float32)
    rows.flags.writeable = False
    return rows


def curve(rng: np.random.Generator, coarse: int, size: int) -> Float:
    """A smooth random curve, ``(size,)``, with about ``coarse`` bends and a standard deviation of about 0.7."""
    return _spline_rows(coarse, size) @ rng.standard_normal(coarse, np.float32)


def field(rng: np.random.Generator, rows: int, columns: int, size: int) -> Float:
    """A smooth random field, ``(size, size)``, about ``rows`` x ``columns`` blobs, standard deviation about 0.5."""
    coarse = rng.standard_normal((rows, columns), np.float32)
    return np.asarray(_spline_rows(rows, size) @ coarse @ _spline_rows(columns, size).T, np.float32)


def step(distance: Float, width: float) -> Float:
    """0 well below zero, 1 well above, over about ``width`` on each side."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / np.float32(width)), np.float32)


def bump(distance: Float, width: float) -> Float:
    """1 at zero, 0 beyond about twice ``width`` on each side."""
    return np.asarray(np.exp(-np.square(distance / np.float32(width))), np.float32)


def centres(size: int) -> Float:
    """Centres of the pixels along a side: ``(size,)``."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
