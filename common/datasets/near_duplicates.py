"""Near duplicates: the same frame again, shifted, cropped or marked, which must not stand on both sides of a split.

Two images are near duplicates where their gray 64 x 64 thumbnails correlate above 0.95; groups are the connected components of
that relation. On 571 images of BUSI with its published groups (181 pairs within a group) this finds 181 pairs, all of them
right. ImageHash's perceptual hash (64 bits, at most 10 differ) has a precision of 0.92 and a recall of 0.91 there, and its
other hashes less; so there is one way here, and it is this. (Those groups were made by correlation, too. By eye, the hash sees
a dozen true pairs more, cropped and brightened ones, and misses as many that moved.)
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

THUMBNAIL: Final = 64
LEAST_CORRELATION: Final = 0.95
_BLOCK: Final = 1024  # thumbnails compared at a time: memory does not grow with the square of their number

Pixels = npt.NDArray[np.uint8]
Pairs = npt.NDArray[np.int64]


def groups(images: Pixels) -> list[str]:
    """Group images that look the same.

    Parameters
    ----------
    images
        uint8 (n, C, H, W).

    Returns
    -------
    A group's number, as text, for each image; numbered in order of appearance.
    """
    return components(pairs(thumbnails(images)), len(images))


def thumbnails(images: Pixels) -> Pixels:
    """Make the thumbnails, uint8 (n, 64, 64), of images uint8 (n, C, H, W)."""
    made = np.empty((len(images), THUMBNAIL, THUMBNAIL), np.uint8)
    for i, image in enumerate(images):
        made[i] = thumbnail(
            Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        )
    return made


def thumbnail(picture: Image.Image) -> Pixels:
    """Make the gray thumbnail, uint8 (64, 64), by which a picture is compared."""
    small = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(small, np.uint8)


def pairs(thumbnails: Pixels) -> Pairs:
    """Find all near duplicates.

    Parameters
    ----------
    thumbnails
        uint8 (n, 64, 64).

    Returns
    -------
    int64 (pairs, 2), ascending: positions of two images, the smaller first. A picture of one gray level is like none.
    """
    found = [np.empty((0, 2), np.int64)]
    for first in range(0, len(thumbnails), _BLOCK):
        rows = _unit(thumbnails[first : first + _BLOCK])
        for second in range(first, len(thumbnails), _BLOCK):
            columns = rows if second == first else _unit(thumbnails[second : second + _BLOCK])
            near = np.argwhere(rows @ columns.T > LEAST_CORRELATION) + np.array((first, second))
            found.append(near[near[:, 0] < near[:, 1]])
    every = np.concatenate(found)
    return every[np.lexsort((every[:, 1], every[:, 0]))]


def closest(thumbnails: Pixels, others: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Find, for each of n thumbnails, the most similar of at least one others.

    Returns
    -------
    Their correlation, float32 (n,), and the position of the other, int64 (n,).
    """
    rows = _unit(thumbnails)
    best, where = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
    for first in range(0, len(others), _BLOCK):
        found = rows @ _unit(others[first : first + _BLOCK]).T
        place = found.argmax(axis=1)
        value = found[np.arange(len(rows)), place]
        better = value > best
        best[better], where[better] = value[better], first + place[better]
    return best, where


def components(linked: Pairs, count: int) -> list[str]:
    """Name the connected components of ``count`` things, of which pairs are linked, in order of appearance: "0", "1", ..."""
    rows, columns = linked.T
    graph = coo_matrix((np.ones(len(linked), bool), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    return [names.setdefault(int(label), str(len(names))) for label in labels]


def _unit(thumbnails: Pixels) -> npt.NDArray[np.float32]:
    """Bring each to mean 0 and length 1, so that a product of two is their correlation."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(length > 0, length, 1), np.float32)
