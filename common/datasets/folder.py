"""A folder of labelled images: ``images/`` and ``masks/`` with the same file names (any image ending)."""

from pathlib import Path

import numpy as np

from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError
from consilium.common.images import image_files, read_image, read_mask


def read(folder: Path, size: int, channels: int) -> Labelled:
    """Read a folder in canonical form.

    Parameters
    ----------
    folder
        Holds ``images/`` and ``masks/``; the masks of ``a.png`` are ``a.*``, ``a_mask.*`` or ``a_mask_1.*`` and so on: their
        union counts.
    size, channels
        Of the canonical form.

    Raises
    ------
    DataError
        Naming every image that has no mask, or the first file that cannot be read.
    """
    files = image_files(folder / "images")
    masks: dict[str, list[Path]] = {}
    for path in image_files(folder / "masks"):
        masks.setdefault(path.stem.partition("_mask")[0], []).append(path)
    lonely = [path.name for path in files if path.stem not in masks]
    if lonely:
        raise DataError(
            f"{folder}: every image needs a mask of the same name under masks/; {len(lonely)} of {len(files)} have "
            f"none: {', '.join(lonely[:5])}{', ...' if len(lonely) > 5 else ''}"
        )
    return Labelled(
        np.stack([read_image(path, size, channels) for path in files]),
        np.stack([read_mask(masks[path.stem], size, of=path) for path in files]),
        tuple(str(path) for path in files),
        ("",) * len(files),
    )
