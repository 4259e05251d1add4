"""A folder of images labelled for several labels: ``images/`` and ``masks/LABEL/``, with the same file names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consilium.common.datasets import folder as one_label
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError
from consilium.common.images import image_files, read_image, read_mask


def read(folder: Path, size: int, channels: int, labels: Sequence[str]) -> Labelled:
    """Read a labelled folder in canonical form.

    Parameters
    ----------
    folder
        Holds ``images/`` and, for every label, ``masks/LABEL/``: the masks of ``a.png`` are ``a.*``, ``a_mask.*``,
        ``a_mask_1.*`` and so on, their union counts, and an image without that target has an empty one. With one label the
        masks may lie in ``masks/`` itself.
    size, channels
        Of the canonical form.
    labels
        The masks' channels, in order.

    Raises
    ------
    DataError
        If a label has no folder, naming images that have no mask, or the first file that cannot be read.
    """
    if len(labels) == 1 and not (folder / "masks" / labels[0]).is_dir():
        return one_label.read(folder, size, channels)
    lacking = [label for label in labels if not (folder / "masks" / label).is_dir()]
    if lacking:
        raise DataError(
            f"{folder}: each label has its masks in masks/LABEL/; there is no folder for {', '.join(lacking)}"
        )
    files = image_files(folder / "images")
    masks = [_masks_of(folder / "masks" / label, files) for label in labels]
    return Labelled(
        np.stack([read_image(path, size, channels) for path in files]),
        np.stack([np.concatenate([read_mask(found[path.stem], size, of=path) for found in masks]) for path in files]),
        tuple(str(path) for path in files),
        ("",) * len(files),
    )


def _masks_of(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Find the mask files of each image, by the image's name without ending."""
    masks: dict[str, list[Path]] = {}
    for path in image_files(folder):
        masks.setdefault(path.stem.partition("_mask")[0], []).append(path)
    lonely = [path.name for path in files if path.stem not in masks]
    if lonely:
        raise DataError(
            f"{folder}: every image needs a mask of the same name here, an empty one where it shows no such target; "
            f"{len(lonely)} of {len(files)} have none: {', '.join(lonely[:5])}{', ...' if len(lonely) > 5 else ''}"
        )
    return masks
