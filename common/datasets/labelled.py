"""Labelled images packed for training: decoded once, memory-mapped ever after.

A packed set is a folder::

    images.npy   uint8 (N, C, H, W)
    masks.npy    uint8 (N, K, H, W), 0 or 1
    index.csv    source, group; stays where the data is
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError, StateError
from consilium.common.files import replacing


@dataclass(frozen=True)
class Labelled:
    """A packed set of labelled images.

    Attributes
    ----------
    images
        uint8 (N, C, H, W).
    masks
        uint8 (N, K, H, W), 0 or 1.
    sources, groups
        Where each image came from, and which near-duplicate or patient group it belongs to.
    """

    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8]
    sources: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = (len(self.images), len(self.masks), len(self.sources), len(self.groups))
        if len(set(counts)) != 1 or self.images.shape[2:] != self.masks.shape[2:]:
            raise DataError(
                f"images and masks belong together one by one and have one size; got {self.images.shape} and "
                f"{self.masks.shape} with {counts[2]} sources and {counts[3]} groups"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: npt.NDArray[np.int64]) -> "Labelled":
        """Choose images by position."""
        return Labelled(
            self.images[indices],
            self.masks[indices],
            tuple(self.sources[i] for i in indices),
            tuple(self.groups[i] for i in indices),
        )


def join(sets: Sequence[Labelled]) -> Labelled:
    """Put sets one behind the other."""
    return Labelled(
        np.concatenate([one.images for one in sets]),
        np.concatenate([one.masks for one in sets]),
        tuple(source for one in sets for source in one.sources),
        tuple(group for one in sets for group in one.groups),
    )


def pack(folder: Path, data: Labelled) -> Labelled:
    """Write a set, and open it memory-mapped. A folder that is there already is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.csv").unlink(missing_ok=True)
    np.save(folder / "images.npy", data.images)
    np.save(folder / "masks.npy", data.masks)
    with (
        replacing(folder / "index.csv") as partial,  # last and at once: a folder with an index is whole
        partial.open("w", newline="", encoding="utf-8") as table,
    ):
        csv.writer(table).writerows([("source", "group"), *zip(data.sources, data.groups, strict=True)])
    return open_packed(folder)


def is_packed(folder: Path) -> bool:
    """Whether a whole packed set is there."""
    return (folder / "index.csv").is_file()


def open_packed(folder: Path) -> Labelled:
    """Open a packed set, memory-mapped; `StateError` if it is not there or damaged."""
    try:
        with (folder / "index.csv").open(newline="", encoding="utf-8") as table:
            rows = list(csv.reader(table))[1:]
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        masks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise StateError(f"{folder} holds no whole packed data set ({error}); delete it and pack again") from None
    return Labelled(images, masks, tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def split(groups: Sequence[str], share: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split images into two parts without tearing a group apart.

    Parameters
    ----------
    groups
        The group of each image; an empty text is a group of its own.
    share
        Share of the images, in [0, 1], that the second part is to hold: groups are put there, in random order, while
        it holds less.
    seed
        Decides the order.

    Returns
    -------
    Positions of the first and of the second part, ascending.
    """
    names = np.array([group or f"\0{i}" for i, group in enumerate(groups)])
    order, members = np.unique(names, return_inverse=True)
    wanted = round(share * len(names))
    second = np.zeros(len(names), bool)
    for group in np.random.default_rng(seed).permutation(len(order)):
        if second.sum() >= wanted:
            break
        second |= members == group
    return np.flatnonzero(~second), np.flatnonzero(second)
