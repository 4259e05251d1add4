"""A folder of images: labelled, ``images/`` and ``masks/`` with the same file names (any image ending), or not."""

from functools import partial
from pathlib import Path

from consilium.common.datasets.cases import Case
from consilium.common.datasets.labelled import Labelled
from consilium.common.datasets.layout import refuse_missing
from consilium.common.datasets.reading import read as read_cases
from consilium.common.images import image_files, open_image, union


def cases(folder: Path) -> list[Case]:
    """List the images of a labelled folder.

    Parameters
    ----------
    folder
        Holds ``images/`` and ``masks/``; the masks of ``a.png`` are ``a.*``, ``a_mask.*`` or ``a_mask_1.*`` and so on: their
        union counts.

    Returns
    -------
    Cases in natural order of their names; a folder knows no groups.

    Raises
    ------
    DataError
        Naming images that have no mask.
    """
    files = image_files(folder / "images")
    masks: dict[str, list[Path]] = {}
    for path in image_files(folder / "masks"):
        masks.setdefault(path.stem.partition("_mask")[0], []).append(path)
    lonely = [path.name for path in files if path.stem not in masks]
    refuse_missing(folder, "every image needs a mask of the same name under masks/", lonely, len(files))
    return [Case(str(path), partial(open_image, path), partial(union, masks[path.stem])) for path in files]


def images(folder: Path) -> list[Case]:
    """List the images of a folder and its sub-folders, without masks, in natural order of their names."""
    return [Case(str(path), partial(open_image, path)) for path in image_files(folder)]


def read(folder: Path, size: int, channels: int) -> Labelled:
    """Read a labelled folder, see `cases`, in canonical form of this size and number of channels."""
    return read_cases(cases(folder), size, channels)
