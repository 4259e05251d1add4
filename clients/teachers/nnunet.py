"""A teacher that is a results folder of nnU-Net v2, asked through nnU-Net's own predictor.

Its normalisation, windows, mirror images and mean over folds are used. Its resampling is not: our images have no spacing, and
`size` says what they are stretched to. Nothing but tensors and numbers is unpickled.
"""

import io
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from consilium.clients.teachers.fitted import Ask, Numbers
from consilium.clients.teachers.settings import NnunetSettings
from consilium.common.errors import SettingsError, StateError
from consilium.common.torchvision_ops import declare_missing_operators
from consilium.common.training.device import choose_device

_NO_SPACING: Final = 999.0  # nnU-Net's own, of the axis that a 2-D image lacks
_FORCE: Final = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_SCALAR: Final[Any] = np.float64().__reduce__()[0]
_NUMBERS: Final[list[Any]] = [  # the losses and scores in a checkpoint's log
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]

Labels = Mapping[str, int | Sequence[int]]


class _Dataset(BaseModel):
    """What ``dataset.json`` says of input and output."""

    labels: dict[str, int | list[int]]
    channel_names: dict[str, str] = Field(validation_alias=AliasChoices("channel_names", "modality"))


def with_channels(settings: NnunetSettings, folder: Path, labels: Sequence[str]) -> NnunetSettings:
    """Say which channel shows which of the site's labels, where that is left to their names.

    Raises
    ------
    SettingsError
        If nnU-Net has no label of such a name.
    StateError
        If there is no ``dataset.json`` of nnU-Net v2.
    """
    if settings.output_channels:
        return settings
    path = folder / settings.folder / "dataset.json"
    known = channels(_dataset(path).labels)
    strangers = [label for label in labels if label not in known]
    if strangers:
        raise SettingsError(
            f"labels: {', '.join(strangers)} {'is' if len(strangers) == 1 else 'are'} not among those of {path}: "
            + ", ".join(f"{name} (channel {channel})" for name, channel in known.items())
            + ". Call the site's labels so, or say in teacher.output-channels which channel shows which"
        )
    return settings.model_copy(update={"output_channels": tuple(known[label] for label in labels)})


def channels(labels: Labels) -> dict[str, int]:
    """Tell which of a network's channels shows what, by names as a site may write them: lower case, with hyphens.

    With regions (a label of several numbers) each label but the background has a channel, in their order. Else each number
    has one, the background's 0 too, and they exclude each other.
    """
    meant = {name: [value] if isinstance(value, int) else list(value) for name, value in labels.items()}
    shown = {_spelled(name): numbers for name, numbers in meant.items() if name not in ("background", "ignore")}
    if any(len(numbers) > 1 for numbers in shown.values()):
        return {name: channel for channel, name in enumerate(shown)}
    ordered = sorted({0, *(numbers[0] for numbers in shown.values())})
    return {name: ordered.index(numbers[0]) for name, numbers in shown.items()}


def _spelled(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def opened(settings: NnunetSettings, folder: Path, device: str) -> Ask:
    """Open the predictor with all its folds.

    Raises
    ------
    SettingsError
        If nnU-Net is not installed, the network is one for volumes, or takes another number of channels.
    StateError
        If a file is missing or damaged, or a checkpoint holds more than tensors and numbers.
    """
    results = folder / settings.folder
    taken = len(_dataset(results / "dataset.json").channel_names)
    if taken != settings.channels:
        raise SettingsError(f"teacher.channels is {settings.channels}; by {results / 'dataset.json'} it is {taken}")
    if not (results / "plans.json").is_file():
        raise StateError(
            f"teacher.folder: there is no file {results / 'plans.json'}; name a results folder of nnU-Net v2"
        )
    checkpoints = settings.checkpoints(folder)
    _check_there(results, checkpoints)
    for path in checkpoints:
        _check_network(path)
    where = choose_device(device)
    declare_missing_operators()  # on the way to a trainer's class nnU-Net imports others, and with them timm
    try:
        with _quietly():
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    except ImportError as error:
        raise SettingsError(
            f'teacher.kind = "nnunet" needs nnU-Net: pip install "consilium[nnunet]" (or pip install nnunetv2): {error}'
        ) from None
    try:
        with _quietly(), _numbers_only():
            predictor = nnUNetPredictor(use_mirroring=settings.mirrored, device=where, allow_tqdm=False)
            folds = tuple(path.parent.name.removeprefix("fold_") for path in checkpoints)
            predictor.initialize_from_trained_model_folder(str(results), folds, settings.checkpoint)
    except Exception as error:  # of whatever kind
        raise StateError(f"{results}: nnU-Net cannot open it: {type(error).__name__}: {error}") from error
    return _asked(predictor)


def _asked(predictor: Any) -> Ask:
    plans, lock = predictor.plans_manager, threading.Lock()
    spacing = (_NO_SPACING, *predictor.configuration_manager.spacing)  # the plans' own, so that nothing is resampled
    forward, backward = plans.transpose_forward, plans.transpose_backward

    def ask(images: Numbers) -> Numbers:
        answers = []
        for image in images:
            volume = image[:, None].transpose(0, *(axis + 1 for axis in backward))  # undone by nnU-Net
            told = {"spacing": [spacing[axis] for axis in backward]}
            with lock, warnings.catch_warnings():  # the folds take turns in one network
                warnings.simplefilter("ignore")
                answer = predictor.predict_single_npy_array(volume, told, None, None, True)[1]
            answers.append(answer.transpose(0, *(axis + 1 for axis in forward))[:, 0])
        return np.stack(answers)

    return ask


def _dataset(path: Path) -> _Dataset:
    if not path.is_file():
        raise StateError(f"teacher.folder: there is no file {path}; name a results folder of nnU-Net v2")
    try:
        return _Dataset.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StateError(
            f"{path} is no dataset.json of nnU-Net v2: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        ) from None


def _check_there(results: Path, checkpoints: Sequence[Path]) -> None:
    lacking = [path for path in checkpoints if not path.is_file()]
    if lacking:
        found = sorted(path.relative_to(results).as_posix() for path in results.glob("fold_*/*.pth"))
        raise StateError(
            f"teacher.folds, teacher.checkpoint: {results} has no "
            + ", ".join(path.relative_to(results).as_posix() for path in lacking)
            + f"; it has {', '.join(found) or 'no checkpoint at all'}"
        )


def _check_network(path: Path) -> None:
    """Refuse a checkpoint that holds more than tensors and numbers, or a network for volumes."""
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if not strangers:
                held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                configuration = held["init_args"]["configuration"]
                is_solid = any(weight.ndim == 5 for weight in held["network_weights"].values())
    except Exception as error:  # torch raises many kinds for damaged files
        raise StateError(f"{path} is no checkpoint of nnU-Net v2: {type(error).__name__}: {error}") from None
    if strangers:
        raise StateError(
            f"{path} holds objects that are not unpickled here, {', '.join(sorted(strangers))}: a checkpoint of tensors, numbers "
            "and texts is needed; docs/teachers.md says how to write one"
        )
    if is_solid:
        raise SettingsError(
            f"teacher.folder: {path} is of configuration {configuration}, for volumes; images are answered by a 2-D one: name "
            "the results folder that ends in __2d"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what nnU-Net prints and warns of."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _numbers_only() -> Iterator[None]:
    """Let torch unpickle nothing but tensors and numbers, whatever it is asked: nnU-Net asks for everything."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
