"""Pseudo masks from teachers at hand, for scripts: what a federation does, without one."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from consilium.common import soft_mask
from consilium.common.soft_mask import SoftMasks
from consilium.server.fusion import weighted_mean


class Predictor(Protocol):
    """Whatever gives soft masks: uint8 (n, C, H, W) in, float (n, K, H, W) in [0, 1] out."""

    def predict(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Segment images."""
        ...


def pseudo_masks(
    teachers: Sequence[Predictor], images: npt.NDArray[np.uint8], weights: Sequence[int] | None = None, batch: int = 16
) -> SoftMasks:
    """Fuse the soft masks of teachers by their weighted mean.

    Parameters
    ----------
    teachers
        At least one.
    images
        uint8 (N, C, H, W); may be memory-mapped. A batch is predicted at a time.
    weights
        A whole number, at least 1, for each teacher; equal where None.

    Returns
    -------
    uint8 (N, K, H, W), the same bytes as a federation of these teachers gives.
    """
    fused: list[SoftMasks] = []
    for first in range(0, len(images), batch):
        part = np.asarray(images[first : first + batch])
        masks = [soft_mask.quantise(teacher.predict(part)) for teacher in teachers]
        state = weighted_mean.init(masks[0].shape)
        for mask, weight in zip(masks, weights or [1] * len(teachers), strict=True):
            weighted_mean.fold(state, mask, weight)
        fused.append(weighted_mean.finish(state))
    return np.concatenate(fused)
