"""TN3K: thyroid nodule ultrasound in its published layout (Gong et al., Computers in Biology and Medicine 155:106389, 2023).

``{trainval,test}-image/0000.jpg`` with ``{trainval,test}-mask/0000.jpg`` (masks are JPEG, so they are not pure black and
white) and ``tn3k-trainval-fold{0..4}.json``.
"""

import json
from functools import partial
from pathlib import Path

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import files_of, refuse_missing, root_of
from consilium.common.errors import DataError
from consilium.common.images import open_image, union


def cases(folder: Path, fold: int | None = None) -> list[Case]:
    """List the images: ``trainval``, then ``test``, as their ``kind`` says.

    Parameters
    ----------
    folder
        ``tn3k`` as unpacked, or the folder it is in.
    fold
        0 to 4: ``kind`` of the first part is then ``train`` or ``val``, by the published fold.

    Raises
    ------
    DataError
        If images or masks are missing, or the fold's file is, or does not name every image.
    """
    folder = root_of(folder, "trainval-image", "tn3k", "Thyroid Dataset/tn3k")
    found: list[Case] = []
    for part in ("trainval", "test"):
        files = files_of(folder, "TN3K", f"{part}-image/*.jpg")
        masks = [folder / f"{part}-mask" / path.name for path in files]
        bare = [mask.name for mask in masks if not mask.is_file()]
        refuse_missing(folder, f"every image has a mask of its name under {part}-mask/", bare, len(files))
        kinds = _fold(folder, fold, files) if part == "trainval" and fold is not None else [part] * len(files)
        found += [
            Case(str(path), partial(open_image, path), partial(union, [mask]), kind=kind)
            for path, mask, kind in zip(files, masks, kinds, strict=True)
        ]
    return found


def _fold(folder: Path, fold: int, files: list[Path]) -> list[str]:
    path = folder / f"tn3k-trainval-fold{fold}.json"
    try:
        lists = json.loads(path.read_text("utf-8"))
        kinds = {int(number): kind for kind in ("train", "val") for number in lists[kind]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected lists 'train' and 'val' of image numbers ({type(error).__name__}); folds are 0 to 4"
        ) from None
    unnamed = [image.name for image in files if not image.stem.isdecimal() or int(image.stem) not in kinds]
    refuse_missing(path, "every image is on one of its lists", unnamed, len(files))
    return [kinds[int(image.stem)] for image in files]
