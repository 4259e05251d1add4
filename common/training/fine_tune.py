"""Fine-tuning: Algorithm 2, line 12. A network that is trained already is trained on, on a few labelled images.

It may come out worse: fifty images are few, and their hospital may not be that of the next patient. So the network is always
measured before and after, on images it is not fine-tuned on, and both scores are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError
from consilium.common.metrics import dice, score
from consilium.common.soft_mask import quantise
from consilium.common.training.loop import History, Progress, fit
from consilium.common.training.predict import predict
from consilium.common.training.settings import FineTuningSettings
from consilium.common.wire import Score

_BATCH: Final = 16

Measure = Callable[[nn.Module], Score]
"""Gives the Dice of a network on images that it is not fine-tuned on."""


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning did.

    Attributes
    ----------
    chosen, rest
        Positions of the images it was trained on, and of the others, ascending.
    before, after
        Dice on images that are not among the chosen.
    history
        How the training went.
    """

    chosen: npt.NDArray[np.int64]
    rest: npt.NDArray[np.int64]
    before: Score
    after: Score
    history: History

    @property
    def better(self) -> Literal["before", "after"]:
        """Which of the two to use; where they are equal, and where nothing was measured, the one from before."""
        return "after" if self.after.mean > self.before.mean else "before"

    def facts(self) -> dict[str, Any]:
        """Give the result for a card: plain values."""
        return {
            "images": len(self.chosen),
            "before": self.before.model_dump(),
            "after": self.after.model_dump(),
            "better": self.better,
        }


def fine_tune(
    network: nn.Module,
    data: Labelled,
    settings: FineTuningSettings,
    *,
    seed: int,
    channels: Sequence[int] | None = None,
    measure: Measure | None = None,
    folder: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> FineTuned:
    """Train a network on, in place, and measure it before and after.

    Parameters
    ----------
    network
        Maps images (n, C, H, W) in [0, 1] to logits (n, K, H, W).
    data
        Labelled images in the network's form; `settings.images` of them are chosen to train on.
    settings
        How many, and how.
    seed
        Decides which images are chosen, their order and augmentation.
    channels
        Which of the network's K masks those of `data` are, where it has no ground truth of some; all where None. The loss
        leaves the others out.
    measure
        How to measure the network; where None, by its Dice on the images of `data` that were not chosen.
    folder
        For the checkpoint; a fine-tuning that was interrupted goes on from there.
    on_step
        Told how far training is.

    Raises
    ------
    DataError
        If no image can be chosen; see `choose_images`.
    """
    chosen, rest = choose_images(data.groups, settings.images, seed)
    part = network if channels is None else _Channels(network, channels)

    def measured() -> Score:
        return measure(network) if measure else dice_on(data, rest, settings.training.device)(part)

    before = measured()
    few = data.take(chosen)
    history = fit(
        part,
        few.images,
        few.masks * np.uint8(255),
        settings.training,
        seed=seed,
        folder=folder,
        on_step=on_step,
    )
    return FineTuned(chosen, rest, before, measured(), history)


def dice_on(data: Labelled, indices: npt.NDArray[np.int64], device: str = "auto") -> Measure:
    """Measure a network by its Dice on some of the images of a set, a batch at a time."""

    def measure(network: nn.Module) -> Score:
        values = [np.empty(0)]
        for at in range(0, len(indices), _BATCH):
            part = data.take(indices[at : at + _BATCH])
            values.append(dice(quantise(predict(network, part.images, _BATCH, device)), part.masks))
        return score(np.concatenate(values))

    return measure


class _Channels(nn.Module):
    """Some of a network's masks."""

    def __init__(self, network: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.channels = list(channels)
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits[:, self.channels]


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
