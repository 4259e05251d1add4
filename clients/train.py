"""Training a site's teacher on the site's own labelled images."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from consilium.clients.settings import TRAINED, SiteHome, teacher_digest, trained_result
from consilium.clients.teachers import geometry
from consilium.common import metrics
from consilium.common.datasets import folder as image_folder
from consilium.common.datasets import labelled
from consilium.common.errors import DataError
from consilium.common.identity import private_folder
from consilium.common.networks.build import build
from consilium.common.networks.student_files import save_student, student_card
from consilium.common.soft_mask import quantise
from consilium.common.training.loop import Progress, fit
from consilium.common.training.predict import predict
from consilium.common.wire import Score

LOG: Final = logging.getLogger(__name__)
_BATCH: Final = 16
_UNTESTED: Final = Score(mean=0.0, std=0.0, n=0)


def train_teacher(home: SiteHome, on_step: Callable[[Progress], None] | None = None) -> Mapping[str, Any]:
    """Train the teacher of a site, or go on with a training that was interrupted.

    Parameters
    ----------
    home
        The site. Images that are not packed yet are packed first, and some of them kept for tests.
    on_step
        Told of the progress.

    Returns
    -------
    Mapping
        ``dice-mean`` and ``dice-std`` in percent on the site's test images, ``test-images``, ``train-images``. A teacher
        that is trained already is not trained again.

    Raises
    ------
    DataError, StateError, SettingsError
        If the data cannot be used, or what is in the folder belongs to other settings.
    """
    found = trained_result(home)
    if found is not None:
        return found
    pack_data(home)
    teacher = home.settings.teacher
    train = labelled.open_packed(home.train_set)
    if train.masks.shape[1] != len(home.settings.labels):
        raise DataError(
            f"{home.train_set} has masks of {train.masks.shape[1]} labels, the settings name {len(home.settings.labels)}: "
            f"{', '.join(home.settings.labels)}"
        )
    private_folder(home.teacher)
    module = build(teacher.network, teacher.channels, len(home.settings.labels), home.settings.training.seed)
    fit(
        module,
        geometry.to_size(geometry.to_channels(train.images, teacher.channels), teacher.size),
        geometry.to_masks(train.masks, teacher.size) * np.uint8(255),
        home.settings.training,
        seed=home.settings.training.seed,
        folder=home.teacher / "training",
        on_step=on_step,
    )
    score = _test(home, module, labelled.open_packed(home.test_set)) if labelled.is_packed(home.test_set) else _UNTESTED
    result = {"train-images": len(train), "test-images": score.n, "dice-mean": score.mean, "dice-std": score.std}
    network = teacher.network.model_copy(update={"encoder_weights": "none"})  # they are part of the weights now
    card = student_card(network, teacher.channels, len(home.settings.labels), teacher.size)
    save_student(home.teacher, module, card | result)
    partial = home.teacher / f"{TRAINED}.partial"
    partial.write_text(json.dumps(result | {"settings": teacher_digest(home.settings)}), "utf-8")
    partial.replace(home.teacher / TRAINED)
    shutil.rmtree(home.teacher / "training", ignore_errors=True)
    return result


def pack_data(home: SiteHome) -> None:
    """Pack the site's images, unless that was done: no group is torn between training and test."""
    source, data = home.source, home.settings.data
    if labelled.is_packed(home.train_set) or source is None:
        return
    whole = image_folder.read(source, data.size, data.channels)
    train, test = labelled.split(whole.groups, data.test_share, data.seed)
    if not len(train):
        raise DataError(
            f"{source} holds {len(whole)} images, of which data.test-share {data.test_share} leaves none to train on"
        )
    private_folder(home.train_set.parent)
    labelled.pack(home.test_set, whole.take(test))
    labelled.pack(home.train_set, whole.take(train))  # last: its presence says that packing is done


def _test(home: SiteHome, module: Any, test: labelled.Labelled) -> Score:
    """Dice on the test images in the teacher's own geometry."""
    size, channels = home.settings.teacher.size, home.settings.teacher.channels
    values = []
    for at in range(0, len(test), _BATCH):
        part = test.take(np.arange(at, min(at + _BATCH, len(test))))
        fitted = geometry.to_size(geometry.to_channels(part.images, channels), size)
        soft = quantise(predict(module, fitted, _BATCH, home.settings.training.device))
        values.append(metrics.dice(soft, geometry.to_masks(part.masks, size)))
    return metrics.score(np.concatenate(values) if values else np.empty(0))
