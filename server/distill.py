"""Distillation: one student from the pseudo-annotated images (Algorithm 1, line 11)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from consilium.common.errors import StudyError
from consilium.common.networks.build import build, count_parameters
from consilium.common.networks.student_files import student_card
from consilium.common.study import StudentSettings
from consilium.common.training.loop import History, Progress, fit


def distill(
    images: npt.NDArray[np.uint8],
    pseudo_masks: npt.NDArray[np.uint8],
    settings: StudentSettings,
    *,
    seed: int,
    kept: npt.NDArray[np.int64] | None = None,
    folder: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[nn.Module, History]:
    """Train a randomly initialised student on images and their pseudo masks.

    Parameters
    ----------
    images
        uint8 (N, C, H, W), canonical; may be memory-mapped.
    pseudo_masks
        uint8 (N, K, H, W), 255 times a probability; may be memory-mapped.
    settings
        The student's network and training.
    seed
        Decides initial weights, order and augmentation: same seed, same bytes on CPU.
    kept
        Positions of the images to train on; all where None.
    folder
        Where checkpoints go; a training that was interrupted goes on from there and ends with the same bytes.
    on_step
        Told how far training is.

    Raises
    ------
    StudyError
        If no image is kept.
    """
    chosen = np.arange(len(images)) if kept is None else kept
    if not len(chosen):
        raise StudyError("no image is left to train the student on")
    student = build(settings.network, images.shape[1], pseudo_masks.shape[1], seed)
    history = fit(
        student,
        images,
        pseudo_masks,
        settings.training,
        seed=seed,
        indices=chosen,
        folder=folder,
        on_step=on_step,
    )
    return student, history


def card_of(
    student: nn.Module, settings: StudentSettings, size: int, channels: int, labels: tuple[str, ...]
) -> dict[str, Any]:
    """What a reader of the student's file must know to use it."""
    return student_card(settings.network, channels, len(labels), size) | {
        "labels": list(labels),
        "input": "pixels / 255, stretched to size x size",
        "output": "logits; the sigmoid is the probability of each label at each pixel",
        "parameters": count_parameters(student),
    }
