"""Distillation: one student from the pseudo-annotated images (Algorithm 1, line 11), or a second one after it.

With two generations the student is a noisy student: the first one masks the kept images again, its masks are averaged with
the pseudo masks, and a student with fresh weights learns from these. What one network made of all images together corrects
masks that were made one by one; the fresh start keeps it from holding on to its own errors.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from consilium.common.errors import StudyError
from consilium.common.networks.build import build, count_parameters
from consilium.common.networks.student_files import student_card
from consilium.common.soft_mask import SoftMasks, quantise
from consilium.common.study import StudentSettings
from consilium.common.training.loop import History, Progress, fit
from consilium.common.training.predict import predict
from consilium.server.fusion import weighted_mean
from consilium.server.weighting import image_weights

CHUNK: Final = 128
"""Images masked again at a time; bounds memory."""
_GENERATION_SEEDS: Final = 2**31
"""Between the seeds of two generations: above every seed of a study."""


def distill(
    images: npt.NDArray[np.uint8],
    pseudo_masks: npt.NDArray[np.uint8],
    settings: StudentSettings,
    *,
    seed: int,
    kept: npt.NDArray[np.int64] | None = None,
    agreement: npt.NDArray[np.float64] | None = None,
    folder: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[nn.Module, History]:
    """Train a randomly initialised student on images and their pseudo masks, as many generations as the settings say.

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
    agreement
        How far the sites agree about each image, float64 (N,), for image weights by it; see `weighting.agreement_weights`.
    folder
        Where checkpoints go; a training that was interrupted goes on from there and ends with the same bytes. The second
        generation keeps its own, and its masks, in a folder within.
    on_step
        Told how far training is, all generations together.

    Returns
    -------
    tuple
        The last generation's student, on the CPU, and the history of all, one behind the other.

    Raises
    ------
    StudyError
        If no image is kept, or all of them would weigh nothing.
    """
    chosen = np.arange(len(images)) if kept is None else kept
    if not len(chosen):
        raise StudyError("no image is left to train the student on")
    steps = settings.training.steps(len(chosen))
    student, history = _generation(
        images, pseudo_masks, settings, seed, chosen, agreement, folder, _after(on_step, 0, settings, steps)
    )
    if settings.generations == 1:
        return student, history
    second = folder / "second-generation" if folder else None
    masks = mask_again(student, images, pseudo_masks, chosen, second, settings.training.device)
    told = _after(on_step, 1, settings, steps)
    student, later = _generation(images, masks, settings, seed + _GENERATION_SEEDS, chosen, agreement, second, told)
    return student, _joined(history, later)


def mask_again(
    student: nn.Module,
    images: npt.NDArray[np.uint8],
    pseudo_masks: SoftMasks,
    kept: npt.NDArray[np.int64],
    folder: Path | None,
    device: str = "auto",
) -> SoftMasks:
    """Average a student's own masks of the kept images with the pseudo masks, with equal weights.

    Parameters
    ----------
    student
        The network; its mode is as before afterwards.
    images, pseudo_masks, kept
        As for `distill`.
    folder
        Where the masks go, in a file; masks found there are taken as they are. They are kept in memory where None.
    device
        Where the student computes.

    Returns
    -------
    uint8 (N, K, H, W), memory-mapped if there is a folder; 0 where an image is not kept.
    """
    if folder is None:
        masks: SoftMasks = np.zeros(pseudo_masks.shape, np.uint8)
        _fill(masks, student, images, pseudo_masks, kept, device)
        return masks
    path = folder / "masks.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "masks.partial"
        mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=pseudo_masks.shape)
        _fill(mapped, student, images, pseudo_masks, kept, device)
        mapped.flush()
        partial.replace(path)
    found: SoftMasks = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _fill(
    masks: SoftMasks,
    student: nn.Module,
    images: npt.NDArray[np.uint8],
    pseudo_masks: SoftMasks,
    kept: npt.NDArray[np.int64],
    device: str,
) -> None:
    for start in range(0, len(kept), CHUNK):
        part = kept[start : start + CHUNK]
        state = weighted_mean.init((len(part), *pseudo_masks.shape[1:]))
        weighted_mean.fold(state, np.asarray(pseudo_masks[part]), 1)
        weighted_mean.fold(state, quantise(predict(student, images[part], device=device)), 1)
        masks[part] = weighted_mean.finish(state)


def _generation(
    images: npt.NDArray[np.uint8],
    masks: SoftMasks,
    settings: StudentSettings,
    seed: int,
    kept: npt.NDArray[np.int64],
    agreement: npt.NDArray[np.float64] | None,
    folder: Path | None,
    on_step: Callable[[Progress], None] | None,
) -> tuple[nn.Module, History]:
    weights = image_weights(settings.image_weights, masks, agreement)
    if weights is not None and not weights[kept].any():
        raise StudyError(
            f'image-weights = "{settings.image_weights}" needs pseudo masks with target pixels; none of the {len(kept)} kept '
            "images has any. Start a study with equal weights, or with images the teachers know"
        )
    student = build(settings.network, images.shape[1], masks.shape[1], seed)
    history = fit(
        student,
        images,
        masks,
        settings.training,
        seed=seed,
        indices=kept,
        image_weights=weights,
        hard=settings.targets == "hard",
        folder=folder,
        on_step=on_step,
    )
    return student, history


def _after(
    on_step: Callable[[Progress], None] | None, before: int, settings: StudentSettings, steps: int
) -> Callable[[Progress], None] | None:
    """Tell the progress of one generation as part of all, `before` of which are done."""
    if on_step is None or settings.generations == 1:
        return on_step
    done = before * steps

    def tell(at: Progress) -> None:
        seen = at.images_seen + done * settings.training.batch
        on_step(replace(at, step=at.step + done, steps=settings.generations * steps, images_seen=seen))

    return tell


def _joined(first: History, second: History) -> History:
    """Give the history of two trainings, one behind the other."""
    curve = first.curve + tuple((step + first.steps, loss) for step, loss in second.curve)
    resumed_at = first.steps + second.resumed_at if first.resumed_at == first.steps else first.resumed_at
    return History(curve, first.steps + second.steps, resumed_at, first.seconds + second.seconds)


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
