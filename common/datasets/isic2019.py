"""ISIC 2019, training part: dermoscopy without masks, in its published layout (challenge.isic-archive.com).

``ISIC_2019_Training_Input/ISIC_0000000.jpg`` (some names end in ``_downsampled``), ``ISIC_2019_Training_Metadata.csv`` and
``ISIC_2019_Training_GroundTruth.csv``.
"""

from functools import partial
from pathlib import Path
from typing import Final

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import files_of, refuse_missing, rows_of
from consilium.common.images import open_image

METADATA: Final = "ISIC_2019_Training_Metadata.csv"
DIAGNOSES: Final = "ISIC_2019_Training_GroundTruth.csv"


def cases(folder: Path) -> list[Case]:
    """List the images, grouped by lesion; an image whose lesion is not known is a group of its own.

    Parameters
    ----------
    folder
        Holds the image folder and the metadata; where the diagnoses are there too, ``kind`` is one (``MEL``, ``NV``, ...).

    Raises
    ------
    DataError
        If there are no images, no metadata, or an image is not in the metadata.
    """
    files = files_of(folder, "ISIC 2019", "ISIC_2019_Training_Input/*.jpg")
    files_of(folder, "ISIC 2019", METADATA)
    lesions = {
        _name(row["image"]): row["lesion_id"].strip() for row in rows_of(folder / METADATA, "image", "lesion_id")
    }
    unknown = [path.name for path in files if _name(path.stem) not in lesions]
    refuse_missing(folder, f"every image has a row of {METADATA}", unknown, len(files))
    kinds = _diagnoses(folder / DIAGNOSES) if (folder / DIAGNOSES).is_file() else {}
    return [
        Case(
            source=str(path),
            load_image=partial(open_image, path),
            group=lesions[_name(path.stem)],
            kind=kinds.get(_name(path.stem), ""),
        )
        for path in files
    ]


def _name(stem: str) -> str:
    return stem.strip().removesuffix("_downsampled")


def _diagnoses(table: Path) -> dict[str, str]:
    """Give the column that holds a 1, by image."""
    rows = rows_of(table, "image")
    return {
        _name(row["image"]): next((name for name, mark in row.items() if name != "image" and mark in ("1", "1.0")), "")
        for row in rows
    }
