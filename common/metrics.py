"""How good a mask is."""

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks
from consilium.common.wire import Score


def dice(masks: SoftMasks, truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Dice of each image, at the threshold 0.5.

    Parameters
    ----------
    masks
        Soft masks, uint8 (n, K, H, W), 0 to 255.
    truth
        Ground truth of the same shape, 0 or 1.

    Returns
    -------
    float64 (n,), in [0, 1]; the mean over the K labels. Where prediction and truth are both empty Dice is 1, where only one of
    them is, 0.
    """
    if masks.shape != truth.shape:
        raise DataError(f"masks and ground truth have one shape; got {masks.shape} and {truth.shape}")
    predicted = masks >= TARGET_LEVEL
    real = truth > 0
    overlap = np.count_nonzero(predicted & real, axis=(2, 3))
    total = np.count_nonzero(predicted, axis=(2, 3)) + np.count_nonzero(real, axis=(2, 3))
    return np.asarray(np.where(total == 0, 1.0, 2 * overlap / np.maximum(total, 1)).mean(axis=1), np.float64)


def score(values: npt.NDArray[np.float64]) -> Score:
    """Mean and population standard deviation over images, in percent, as the paper's tables give them."""
    if not len(values):
        return Score(mean=0.0, std=0.0, n=0)
    return Score(mean=100 * float(values.mean()), std=100 * float(values.std()), n=len(values))
