"""Kaggle "Ultrasound Nerve Segmentation" (2016): the brachial plexus in neck ultrasound, in its published layout.

``train/SUBJECT_N.tif`` with ``train/SUBJECT_N_mask.tif``, ``test/N.tif`` without masks, and ``train_masks.csv``, which
holds the same masks as run lengths.
"""

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import files_of, refuse_missing, rows_of, shown
from consilium.common.errors import DataError
from consilium.common.images import open_image, union

TABLE: Final = "train_masks.csv"
_MASK: Final = "_mask"


def cases(folder: Path) -> list[Case]:
    """List the images: ``train`` with masks (half of them empty), grouped by subject, then ``test`` without.

    Parameters
    ----------
    folder
        Holds ``train/`` and, where it is wanted, ``test/``. Run lengths stand in for mask files that are not there.

    Raises
    ------
    DataError
        If no image is found, one is not named after its subject, or one has neither mask file nor run lengths.
    """
    train = [path for path in files_of(folder, "Ultrasound Nerve", "train/*.tif") if not path.stem.endswith(_MASK)]
    odd = [path.name for path in train if not path.stem.replace("_", "", 1).isdecimal() or "_" not in path.stem]
    if odd:
        raise DataError(f"{folder}: images under train/ are named SUBJECT_NUMBER.tif; found {shown(odd)}")
    masks = {path: path.with_stem(path.stem + _MASK) for path in train}
    bare = {path for path in train if not masks[path].is_file()}
    runs = _run_lengths(folder / TABLE) if bare and (folder / TABLE).is_file() else {}
    lost = [path.name for path in train if path in bare and path.stem not in runs]
    refuse_missing(
        folder, f"every image under train/ has NAME_mask.tif beside it, or a row of {TABLE}", lost, len(train)
    )
    found = [
        Case(
            source=str(path),
            load_image=partial(open_image, path),
            load_mask=partial(_unroll, path, runs[path.stem]) if path in bare else partial(union, [masks[path]]),
            group=path.stem.partition("_")[0],
            kind="train",
        )
        for path in train
    ]
    if (folder / "test").is_dir():
        test = files_of(folder, "Ultrasound Nerve", "test/*.tif")
        found += [Case(str(path), partial(open_image, path), kind="test") for path in test]
    return found


def _run_lengths(table: Path) -> dict[str, str]:
    rows = rows_of(table, "subject", "img", "pixels")
    return {f"{row['subject'].strip()}_{row['img'].strip()}": row["pixels"] for row in rows}


def _unroll(path: Path, runs: str) -> npt.NDArray[np.bool_]:
    """Make a mask, bool (H, W), of run lengths: a start, counted from 1 down the columns, and a length, in turn."""
    picture = open_image(path)
    try:
        numbers = np.array(runs.split(), np.int64)
    except (ValueError, OverflowError):
        numbers = np.zeros(1, np.int64)
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    pixels = picture.width * picture.height
    if len(starts) != len(lengths) or not ((starts >= 0) & (lengths >= 0) & (lengths <= pixels - starts)).all():
        raise DataError(
            f"{path}: its row of {TABLE} must be pairs of a start, from 1, and a length, within {picture.width} x "
            f"{picture.height} pixels; got {runs[:40]!r}"
        )
    columns = np.zeros(pixels, np.bool_)
    for start, length in zip(starts, lengths, strict=True):
        columns[start : start + length] = True
    return np.ascontiguousarray(columns.reshape(picture.width, picture.height).T)
