"""A case: one image of a data set, its mask where there is one, its group and where it came from.

Every data set of this package is a function from a folder, in the layout it was published in, to its cases. Nothing is
decoded until a case is asked for its pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass(frozen=True)
class Case:
    """One image of a data set.

    Attributes
    ----------
    source
        Where it came from, for people: a path, with ``#3`` behind it for the fourth frame of a file with several.
    load_image
        Gives the picture as it was published, upright, in any mode of Pillow.
    load_mask
        Gives the target at the picture's own size, bool (H, W), or None where nobody drew one for this data set. A case with
        an empty mask has a mask: it shows no target.
    group
        Patient, subject, lesion or near-duplicate group; cases of one group stand on one side of any split. An empty text is
        a group of its own.
    kind
        The data set's own word for it ("benign", "malignant", ...), or empty.
    """

    source: str
    load_image: Callable[[], Image.Image]
    load_mask: Callable[[], npt.NDArray[np.bool_]] | None = None
    group: str = ""
    kind: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Images of a published data set that are none of its cases.

    Attributes
    ----------
    where
        For people: a folder of the layout.
    images
        How many there are, 1 or more.
    why
        The reason, to be read behind "left out:".
    """

    where: str
    images: int
    why: str
