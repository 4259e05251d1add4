"""A site's own model, in whatever form it comes: one format a file.

Importing this package loads no torch.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Teacher(Protocol):
    """A trained segmentation model, as the site asks it."""

    @property
    def card(self) -> Mapping[str, object]:
        """What the coordinator may know of it: plain values, no path, no patient."""
        ...

    def predict(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Segment images.

        Parameters
        ----------
        images
            uint8 (n, C, H, W), on the study's canonical grid.

        Returns
        -------
        float32 (n, K, H, W), probabilities in [0, 1] on the same grid, K in the order of the site's labels.
        """
        ...
