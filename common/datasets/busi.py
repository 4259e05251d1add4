"""BUSI, the paper's "Baheya": breast ultrasound in its published layout (Al-Dhabyani et al., Data in Brief 28:104863, 2020).

``benign/``, ``malignant/`` and ``normal/`` hold ``NAME (i).png`` with one or more masks ``NAME (i)_mask.png``,
``NAME (i)_mask_1.png``, ...
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from consilium.common.datasets.cases import Case, LeftOut
from consilium.common.datasets.labelled import Labelled
from consilium.common.datasets.layout import folders_of, refuse_missing, root_of
from consilium.common.datasets.reading import read_grouped
from consilium.common.errors import DataError
from consilium.common.images import is_shown, open_image, union

LESIONS: Final = ("benign", "malignant")
NORMAL: Final = "normal"
_MASK: Final = "_mask"
_ROOT: Final = "Dataset_BUSI_with_GT"


def cases(folder: Path, kinds: Sequence[str] = LESIONS) -> list[Case]:
    """List the images of BUSI.

    Parameters
    ----------
    folder
        ``Dataset_BUSI_with_GT`` as unpacked.
    kinds
        Sub-folders to list; ``normal`` images have empty masks.

    Returns
    -------
    Cases by kind, in order of their names. BUSI names no patients: `read` groups near duplicates.

    Raises
    ------
    DataError
        Saying which part of the layout is missing, or which image has no mask.
    """
    folder = root_of(folder, LESIONS[0], _ROOT)
    folders_of(folder, "BUSI", *kinds)
    files: list[Path] = []
    masks: dict[tuple[str, str], list[Path]] = {}
    for kind in kinds:
        for path in _files(folder / kind):
            name, is_mask, _ = path.stem.partition(_MASK)
            if is_mask:
                masks.setdefault((kind, name), []).append(path)
            else:
                files.append(path)
    if not files:
        raise DataError(f"{folder}: expected images like 'benign/benign (1).png', found none")
    bare = [path.name for path in files if (path.parent.name, path.stem) not in masks]
    refuse_missing(folder, "every image of BUSI has a mask beside it, 'NAME_mask.png'", bare, len(files))
    return [
        Case(
            source=str(path),
            load_image=partial(open_image, path),
            load_mask=partial(union, masks[path.parent.name, path.stem]),
            kind=path.parent.name,
        )
        for path in files
    ]


def left_out(folder: Path) -> list[LeftOut]:
    """Tell of the normal images, where they are there: `cases` lists those with a lesion."""
    images = sum(_MASK not in path.stem for path in _files(root_of(folder, LESIONS[0], _ROOT) / NORMAL))
    why = "they show no lesion; the paper, and this data set, take those with a benign or malignant one"
    return [LeftOut(f"{NORMAL}/", images, why)] if images else []


def read(folder: Path, size: int, channels: int, group_table: Path | None = None) -> Labelled:
    """Read the lesion images in canonical form, grouped by near duplicates.

    Parameters
    ----------
    folder
        ``Dataset_BUSI_with_GT`` as unpacked.
    size, channels
        Of the canonical form.
    group_table
        A CSV with columns ``path`` (ends in ``class/file name``) and ``near_dup_group``; computed from the images where None.

    Raises
    ------
    DataError
        Saying which part of the layout is missing, which image has no mask, or which is not in the table.
    """
    return read_grouped(cases(folder), size, channels, group_table)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if is_shown(path))
