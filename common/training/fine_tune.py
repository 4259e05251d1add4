"""Fine-tuning: Algorithm 2, line 12. A network that is trained already is trained on, on a few labelled images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError


def choose_images(groups: Sequence[str], count: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose the images to fine-tune on, without tearing a group apart.

    Parameters
    ----------
    groups
        The group of each image (patient, near duplicates); an empty text is a group of its own.
    count
        Most images to choose; 0 means all. Groups are taken whole, in random order, each that still fits: without groups of
        several images that is `count` images, if there are so many.
    seed
        Decides the order.

    Returns
    -------
    Positions of the chosen images and of the rest, ascending.

    Raises
    ------
    DataError
        If there is no image, or every group is larger than `count`.
    """
    if not len(groups):
        raise DataError("fine-tuning needs one labelled image or more; there is none")
    names = np.array([group or f"\0{i}" for i, group in enumerate(groups)])
    order, members = np.unique(names, return_inverse=True)
    sizes = np.bincount(members, minlength=len(order))
    chosen = np.zeros(len(names), bool)
    left = count or len(names)
    for group in np.random.default_rng(seed).permutation(len(order)):
        if sizes[group] <= left:
            chosen |= members == group
            left -= int(sizes[group])
    if not chosen.any():
        raise DataError(
            f"groups are not torn apart, and the smallest one here has {sizes.min()} images; fine-tune on at least so many, "
            f"not on {count}"
        )
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
