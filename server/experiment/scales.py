"""Scales: the same experiment, cut down by an explicit table so that two cores can run it.

``full`` is the file as it stands. ``small`` keeps its data but shrinks images, networks and trainings; ``tiny`` puts phantoms
in the place of every data set, and takes a minute or two: it shows that an experiment runs, not what comes out of it.
What a file itself says under ``[scale.small]`` or ``[scale.tiny]`` is laid over the table.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from consilium.common.networks.settings import OWN_NETWORKS, SMP_PREFIX
from consilium.common.training.settings import TrainingSettings

Name = Literal["full", "small", "tiny"]


@dataclass(frozen=True)
class Scale:
    """What takes the place of an experiment's own values.

    Attributes
    ----------
    size
        Height and width of images in pixels.
    limit
        Most images of each data set.
    phantoms
        So many phantoms in the place of each data set, before part and limit; 0 keeps the data.
    width
        Of networks without an encoder (SDU-Net: 16), and of decoders.
    decoder_width
        Of networks with an encoder.
    encoders
        Encoder by network; random weights. ``smp:ARCH`` gets that of ``smp``.
    beta
        Gray-level entropy in bits. Teachers trained for so short a time are fuzzy where they are right, too: at the paper's
        2.5 hardly an image would be left.
    teacher, student, fine_tune
        Trainings.
    labelled
        Most images to fine-tune with.
    """

    size: int
    limit: int
    phantoms: int
    width: int
    decoder_width: int
    encoders: Mapping[str, str]
    beta: float
    teacher: TrainingSettings
    student: TrainingSettings
    fine_tune: TrainingSettings
    labelled: int


def _training(budget: int, rate: float, **other: Any) -> TrainingSettings:
    return TrainingSettings(image_budget=budget, batch=8, learning_rate=rate, threads=1, **other)


SCALES: Final[Mapping[str, Scale]] = MappingProxyType(
    {
        "small": Scale(
            size=128,
            limit=500,
            phantoms=0,
            width=8,
            decoder_width=16,
            encoders={
                "deeplabv3plus": "tu-test_efficientnet",
                "panoptic-fpn": "tu-test_byobnet",
                "smp": "tu-test_efficientnet",
            },
            beta=6.5,
            teacher=_training(3200, 2e-3),
            student=_training(6400, 3e-3, schedule="cosine", augment=False),
            fine_tune=_training(800, 3e-4),
            labelled=50,
        ),
        "tiny": Scale(
            size=48,
            limit=24,
            phantoms=60,
            width=4,
            decoder_width=8,
            encoders={
                "deeplabv3plus": "tu-test_efficientnet",
                "panoptic-fpn": "tu-test_efficientnet",
                "smp": "tu-test_efficientnet",
            },
            beta=8.0,
            teacher=_training(480, 5e-3, augment=False),
            student=_training(32, 5e-3, augment=False),
            fine_tune=_training(8, 1e-3, augment=False),
            labelled=8,
        ),
    }
)

PHANTOM_OF: Final[Mapping[str, tuple[str, float]]] = MappingProxyType(
    {
        "busi": ("east", 0.0),
        "bus-bra": ("north", 0.0),
        "ddti": ("south", 0.0),
        "tn3k": ("south", 0.0),
        "nerve": ("west", 0.3),
        "isic2019": ("south", 0.5),
        "isic-segmentation": ("south", 0.0),
        "voc2012": ("west", 0.7),
        "dicom": ("west", 0.3),
        "folder": ("north", 0.0),
        "images": ("west", 0.5),
    }
)
"""At scale tiny: whose phantoms stand for a data set of the registry, and the part of them without a lesion."""


def applied(document: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """Give an experiment's document, complete and valid, at a scale."""
    made = copy.deepcopy(dict(document))
    made["image"]["size"] = scale.size
    made["exclusion"]["beta"] = scale.beta
    for data in made["data"].values():
        data["limit"] = min(data["limit"] or scale.limit, scale.limit)
        if scale.phantoms:
            become_phantoms(data, scale)
    for teacher in made["teachers"].values():
        shrink(teacher["network"], scale)
        teacher["training"] = _cut(teacher["training"], scale.teacher)
    made["transferal"] = {name: {} for name in made["transferal"]}
    for student in made["students"].values():
        shrink(student["network"], scale)
        student["training"] = _cut(student["training"], scale.student)
    for tuning in made["fine-tune"].values():
        tuning["images"] = min(tuning["images"], scale.labelled)
        tuning["training"] = _cut(tuning["training"], scale.fine_tune)
        if tuning["scratch"] is not None:
            tuning["scratch"] = _cut(tuning["scratch"], scale.fine_tune)
    return made


def merged(document: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one document over another, table by table; lists are replaced whole."""
    made = dict(document)
    for key, value in over.items():
        below = made.get(key)
        made[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return made


def _cut(training: Mapping[str, Any], scale: TrainingSettings) -> dict[str, Any]:
    return scale.model_dump(mode="json", by_alias=True) | {"device": training["device"]}


def shrink(network: dict[str, Any], scale: Scale) -> None:
    """Make a network's document, whole, that of a scale, in place."""
    name = network["name"]
    if name in OWN_NETWORKS:
        network["width"] = 16 if name == "sdu-net" else scale.width
        return
    network["encoder"] = scale.encoders["smp" if name.startswith(SMP_PREFIX) else name]
    network["encoder-weights"] = network["weights"] = "none"
    if not name.startswith(SMP_PREFIX):
        network["width"] = scale.decoder_width


def become_phantoms(data: dict[str, Any], scale: Scale) -> None:
    """Put a scale's phantoms in the place of a data set, in its document."""
    if data["data-set"] == "phantoms":
        data["count"] = min(data["count"], scale.phantoms)
        return
    hospital, lesion_free = PHANTOM_OF[data["data-set"]]
    place = 1000 * (1 + list(PHANTOM_OF).index(data["data-set"]))  # data sets share no phantom, parts of one do
    data |= {
        "data-set": "phantoms",
        "path": "",
        "hospital": hospital,
        "count": scale.phantoms,
        "first": place,
        "lesion-free": lesion_free,
    }
