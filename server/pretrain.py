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

from consilium.common.datasets import phantoms
from consilium.common.datasets.phantoms.hospitals import HOSPITALS
from consilium.common.errors import StateError
from consilium.common.networks.build import build
from consilium.common.networks.student_files import WEIGHTS_NAME, save_student, student_card
from consilium.common.study import Study
from consilium.common.training.loop import Progress, fit

IMAGES: Final = 1600
BUDGET: Final = 16_000
_SEED_APART: Final = 2**31
"""Added to a study's seed: no phantom of a simulation is among these."""


def pretrain(
    study: Study,
    folder: Path,
    *,
    images: int = IMAGES,
    budget: int = BUDGET,
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
    size, channels, labels = study.image.size, study.image.channels, len(study.labels)
    pixels, masks = synthetic(images, size=size, channels=channels, labels=labels, seed=study.seed)
    module = build(network, channels, labels, study.seed)
    training = study.student.training.model_copy(update={"epochs": 0, "image_budget": budget})
    checkpoints = folder / "checkpoints"
    fit(module, pixels, masks, training, seed=study.seed, folder=checkpoints, on_step=on_step)
    card = student_card(network.from_scratch, channels, labels, size)
    save_student(folder, module, card | {"pretrained-on": {"phantoms": images, "images-seen": budget}})
    shutil.rmtree(checkpoints)
    return weights


def synthetic(
    count: int, *, size: int, channels: int, labels: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Make images, uint8 (n, C, H, W), and their masks, uint8 (n, K, H, W), 0 or 255; hospital by hospital."""
    shares = [len(part) for part in np.array_split(np.arange(count), len(HOSPITALS))]
    made = [
        phantoms.make(hospital, share, size, seed + _SEED_APART, labels=["lesion"] * labels)
        for hospital, share in zip(HOSPITALS, shares, strict=True)
    ]
    pixels, masks = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return np.repeat(pixels, channels, axis=1), masks * np.uint8(255)
