"""A teacher trained by this package: a folder with weights and card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.clients.teachers import geometry
from consilium.clients.teachers.settings import CheckpointSettings
from consilium.common.errors import StateError
from consilium.common.networks.student_files import CARD_NAME, load_student
from consilium.common.training.device import choose_device
from consilium.common.training.predict import predict

_PUBLIC_NETWORK: Final = ("name", "encoder", "width", "norm")
_PUBLIC: Final = (
    "size",
    "in_channels",
    "classes",
    "test-images",
    "train-images",
    "dice-mean",
    "dice-std",
    "validation",
)


class CheckpointTeacher:
    """What `train_teacher` left in a folder, ready on the device.

    On a CPU images are computed one by one: a batch's size decides the order of additions inside some kernels, and a soft mask
    must not depend on which images it was asked together with.

    Parameters
    ----------
    folder
        Of the trained network.
    settings
        What the site says of its teacher; size and channels must be those of the folder.
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    StateError
        If the folder holds no trained network, or one of another geometry.
    DataError
        If it is damaged.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, device: str = "auto") -> None:
        if not (folder / CARD_NAME).is_file():
            raise StateError(f"{folder} holds no trained teacher; train it with `consilium-site train SITE.toml`")
        module, card = load_student(folder)
        geometry_here = (card["size"], card["in_channels"])
        if geometry_here != (settings.size, settings.channels):
            raise StateError(
                f"{folder} holds a teacher of size and channels {geometry_here}, the settings say "
                f"{(settings.size, settings.channels)}; mend teacher.size and teacher.channels, or train again"
            )
        where = choose_device(device)
        self._module: Final = module.to(where).eval()
        self._device: Final = where.type
        self._batch: Final = 1 if where.type == "cpu" else 16
        self._settings: Final = settings
        self.card: Final[Mapping[str, object]] = public_card(card)

    def predict(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Segment images; see `Teacher`."""
        fitted = geometry.to_size(geometry.to_channels(images, self._settings.channels), self._settings.size)
        return geometry.to_grid(predict(self._module, fitted, self._batch, self._device), images.shape[-1])


def public_card(card: Mapping[str, Any]) -> dict[str, object]:
    """The part of a card that a coordinator may see; a path to an encoder's weights, for one, is not.

    That it is a study's student, fine-tuned here, may be told, but not of which study: it may have been another coordinator's.
    """
    network = {key: card["architecture"][key] for key in _PUBLIC_NETWORK if key in card["architecture"]}
    tuned = {"fine-tuned-student": True} if "fine_tuned" in card else {}
    return {"format": "checkpoint", "network": network} | tuned | {key: card[key] for key in _PUBLIC if key in card}
