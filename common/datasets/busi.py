"""BUSI, the paper's "Baheya": breast ultrasound in its published layout (Al-Dhabyani et al., Data in Brief 28:104863, 2020).

``benign/``, ``malignant/`` and ``normal/`` hold ``NAME (i).png`` with one or more masks ``NAME (i)_mask.png``,
``NAME (i)_mask_1.png``, ...
"""

import csv
from pathlib import Path
from typing import Final

import numpy as np

from consilium.common.datasets.labelled import Labelled
from consilium.common.datasets.near_duplicates import groups
from consilium.common.errors import DataError
from consilium.common.images import read_image, read_mask

LESIONS: Final = ("benign", "malignant")


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
    missing = [name for name in LESIONS if not (folder / name).is_dir()]
    if missing:
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise DataError(
            f"{folder}: BUSI has the folders {' and '.join(LESIONS)}; {' and '.join(missing)} missing"
            f" (found: {', '.join(found[:8]) or 'nothing'})"
        )
    files = [path for name in LESIONS for path in sorted((folder / name).glob("*.png")) if "_mask" not in path.stem]
    if not files:
        raise DataError(f"{folder}: expected images like 'benign/benign (1).png', found none")
    images = np.stack([read_image(path, size, channels) for path in files])
    masks = [read_mask(sorted(path.parent.glob(f"{_literal(path.stem)}_mask*.png")), size, of=path) for path in files]
    names = groups(images) if group_table is None else _from_table(group_table, files)
    return Labelled(images, np.stack(masks), tuple(map(str, files)), tuple(names))


def _literal(stem: str) -> str:
    return "".join(f"[{char}]" if char in "[]*?" else char for char in stem)


def _from_table(table: Path, files: list[Path]) -> list[str]:
    with table.open(newline="", encoding="utf-8") as rows:
        known = {"/".join(Path(row["path"]).parts[-2:]): row["near_dup_group"] for row in csv.DictReader(rows)}
    absent = [path for path in files if f"{path.parent.name}/{path.name}" not in known]
    if absent:
        raise DataError(f"{table}: names no group for {len(absent)} images, first {absent[0]}")
    return [known[f"{path.parent.name}/{path.name}"] for path in files]
