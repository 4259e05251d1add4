"""Training and fine-tuning a site's teacher on the site's own labelled images."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from consilium.clients.settings import TRAINED, SiteHome, teacher_digest, trained_result
from consilium.clients.teachers import geometry
from consilium.common import metrics
from consilium.common.datasets import label_folder, labelled
from consilium.common.errors import DataError, StateError
from consilium.common.files import write_text
from consilium.common.identity.key_files import private_folder
from consilium.common.networks.build import build
from consilium.common.networks.student_files import CARD_NAME, load_student, save_student, student_card
from consilium.common.soft_mask import quantise
from consilium.common.temperature import LOGITS_CLIP
from consilium.common.training.fine_tune import FineTuned, choose_images, fine_tune
from consilium.common.training.loop import Progress, fit
from consilium.common.training.predict import predict
from consilium.common.training.settings import FineTuningSettings
from consilium.common.validation import measure
from consilium.common.wire import Score

LOG: Final = logging.getLogger(__name__)
_BATCH: Final = 16


def train_teacher(home: SiteHome, on_step: Callable[[Progress], None] | None = None) -> Mapping[str, Any]:
    """Train the teacher of a site, or go on with a training that was interrupted.

    Parameters
    ----------
    home
        The site. Images that are not packed yet are packed first, and some of them kept for tests. Of the others,
        ``data.validation-share`` are not trained on either: they tell what the teacher is worth (`Validation`).
    on_step
        Told of the progress.

    Returns
    -------
    Mapping
        ``dice-mean`` and ``dice-std`` in percent on the site's test images, ``test-images``, ``train-images``, and
        ``validation`` if images were kept for it. A teacher that is trained already is not trained again.

    Raises
    ------
    DataError, StateError, SettingsError
        If the data cannot be used, or what is in the folder belongs to other settings.
    """
    found = trained_result(home)
    if found is not None:
        return found
    teacher = home.trainable
    train, kept_out = _without_validation(_training_data(home), home)
    private_folder(home.teacher)
    module = build(teacher.network, teacher.channels, len(home.settings.labels), home.settings.training.seed)
    form = _in_teacher_form(train, home)
    fit(
        module,
        form.images,
        form.masks * np.uint8(255),
        home.settings.training,
        seed=home.settings.training.seed,
        folder=home.teacher / "training",
        on_step=on_step,
    )
    score = _test(home, module, _test_data(home))
    result: dict[str, Any] = {
        "train-images": len(train),
        "test-images": score.n,
        "dice-mean": score.mean,
        "dice-std": score.std,
    } | _validated(home, module, kept_out)
    card = student_card(teacher.network, teacher.channels, len(home.settings.labels), teacher.size)
    save_student(home.teacher, module, card | result)
    write_text(home.teacher / TRAINED, json.dumps(result | {"settings": teacher_digest(home.settings)}))
    shutil.rmtree(home.teacher / "training", ignore_errors=True)
    return result


def fine_tune_teacher(
    home: SiteHome,
    *,
    images: int | None = None,
    force: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> FineTuned:
    """Train a copy of the site's teacher on, on the site's own labelled images (Algorithm 2, line 12).

    The teacher stays as it is; the copy is kept beside it, in `SiteHome.fine_tuned_teacher`. It is measured before and after
    on the site's test images; without any, on the training images that were not chosen.

    Parameters
    ----------
    home
        The site.
    images
        How many images; ``fine-tune.images`` of the settings where None.
    force
        Replace a copy that is there already.
    on_step
        Told of the progress.

    Raises
    ------
    StateError
        If there is no trained teacher, or a fine-tuned copy is there already.
    DataError
        If the data cannot be used, or no image would be left to test on.
    """
    target, teacher = home.fine_tuned_teacher, home.trainable
    if not (home.teacher / CARD_NAME).is_file():
        raise StateError(f"{home.teacher} holds no trained teacher; train it with `consilium-site train SITE.toml`")
    if (target / CARD_NAME).is_file() and not force:
        raise StateError(f"{target} holds a fine-tuned teacher already; --force replaces it")
    module, card = load_student(home.teacher)
    (data, kept_out), test = _without_validation(_training_data(home), home), _test_data(home)
    own = home.settings.training  # the machine is that of the site's training
    training = home.settings.fine_tune.training.model_copy(update={"device": own.device, "threads": own.threads})
    count = home.settings.fine_tune.images if images is None else images
    chosen, rest = choose_images(data.groups, count, own.seed)
    held_out = test if test is not None else data.take(rest)
    if not len(held_out):
        raise DataError(
            f"all {len(data)} images would be trained on and none tested on; give a smaller number of images"
        )
    if force:
        shutil.rmtree(target, ignore_errors=True)
    private_folder(target)
    tuned = fine_tune(
        module,
        _in_teacher_form(data.take(chosen), home),
        FineTuningSettings(images=0, training=training),
        seed=own.seed,
        measure=lambda network: _test(home, network, held_out),
        folder=target / "training",
        on_step=on_step,
    )
    after = tuned.after
    result: dict[str, Any] = {
        "train-images": card.get("train-images", 0),
        "test-images": after.n,
        "dice-mean": after.mean,
        "dice-std": after.std,
    } | _validated(home, module, kept_out)
    fresh = student_card(teacher.network, teacher.channels, len(home.settings.labels), teacher.size)
    save_student(target, module, fresh | result | {"fine-tuned": tuned.facts()})
    write_text(target / TRAINED, json.dumps(result | {"settings": teacher_digest(home.settings)}))
    shutil.rmtree(target / "training", ignore_errors=True)
    return tuned


def _training_data(home: SiteHome) -> labelled.Labelled:
    """Pack the site's images if need be, and open those to train on."""
    pack_data(home)
    train = labelled.open_packed(home.train_set)
    if train.masks.shape[1] != len(home.settings.labels):
        raise DataError(
            f"{home.train_set} has masks of {train.masks.shape[1]} labels, the settings name {len(home.settings.labels)}: "
            f"{', '.join(home.settings.labels)}"
        )
    return train


