"""The student at a site: opened from the wire with suspicion, evaluated, fine-tuned."""

import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from torch import nn

from consilium.clients.teachers import geometry
from consilium.common import metrics
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import ConsiliumError, ErrorCode, WireError
from consilium.common.labels import LabelView
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.weights import load_weights
from consilium.common.soft_mask import quantise
from consilium.common.study import Study
from consilium.common.training.predict import predict

BATCH: Final = 16
_PLAIN: Final = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+")


def read_card(text: str, study: Study) -> dict[str, Any]:
    """Read a student's card: `WireError` ``bad-student`` unless it is of a student that this study can have."""
    wanted = {"in_channels": study.image.channels, "classes": len(study.labels), "size": study.image.size}
    try:
        card = dict(json.loads(text))
        network = NetworkSettings.model_validate(card["architecture"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(ErrorCode.BAD_STUDENT, f"card: {type(error).__name__}") from None
    if {key: card.get(key) for key in wanted} != wanted:
        raise WireError(ErrorCode.BAD_STUDENT, f"card: the study's student has {wanted}")
    # Weights come with the message. A path or a hub's name in the card would have this machine open or fetch it.
    if not set(network.encoder) <= _PLAIN or not set(network.name.removeprefix("smp:")) <= _PLAIN:
        raise WireError(ErrorCode.BAD_STUDENT, "card: an encoder is named, not fetched")
    return card | {"architecture": network.from_scratch.model_dump(by_alias=True)}


def open_student(card: dict[str, Any], weights: bytes) -> nn.Module:
    """Build the student of a card from `read_card`; `WireError` ``bad-student`` if the weights do not fit it."""
    try:
        network = NetworkSettings.model_validate(card["architecture"])
        module = build(network, card["in_channels"], card["classes"], seed=0)
        load_weights(module, weights)
    except (ConsiliumError, ValidationError, ValueError, RuntimeError, KeyError) as error:
        raise WireError(ErrorCode.BAD_STUDENT, f"{type(error).__name__}: {error}") from None
    return module


def in_study_form(data: Labelled, study: Study, view: LabelView) -> Labelled:
    """Bring a site's images and masks to the study's canonical form.

    Parameters
    ----------
    data
        Images (n, C, H, W) and masks (n, K, H, W) as the site packed them.
    study
        Whose size and channels they get.
    view
        Which of the study's labels the site knows: the masks are of those, in the study's order.
    """
    images = geometry.to_size(geometry.to_channels(data.images, study.image.channels), study.image.size)
    masks = geometry.to_masks(view.take(data.masks), study.image.size)
    return Labelled(images, masks, data.sources, data.groups)


def student_dice(
    module: nn.Module, data: Labelled, study: Study, view: LabelView, device: str
) -> npt.NDArray[np.float64]:
    """Dice, in [0, 1], of a student on each of a site's images, its masks quantised as on the wire.

    Only the labels that the site knows count: of the others it has no ground truth.
    """
    values = []
    for at in range(0, len(data), BATCH):
        part = in_study_form(data.take(np.arange(at, min(at + BATCH, len(data)))), study, view)
        soft = quantise(predict(module, part.images, BATCH, device))
        values.append(metrics.dice(soft[:, view.known], part.masks))
    return np.concatenate(values) if values else np.empty(0)
