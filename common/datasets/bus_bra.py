"""BUS-BRA: breast ultrasound in its published layout (Gómez-Flores et al., Medical Physics 51:3110, 2024).

``Images/bus_0001-l.png`` with ``Masks/mask_0001-l.png`` (coloured: every colour but black is lesion) and ``bus_data.csv``.
"""

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import files_of, refuse_missing, root_of, rows_of
from consilium.common.images import open_image, union

TABLE: Final = "bus_data.csv"


def cases(folder: Path) -> list[Case]:
    """List the images, grouped by patient; ``kind`` is ``benign`` or ``malignant``.

    Parameters
    ----------
    folder
        ``BUSBRA`` as unpacked, or the folder it is in.

    Raises
    ------
    DataError
        If images, masks or the table are missing, or an image is not in the table.
    """
    folder = root_of(folder, "Images", "BUSBRA")
    files = files_of(folder, "BUS-BRA", "Images/bus_*.png")
    masks = [folder / "Masks" / f"mask_{path.name.removeprefix('bus_')}" for path in files]
    bare = [mask.name for mask in masks if not mask.is_file()]
    refuse_missing(folder, "every image bus_NAME.png has a mask Masks/mask_NAME.png", bare, len(files))
    files_of(folder, "BUS-BRA", TABLE)
    rows = {row["ID"]: row for row in rows_of(folder / TABLE, "ID", "Case", "Pathology")}
    unknown = [path.name for path in files if path.stem not in rows]
    refuse_missing(folder, f"every image has a row of {TABLE}", unknown, len(files))
    return [
        Case(
            source=str(path),
            load_image=partial(open_image, path),
            load_mask=partial(union, [mask], _any_colour),
            group=rows[path.stem]["Case"],
            kind=rows[path.stem]["Pathology"].lower(),
        )
        for path, mask in zip(files, masks, strict=True)
    ]


def _any_colour(mask: Image.Image) -> npt.NDArray[np.bool_]:
    return np.asarray(np.asarray(mask.convert("RGB")).any(axis=2), np.bool_)
