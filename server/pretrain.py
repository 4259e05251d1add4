"""Pretraining: the student's network sees synthetic ultrasound, with exact masks, before it sees a pseudo mask.

Where no pretrained encoder is to be had, this is a start that needs no hub, no licence and no patient: phantoms of four
imaginary hospitals. It is for ultrasound; whether it helps on other images is to be measured.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from consilium.common.datasets import phantoms
from consilium.common.datasets.phantoms.hospitals import HOSPITALS
from consilium.common.errors import StateError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import WEIGHTS_NAME, save_student, student_card
from consilium.common.study import Study
from consilium.common.training.loop import Progress, fit
from consilium.common.training.settings import TrainingSettings

CHECKPOINTS: Final = "checkpoints"
_SEED_APART: Final = 2**31
"""Added to a study's seed: no phantom of a simulation is among these."""

Shape = tuple[int, int, int]
"""Channels C of the images, labels K, and the size."""


def pretrain(
    study: Study,
    folder: Path,
    *,
    images: int,
    budget: int,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a study's student on synthetic ultrasound, with the study's own training but for its length.

    Interrupted and called again, it goes on.

    Parameters
    ----------
    study
        Its seed, image, labels and student count.
    folder
        Where the weights and their card go.
    images
        How many are made, of all hospitals together; every label's mask is the lesion.
    budget
        Images seen in all, repeats counted.
    on_step
        Told how far training is.

    Returns
    -------
    Path
        The file of weights, for ``student.network.weights``.

    Raises
    ------
    StateError
        If weights are there already.
    SettingsError
        If the study's images are of a size that phantoms are not made at.
    """
    weights, network = folder / WEIGHTS_NAME, study.student.network
    if weights.exists():
        raise StateError(f"{weights} is there already; name it in the study, or give another folder")
    shape = (study.image.channels, len(study.labels), study.image.size)
    training = of_a_start(study.student.training, budget)
    module = on_phantoms(network, training, images, shape, study.seed, folder, on_step)
    card = student_card(network, *shape) | {"pretrained-on": {"phantoms": images, "images-seen": budget}}
    save_student(folder, module, card)
    shutil.rmtree(folder / CHECKPOINTS)
    return weights


def of_a_start(training: TrainingSettings, budget: int) -> TrainingSettings:
    """Give the training of what a student begins with: its own, but another length, and augmented to its end.

    That an end sees images as they are suits a network that is used on such images; this one is trained on, on others.
    """
    return training.model_copy(update={"epochs": 0, "image_budget": budget, "augment_until": 1.0})


def on_phantoms(
    network: NetworkSettings,
    training: TrainingSettings,
    images: int,
    shape: Shape,
    seed: int,
    folder: Path,
    on_step: Callable[[Progress], None] | None = None,
) -> nn.Module:
    """Train a fresh network on so many phantoms; its checkpoints lie in the folder."""
    pixels, masks = synthetic(images, shape, seed)
    module = build(network, *shape[:2], seed)
    fit(module, pixels, masks, training, seed=seed, folder=folder / CHECKPOINTS, on_step=on_step)
    return module


def synthetic(count: int, shape: Shape, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Make images, uint8 (n, C, H, W), and their masks, uint8 (n, K, H, W), 0 or 255; hospital by hospital."""
    channels, labels, size = shape
    shares = [len(part) for part in np.array_split(np.arange(count), len(HOSPITALS))]
    made = [
        phantoms.make(hospital, share, size, seed + _SEED_APART, labels=["lesion"] * labels)
        for hospital, share in zip(HOSPITALS, shares, strict=True)
    ]
    pixels, masks = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return np.repeat(pixels, channels, axis=1), masks * np.uint8(255)
