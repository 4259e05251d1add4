"""Fine-tuning at the coordinator: the student is trained on, on a small labelled set of the task it is wanted for.

Algorithm 2, where the target task's data set lies at the coordinator and not at a site.
"""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from consilium.common.datasets import label_folder
from consilium.common.errors import DataError, StateError
from consilium.common.networks import student_files
from consilium.common.settings import parse
from consilium.common.study import FineTuneSettings
from consilium.common.training.fine_tune import FineTuned, choose_images, fine_tune
from consilium.common.training.loop import Progress

FINE_TUNED: Final = "fine_tuned"


def fine_tune_student(
    folder: Path,
    data: Path,
    *,
    images: int | None = None,
    force: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[FineTuned, Path]:
    """Fine-tune a copy of a student on labelled images, and test both on those that were not chosen.

    Recipe and seed are those of the study that the student's card names: its ``fine-tune`` and ``seed``. The result lies in
    ``fine_tuned/`` in the student's folder: a student's files, and ``images.csv``, which says what each image served for.

    Parameters
    ----------
    folder
        A run folder, or a student's.
    data
        Labelled images of the student's labels, as `label_folder` reads them.
    images
        How many to train on; ``fine-tune.images`` where None.
    force
        Replace a fine-tuned student that is there already.
    on_step
        Told how far training is.

    Returns
    -------
    What it did, and the fine-tuned student's folder.

    Raises
    ------
    StateError
        If a fine-tuned student is there already.
    DataError
        If there is no student, the data cannot be read, or no image would be left to test on.
    """
    source = folder if (folder / student_files.CARD_NAME).is_file() else folder / "student"
    target = source / FINE_TUNED
    if (target / student_files.CARD_NAME).is_file() and not force:
        raise StateError(f"{target} holds a fine-tuned student already; --force replaces it")
    network, card = student_files.load_student(source)
    settings, seed = _recipe(card, str(source))
    settings = settings if images is None else settings.model_copy(update={"images": images})
    labels = card.get("labels", ["lesion"])
    if len(labels) != card["classes"]:
        raise DataError(f"{source}: the card names {len(labels)} labels for {card['classes']} masks; name each in it")
    labelled = label_folder.read(data, card["size"], card["in_channels"], labels)
    _, rest = choose_images(labelled.groups, settings.images, seed)
    if not len(rest):
        raise DataError(
            f"{data} holds {len(labelled)} labelled images; all would be trained on and none tested on. Give fewer with "
            "--images, or more labelled images"
        )
    if force:
        shutil.rmtree(target, ignore_errors=True)
    tuned = fine_tune(network, labelled, settings, seed=seed, folder=target / "training", on_step=on_step)
    used = np.isin(np.arange(len(labelled)), tuned.chosen)
    with (target / "images.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(("source", "used_for"))
        rows.writerows((name, "training" if at else "test") for name, at in zip(labelled.sources, used, strict=True))
    student_files.export_onnx(network, target / "student.onnx", card["in_channels"], card["size"])
    student_files.save_student(target, network, card | {"fine_tuned": tuned.facts()})  # last: the card says it is whole
    shutil.rmtree(target / "training", ignore_errors=True)
    return tuned, target


def _recipe(card: dict[str, Any], origin: str) -> tuple[FineTuneSettings, int]:
    """Read how to fine-tune, and the seed, from a card; the paper's way where it names no study."""
    study = card.get("settings", {})
    return parse(FineTuneSettings, study.get("fine-tune", {}), f"{origin}: card"), int(study.get("seed", 0))