def _without_validation(data: labelled.Labelled, home: SiteHome) -> tuple[labelled.Labelled, labelled.Labelled]:
    """Keep some images out of the training, whole groups; none where nothing would be left to train on."""
    settings = home.settings.data
    train, kept_out = labelled.split(data.groups, settings.validation_share, settings.seed)
    return (data.take(train), data.take(kept_out)) if len(train) else (data, data.take(train))


def _validated(home: SiteHome, module: nn.Module, data: labelled.Labelled) -> dict[str, Any]:
    """Measure a teacher on images it was not trained on, in its own geometry."""

    def probabilities(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return predict(module, images, _BATCH, home.settings.training.device)

    found = measure(probabilities, _in_teacher_form(data, home), LOGITS_CLIP) if len(data) else None
    return {"validation": found.to_card()} if found else {}


def _test_data(home: SiteHome) -> labelled.Labelled | None:
    """Open the site's test images, if it has any."""
    test = labelled.open_packed(home.test_set) if labelled.is_packed(home.test_set) else None
    return test if test is not None and len(test) else None


def _in_teacher_form(data: labelled.Labelled, home: SiteHome) -> labelled.Labelled:
    """Bring images and masks to the teacher's size and channels."""
    teacher = home.trainable
    images = geometry.to_size(geometry.to_channels(data.images, teacher.channels), teacher.size)
    return labelled.Labelled(images, geometry.to_masks(data.masks, teacher.size), data.sources, data.groups)


def pack_data(home: SiteHome) -> None:
    """Pack the site's images, unless that was done: no group is torn between training and test."""
    source, data = home.source, home.settings.data
    if labelled.is_packed(home.train_set) or source is None:
        return
    whole = label_folder.read(source, data.size, data.channels, home.settings.labels)
    train, test = labelled.split(whole.groups, data.test_share, data.seed)
    if not len(train):
        raise DataError(
            f"{source} holds {len(whole)} images, of which data.test-share {data.test_share} leaves none to train on"
        )
    private_folder(home.train_set.parent)
    labelled.pack(home.test_set, whole.take(test))
    labelled.pack(home.train_set, whole.take(train))  # last: its presence says that packing is done


def _test(home: SiteHome, module: nn.Module, test: labelled.Labelled | None) -> Score:
    """Dice on test images in the teacher's own geometry."""
    if test is None:
        return metrics.score(np.empty(0))
    values = []
    for at in range(0, len(test), _BATCH):
        part = _in_teacher_form(test.take(np.arange(at, min(at + _BATCH, len(test)))), home)
        soft = quantise(predict(module, part.images, _BATCH, home.settings.training.device))
        values.append(metrics.dice(soft, part.masks))
    return metrics.score(np.concatenate(values))
