"""What is measured of one soft mask against the truth.

The mask counts where it is above one half. Undefined cases are decided here, once:

====================  ===============  ==============  ================  ==============
                      truth: lesion,   truth: lesion,  truth: none,      truth: none,
measure               mask: some       mask: empty     mask: some        mask: empty
====================  ===============  ==============  ================  ==============
Dice, IoU             as defined       0               0                 100
precision             as defined       0               0                 undefined
recall                as defined       0               undefined         undefined
HD95, ASSD            as defined       image diagonal  undefined         undefined
NSD                   as defined       0               undefined         undefined
area error            as defined       -100            undefined         undefined
found, found at IoU   as defined       no              undefined         undefined
pixel specificity     as defined [1]_  100             as defined        100
Brier, ECE            as defined       as defined      as defined        as defined
====================  ===============  ==============  ================  ==============

So a missed lesion is the worst of every measure and can improve none of them: it is not left out, and no distance between
two outlines of an image is longer than its diagonal. Images without a lesion have no outline to be near to; they
are told by specificity and by the pixels drawn there by mistake, apart from the others.

.. [1] Undefined where the lesion fills the whole image.
"""

import math
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.evaluation import boundary, calibration
from consilium.common.evaluation.calibration import LevelCounts
from consilium.common.soft_mask import TARGET_LEVEL

FOUND_IOU: Final = 50.0
"""A lesion counts as found at IoU where mask and lesion have more than this in common, in percent."""


@dataclass(frozen=True)
class Measured:
    """Measures of one mask; NaN where undefined, see the module's table.

    Attributes
    ----------
    truth_px, predicted_px
        Target pixels of truth and mask.
    dice, iou, precision, recall
        Overlap, percent.
    hd95_px, assd_px
        Distances between the outlines, pixels.
    nsd_2px, nsd_5px
        Normalised surface Dice at 2 and 5 pixels, percent.
    area_error
        (mask - truth) / truth, percent; negative where the mask is too small.
    found, found_iou50
        100 where mask and lesion touch, and where their IoU is above 50; else 0. Their mean is a rate in percent.
    specificity
        Part of the background pixels that the mask leaves alone, percent.
    brier, ece
        Over the pixels of this image, in [0, 1].
    """

    truth_px: int
    predicted_px: int
    dice: float
    iou: float
    precision: float
    recall: float
    hd95_px: float
    assd_px: float
    nsd_2px: float
    nsd_5px: float
    area_error: float
    found: float
    found_iou50: float
    specificity: float
    brier: float
    ece: float


MEASURES: Final = tuple(
    field.name for field in fields(Measured) if not field.name.endswith(("truth_px", "predicted_px"))
)
"""All but the two areas."""


def measure(mask: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_]) -> tuple[Measured, LevelCounts]:
    """Measure one soft mask.

    Parameters
    ----------
    mask
        uint8 (H, W), 0 to 255.
    truth
        bool (H, W).

    Returns
    -------
    The measures, and the counts that calibration over many images is told from.
    """
    if mask.shape != truth.shape or truth.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
        raise DataError(
            f"a soft mask uint8 (H, W) is measured against a truth bool (H, W); got {mask.dtype} {mask.shape} and "
            f"{truth.dtype} {truth.shape}"
        )
    counts = calibration.count(mask, truth)
    background, target = counts
    hit, drawn = int(target[TARGET_LEVEL:].sum()), int(counts[:, TARGET_LEVEL:].sum())
    real, empty = int(target.sum()), int(background.sum())
    outline = _outline(mask >= TARGET_LEVEL, truth)
    iou = _percent(hit, drawn + real - hit, otherwise=100.0)
    return Measured(
        truth_px=real,
        predicted_px=drawn,
        dice=_percent(2 * hit, drawn + real, otherwise=100.0),
        iou=iou,
        precision=_percent(hit, drawn, otherwise=0.0 if real else math.nan),
        recall=_percent(hit, real),
        hd95_px=outline.hd95_px,
        assd_px=outline.assd_px,
        nsd_2px=100 * outline.nsd[0],
        nsd_5px=100 * outline.nsd[1],
        area_error=_percent(drawn - real, real),
        found=math.nan if not real else 100.0 * (hit > 0),
        found_iou50=math.nan if not real else 100.0 * (iou > FOUND_IOU),
        specificity=_percent(empty - (drawn - hit), empty),
        brier=calibration.brier(counts),
        ece=calibration.ece(counts),
    ), counts


def _outline(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> boundary.Boundary:
    if not truth.any():
        return boundary.Boundary(math.nan, math.nan, (math.nan, math.nan))
    if not mask.any():
        diagonal = math.hypot(*truth.shape)
        return boundary.Boundary(diagonal, diagonal, (0.0, 0.0))
    return boundary.compare(mask, truth)


def _percent(part: int, whole: int, otherwise: float = math.nan) -> float:
    return 100.0 * part / whole if whole else otherwise
