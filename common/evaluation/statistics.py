"""Intervals and tests over images that come in groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
TIE: Final = 1e-9
"""Paired values closer than this are a tie; far below what one pixel changes."""

_AT_A_TIME: Final = 1_000


def group_sums(values: Values, groups: Sequence[str]) -> tuple[Values, npt.NDArray[np.int64]]:
    """Add up values by group.

    Parameters
    ----------
    values
        (n, m), NaN where undefined.
    groups
        The group of each of the n; an empty text is a group of its own.

    Returns
    -------
    Sums and counts of what is defined, each (groups, m), groups in the order of their names.
    """
    names = [group or f"\0{i}" for i, group in enumerate(groups)]
    distinct, place = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    known = ~np.isnan(values)
    sums = np.zeros((len(distinct), values.shape[1]))
    counts = np.zeros(sums.shape, np.int64)
    np.add.at(sums, place, np.where(known, values, 0.0))
    np.add.at(counts, place, known)
    return sums, counts


def bootstrap_intervals(
    values: Values, groups: Sequence[str], rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[Values, Values]:
    """Percentile intervals of the mean, resampling whole groups.

    Images of one patient, or near duplicates, do not vary by themselves; resampled one by one they would make an interval
    that is too narrow. All columns are resampled together, so that their differences are fair.

    Parameters
    ----------
    values
        (n, m): m measures of n images, NaN where undefined. The mean of a resample is over what is defined in it; one in
        which nothing is defined says nothing.
    groups
        The group of each of the n images; an empty text is a group of its own.
    rng
        Draws the groups.
    resamples
        How often.

    Returns
    -------
    Lower and upper ends (m,) at the level `LEVEL`; NaN for a column without any defined value.
    """
    sums, counts = group_sums(values, groups)
    many = len(sums)
    means = np.full((resamples, values.shape[1]), np.nan)
    for at in range(0, resamples if many else 0, _AT_A_TIME):
        rows = min(_AT_A_TIME, resamples - at)
        drawn = rng.integers(0, many, (rows, many)) + many * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * many).reshape(rows, many).astype(np.float64)
        defined = times @ counts
        np.divide(times @ sums, defined, out=means[at : at + rows], where=defined > 0)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    some = ~np.isnan(means).all(axis=0)
    if some.any():
        low[some], high[some] = np.nanquantile(means[:, some], ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high


@dataclass(frozen=True)
class Paired:
    """Two predictors on the same images; ``difference`` is the first one's value less the second one's."""

    n: int
    units: int
    median_difference: float
    wins: int
    ties: int
    losses: int
    p: float


def paired(first: Values, second: Values, groups: Sequence[str]) -> Paired:
    """Compare two predictors image by image: Wilcoxon's signed-rank test, two-sided.

    The test's units are groups, each with the mean of its images' differences: the test takes its units to be independent. The
    median and the count of wins are over images.

    Parameters
    ----------
    first, second
        (n,), more is better; images where either is NaN are left out of both.
    groups
        The group of each image; an empty text is a group of its own.
    """
    from scipy.stats import wilcoxon  # a third of a second that only this needs

    both = ~np.isnan(first) & ~np.isnan(second)
    difference = (first - second)[both]
    difference[np.abs(difference) < TIE] = 0.0
    sums, counts = group_sums(difference[:, None], [group for group, here in zip(groups, both, strict=True) if here])
    units = (sums / np.maximum(counts, 1))[:, 0]
    units[np.abs(units) < TIE] = 0.0
    return Paired(
        n=len(difference),
        units=len(units),
        median_difference=float(np.median(difference)) if len(difference) else np.nan,
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
        p=float(wilcoxon(units.round(9)).pvalue) if units.any() else 1.0,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of a family of tests by Holm's step-down method, in the order given."""
    held = np.asarray(p_values, np.float64)
    order = np.argsort(held, kind="stable")
    stepped = np.maximum.accumulate(held[order] * np.arange(len(held), 0, -1))
    adjusted = np.empty_like(held)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def thirds(areas: Values) -> npt.NDArray[np.int64]:
    """Sort lesions into thirds by size: 0 small, 1 medium, 2 large; lesions of one size stand together.

    Parameters
    ----------
    areas
        (n,), above 0.
    """
    if not len(areas):
        return np.zeros(0, np.int64)
    return np.searchsorted(np.quantile(areas, (1 / 3, 2 / 3)), areas, side="left").astype(np.int64)
