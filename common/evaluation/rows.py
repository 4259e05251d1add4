"""Many masks of one predictor, measured; and the table of all of them, for statistics programs."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.common.errors import DataError
from consilium.common.evaluation.calibration import LevelCounts
from consilium.common.evaluation.per_image import MEASURES, Measured, measure

Kind = Literal["teacher", "ensemble", "student", "prediction"]
Grid = Literal["canonical", "native"]
"""On which pixels it is measured: the study's own size, or each image's."""

COLUMNS: Final = (
    "image", "kind", "predictor", "label", "grid", "site", "group", "height", "width", "truth_px", "predicted_px", *MEASURES
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """An image that is measured: its name, the site it is of, and its patient's or near duplicates' group; empty if unknown."""

    name: str
    site: str = ""
    group: str = ""


@dataclass(frozen=True)
class Row:
    """One image of one label."""

    sample: Sample
    shape: tuple[int, int]
    measured: Measured


@dataclass
class Part:
    """All that one predictor did: rows of each label, in the samples' order, and their calibration counts added up."""

    kind: Kind
    predictor: str
    grid: Grid
    rows: dict[str, list[Row]] = field(default_factory=dict)
    levels: dict[str, LevelCounts] = field(default_factory=dict)


def measure_all(
    part: Part,
    labels: Sequence[str],
    pairs: Iterable[tuple[Sample, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]],
) -> Part:
    """Measure a predictor's masks, one image at a time.

    Parameters
    ----------
    part
        Of which predictor and grid; filled, and given back.
    labels
        Of the masks' channels.
    pairs
        For each image the sample, the soft mask uint8 (K, H, W) and the truth bool (K, h, w). A mask of another size than its
        truth is brought to the truth's.
    """
    for label in labels:
        part.rows.setdefault(label, [])
        part.levels.setdefault(label, np.zeros((2, 256), np.int64))
    for sample, mask, truth in pairs:
        if not len(mask) == len(truth) == len(labels):
            raise DataError(
                f"{sample.name}: masks have one channel a label, {len(labels)} ({', '.join(labels)}); got {mask.shape} and "
                f"{truth.shape}"
            )
        for label, soft, real in zip(labels, mask, truth, strict=True):
            measured, counts = measure(resized(soft, (real.shape[0], real.shape[1])), real)
            part.rows[label].append(Row(sample, (real.shape[0], real.shape[1]), measured))
            part.levels[label] += counts
    return part


def resized(mask: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Bring a soft mask uint8 (H, W) to another height and width: bilinear, still soft; the same if it has that size."""
    if mask.shape == shape:
        return mask
    drawn = Image.fromarray(np.ascontiguousarray(mask)).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(drawn)


def to_csv(parts: Iterable[Part]) -> str:
    """Write one line an image, predictor, label and grid; columns as in `COLUMNS`, an undefined measure is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for part in parts:
        for label, rows in part.rows.items():
            for row in rows:
                sample, measured = row.sample, row.measured
                who = (sample.name, part.kind, part.predictor, label, part.grid, sample.site, sample.group)
                values = (_text(getattr(measured, name)) for name in MEASURES)
                table.writerow((*who, *row.shape, measured.truth_px, measured.predicted_px, *values))
    return text.getvalue()


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
