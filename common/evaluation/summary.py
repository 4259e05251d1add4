"""What an evaluation comes to: means with intervals, tests, and what a mean hides.

The summary is plain JSON; `docs/evaluation.md` documents every key. Nothing undefined is left as NaN: it is null.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common.evaluation import calibration, statistics
from consilium.common.evaluation.per_image import MEASURES
from consilium.common.evaluation.rows import Part, Row
from consilium.common.evaluation.statistics import Values

SCHEMA: Final = 1
SIZES: Final = ("small", "medium", "large")
OF_LESIONS: Final = tuple(name for name in MEASURES if name not in {"specificity", "brier", "ece"})
"""Measures that are told over images with a lesion only; the others over all images."""


def summarise(parts: Sequence[Part], rng: np.random.Generator, resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
    """Sum an evaluation up.

    Parameters
    ----------
    parts
        One for each predictor and grid. Those of one grid measured the same samples in the same order.
    rng
        Draws the resamples of the intervals.
    resamples
        How many.

    Returns
    -------
    ``{"schema": 1, "grids": [one for each grid and label]}``.
    """
    blocks = []
    for grid in dict.fromkeys(part.grid for part in parts):
        here = [part for part in parts if part.grid == grid]
        blocks += [_block(here, grid, label, rng, resamples) for label, rows in here[0].rows.items() if rows]
    for grid in {block["grid"] for block in blocks}:  # one family of tests: all labels and teachers of a grid
        family = [one for block in blocks if block["grid"] == grid for one in block["comparisons"]]
        for one, adjusted in zip(family, statistics.holm([one["p"] for one in family]), strict=True):
            one["p_holm"] = adjusted
    return {"schema": SCHEMA, "resamples": resamples, "grids": blocks}


def _block(parts: Sequence[Part], grid: str, label: str, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    rows = parts[0].rows[label]
    groups = [row.sample.group for row in rows]
    areas = np.array([row.measured.truth_px for row in rows], np.float64)
    lesion = areas > 0
    values = {id(part): _values(part.rows[label], lesion) for part in parts}
    student = next((part for part in parts if part.kind == "student"), None)
    rivals = [part for part in parts if part.kind == "teacher"] if student else []
    gaps = [(values[id(student)] - values[id(rival)])[:, :1] for rival in rivals]
    columns = np.concatenate([*values.values(), *gaps], axis=1)
    low, high = statistics.bootstrap_intervals(columns, groups, rng, resamples)
    strata = np.full(len(rows), -1)
    strata[lesion] = statistics.thirds(areas[lesion])
    width = len(MEASURES)
    predictors = []
    for i, part in enumerate(parts):
        ends = (low[i * width : (i + 1) * width], high[i * width : (i + 1) * width])
        predictors.append(_predictor(part, label, values[id(part)], ends, strata))
    comparisons = []
    for i, rival in enumerate(rivals):
        found = statistics.paired(values[id(student)][:, 0], values[id(rival)][:, 0], groups)
        at = len(parts) * width + i
        comparisons.append(
            {
                "teacher": rival.predictor,
                "measure": "dice",
                "images": found.n,
                "units": found.units,
                "median_difference": _number(found.median_difference),
                "mean_difference": _score(gaps[i][:, 0], low[at], high[at]),
                "wins": found.wins,
                "ties": found.ties,
                "losses": found.losses,
                "p": found.p,
            }
        )
    sizes = {row.shape for row in rows}
    return {
        "grid": grid,
        "label": label,
        "size": list(sizes.pop()) if len(sizes) == 1 else None,
        "images": len(rows),
        "lesion_images": int(lesion.sum()),
        "groups": len(statistics.group_sums(columns[:, :1], groups)[0]),
        "sites": sorted({row.sample.site for row in rows} - {""}),
        "size_thirds_px": [
            {"third": name, "images": int((strata == i).sum()), **_range(areas[strata == i])}
            for i, name in enumerate(SIZES)
        ],
        "predictors": predictors,
        "comparisons": comparisons,
    }


def _values(rows: Sequence[Row], lesion: npt.NDArray[np.bool_]) -> Values:
    """Measures (n, len(MEASURES)); those of lesions are NaN on images without one."""
    values = np.array([[getattr(row.measured, name) for name in MEASURES] for row in rows], np.float64)
    of_lesions = np.array([name in OF_LESIONS for name in MEASURES])
    values[np.ix_(~lesion, of_lesions)] = np.nan
    return values


def _predictor(
    part: Part, label: str, values: Values, ends: tuple[Values, Values], strata: npt.NDArray[np.int64]
) -> dict[str, Any]:
    rows, dice = part.rows[label], values[:, 0]
    lesion = strata >= 0
    drawn = np.array([row.measured.predicted_px for row in rows], np.int64)
    sites = np.array([row.sample.site for row in rows], dtype=object)
    by_site = [
        {"site": site, **_score(dice[(sites == site) & lesion])}
        for site in sorted(set(sites[lesion]) - {""})  # a site without a lesion has no Dice
    ]
    error = values[:, MEASURES.index("area_error")]
    return {
        "kind": part.kind,
        "name": part.predictor,
        "measures": {
            name: _score(values[:, i], float(ends[0][i]), float(ends[1][i])) for i, name in enumerate(MEASURES)
        },
        "median_dice": _number(float(np.median(dice[lesion]))) if lesion.any() else None,
        "absolute_area_error": _score(np.abs(error)),
        "missed": int((drawn[lesion] == 0).sum()),
        "sites": by_site,
        "worst_site": min(by_site, key=lambda one: (one["mean"], one["site"]))["site"] if len(by_site) > 1 else None,
        "sizes": [{"third": name, **_score(dice[strata == i])} for i, name in enumerate(SIZES)],
        "without_lesion": {
            "images": int((~lesion).sum()),
            "left_empty": int((drawn[~lesion] == 0).sum()),
            "false_positive_px": _score(drawn[~lesion].astype(np.float64)),
        },
        "calibration": {
            "brier": _number(calibration.brier(part.levels[label])),
            "ece": _number(calibration.ece(part.levels[label])),
            "bins": calibration.reliability(part.levels[label]),
        },
    }


def _score(values: Values, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """Mean and population standard deviation over what is defined; with an interval where one is given."""
    known = values[~np.isnan(values)]
    told: dict[str, Any] = {
        "mean": _number(float(known.mean())) if len(known) else None,
        "std": _number(float(known.std())) if len(known) else None,
        "n": len(known),
    }
    if low is not None and high is not None:
        told |= {"low": _number(low), "high": _number(high)}
    return told


def _range(areas: Values) -> dict[str, Any]:
    return {"from": int(areas.min()), "to": int(areas.max())} if len(areas) else {"from": None, "to": None}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
