"""The site's own training images, to recognise them among shared ones.

A teacher's mask of an image it was trained on tells that it was: whoever chooses the shared images could slip in the image of
a patient and read the answer. Such an image, or one that looks the same, is not answered.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.datasets import labelled, near_duplicates

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Likeness:
    """Of n images: the ``correlation`` float32 (n,) with the most similar own image, and its ``position`` int64 (n,)."""

    correlation: npt.NDArray[np.float32]
    position: npt.NDArray[np.int64]


class OwnImages:
    """A packed training set by its thumbnails, made at first use; safe to use from several threads.

    Parameters
    ----------
    folder
        Of the packed set; where there is none, nothing looks like it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        self._lock: Final = threading.Lock()
        self._thumbnails: Pixels | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._own())

    def likeness(self, images: Pixels) -> Likeness:
        """Compare images, uint8 (n, C, H, W), with all own ones."""
        own = self._own()
        if not len(own):
            return Likeness(np.full(len(images), -1, np.float32), np.full(len(images), -1, np.int64))
        return Likeness(*near_duplicates.closest(near_duplicates.thumbnails(images), own))

    def _own(self) -> Pixels:
        with self._lock:
            if self._thumbnails is None:
                packed = labelled.is_packed(self._folder)
                images = labelled.open_packed(self._folder).images if packed else np.empty((0, 1, 1, 1), np.uint8)
                self._thumbnails = near_duplicates.thumbnails(images)
            return self._thumbnails
