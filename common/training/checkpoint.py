"""A training's state on disk: written whole or not at all, read as data only, by the training it belongs to."""

import os
import pickle
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from consilium.common.errors import StateError

FILE_NAME: Final = "checkpoint.pt"


@dataclass
class Curve:
    """The loss over the steps, about 200 points; each is the mean of the steps since the one before."""

    points: list[tuple[int, float]] = field(default_factory=list)
    pending_sum: float = 0.0
    pending_steps: int = 0


@dataclass
class TrainingState:
    """Everything a training needs to go on."""

    digest: str
    step: int
    module: dict[str, Tensor]
    optimizer: dict[str, Any]
    curve: Curve
    average: dict[str, Tensor] = field(default_factory=dict)
    """Of the weights, where they are averaged."""
    precision: dict[str, Any] = field(default_factory=dict)
    """Of 16-mixed: the factor on the loss, and how long it has held."""


def save(state: TrainingState, folder: Path) -> None:
    """Write the state; a crash at any moment leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE_NAME}.tmp"
    with temporary.open("wb") as file:
        torch.save(_as_dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE_NAME)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name itself must survive a power cut
    finally:
        os.close(directory)


def _as_dict(state: TrainingState) -> dict[str, Any]:
    """Give the state as plain containers, without copying tensors."""
    return {**vars(state), "curve": asdict(state.curve)}


def load(folder: Path, digest: str) -> TrainingState | None:
    """Read the state, if there is one.

    Raises
    ------
    StateError
        If the file is damaged or belongs to a training with other settings, seed, data or network.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        raw = torch.load(path, "cpu", weights_only=True)
        state = TrainingState(**{**raw, "curve": Curve(**raw["curve"])})
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ):
        raise StateError(f"{path} is damaged or no checkpoint of this release; remove it to train anew") from None
    if state.digest != digest:
        raise StateError(
            f"{path} belongs to a training with other settings, seed, images or network; "
            "train with those it was made with, or use another folder"
        )
    return state


def restore(state: TrainingState, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state into a network and its optimiser."""
    module.load_state_dict(state.module)
    optimizer.load_state_dict(state.optimizer)
