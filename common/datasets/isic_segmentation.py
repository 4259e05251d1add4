"""ISIC 2016, 2017 and 2018 lesion segmentation: dermoscopy in the published layouts (challenge.isic-archive.com).

Every part of a release is a folder of ``ISIC_0000000.jpg`` and a folder of ``ISIC_0000000_segmentation.png`` (2016 writes
``_Segmentation``); 2017 puts ``_superpixels.png`` and a table among the images.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import files_of, refuse_missing, shown
from consilium.common.errors import DataError
from consilium.common.images import open_image, union

_MASK: Final = "_segmentation"


def cases(folder: Path) -> list[Case]:
    """List the images of one release, or of one part of it; ``kind`` is the folder they are in.

    Parameters
    ----------
    folder
        Holds the folders of images and of masks, or both kinds of files. A part whose masks are not there at all has none.

    Raises
    ------
    DataError
        If there are no images, a name occurs twice, or only some images of a part have masks.
    """
    files = files_of(folder, "ISIC", "**/ISIC_*.jpg")
    repeated = [name for name, count in Counter(path.stem for path in files).items() if count > 1]
    if repeated:
        raise DataError(f"{folder}: {shown(repeated)} occur more than once; give the folder of one release")
    masks = {
        path.stem.lower().removesuffix(_MASK): path
        for path in folder.rglob("ISIC_*.png")
        if path.stem.lower().endswith(_MASK)
    }
    for part in {path.parent for path in files}:
        names = [path.stem for path in files if path.parent == part]
        bare = [name for name in names if name.lower() not in masks]
        if len(bare) < len(names):
            refuse_missing(part, f"every image has a mask NAME{_MASK}.png", bare, len(names))
    return [
        Case(
            source=str(path),
            load_image=partial(open_image, path),
            load_mask=partial(union, [masks[path.stem.lower()]]) if path.stem.lower() in masks else None,
            kind=path.parent.name,
        )
        for path in files
    ]
