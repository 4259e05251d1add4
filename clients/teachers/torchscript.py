"""A teacher in TorchScript."""

import warnings
from pathlib import Path

import torch

from consilium.clients.teachers import torch_model
from consilium.clients.teachers.fitted import Ask
from consilium.clients.teachers.settings import TorchScriptSettings
from consilium.common.errors import StateError
from consilium.common.training.device import choose_device


def opened(settings: TorchScriptSettings, folder: Path, device: str) -> Ask:
    """Open the network. It runs what it holds: open your own files only.

    Raises
    ------
    StateError
        If the file is missing or no TorchScript.
    """
    path, where = folder / settings.file, choose_device(device)
    if not path.is_file():
        raise StateError(f"teacher.file: there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is old; the files are there
            module = torch.jit.load(path, map_location=where)  # type: ignore[no-untyped-call]  # torch's types lack it
    except (RuntimeError, ValueError) as error:
        raise StateError(f"{path}: no TorchScript file: {error}") from None
    return torch_model.asked(module.eval(), where)
