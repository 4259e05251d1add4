"""Near duplicates: the same frame again, shifted, cropped or marked, which must not stand on both sides of a split."""

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

THUMBNAIL: Final = 64
LEAST_CORRELATION: Final = 0.95


def groups(images: npt.NDArray[np.uint8]) -> list[str]:
    """Group images that look the same.

    Two images are near duplicates where their gray 64 x 64 thumbnails correlate above 0.95; groups are the connected
    components of that relation.

    Parameters
    ----------
    images
        uint8 (n, C, H, W).

    Returns
    -------
    A group's number, as text, for each image; numbered in order of appearance.
    """
    thumbnails = np.stack([_thumbnail(image) for image in images])
    pairs: list[npt.NDArray[np.int64]] = []
    for first in range(0, len(images), 512):  # blocks, so that memory does not grow with the square
        found = np.argwhere(thumbnails[first : first + 512] @ thumbnails.T > LEAST_CORRELATION)
        pairs.append(found + np.array((first, 0)))
    rows, columns = np.concatenate(pairs).T
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(images),) * 2)
    _, labels = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    return [names.setdefault(int(label), str(len(names))) for label in labels]


def _thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A gray thumbnail of mean 0 and length 1, so that a product of two is their correlation."""
    gray = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("L")
    small = np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    return np.asarray(small / (np.linalg.norm(small) or 1.0), np.float32)
