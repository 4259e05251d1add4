"""PASCAL VOC 2012: photographs in the published layout (Everingham et al., The PASCAL Visual Object Classes Challenge 2012).

``JPEGImages/*.jpg``, ``SegmentationClass/*.png`` (palette; 0 background, 1 to 20 classes, 255 the line between them that
counts as neither) and ``ImageSets/Segmentation/{train,val}.txt``.
"""

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import files_of, refuse_missing, root_of
from consilium.common.images import open_image, union

IGNORE: Final = 255


def cases(folder: Path) -> list[Case]:
    """List all images; those segmented by class have a mask, whose target is any class.

    Parameters
    ----------
    folder
        ``VOC2012``, or what it was unpacked to.

    Returns
    -------
    Cases in order of their names; ``kind`` is ``train`` or ``val`` for those on the lists of the segmentation task.

    Raises
    ------
    DataError
        If there are no images, or one on a list has no mask.
    """
    folder = root_of(folder, "JPEGImages", "VOC2012", "VOCdevkit/VOC2012")
    files = files_of(folder, "PASCAL VOC 2012", "JPEGImages/*.jpg")
    masks = {path.stem: path for path in (folder / "SegmentationClass").glob("*.png")}
    kinds = {name: kind for kind in ("train", "val") for name in _listed(folder, kind)}
    if masks:  # without the folder these are photographs to transfer with
        bare = [name for name in kinds if name not in masks]
        refuse_missing(folder, "every image on the lists has a mask SegmentationClass/NAME.png", bare, len(kinds))
    return [
        Case(
            source=str(path),
            load_image=partial(open_image, path),
            load_mask=partial(union, [masks[path.stem]], _any_class) if path.stem in masks else None,
            kind=kinds.get(path.stem, ""),
        )
        for path in files
    ]


def _listed(folder: Path, name: str) -> list[str]:
    path = folder / "ImageSets" / "Segmentation" / f"{name}.txt"
    return path.read_text("utf-8").split() if path.is_file() else []


def _any_class(mask: Image.Image) -> npt.NDArray[np.bool_]:
    if mask.mode not in ("P", "L"):
        raise ValueError(f"masks of PASCAL VOC hold a class number for each pixel (mode P); this one is {mask.mode}")
    classes = np.asarray(mask)
    return np.asarray((classes > 0) & (classes < IGNORE), np.bool_)
