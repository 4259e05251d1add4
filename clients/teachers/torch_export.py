"""A teacher that is a program of ``torch.export`` (.pt2)."""

from pathlib import Path

import torch

from consilium.clients.teachers import torch_model
from consilium.clients.teachers.fitted import Ask
from consilium.clients.teachers.settings import TorchExportSettings
from consilium.common.errors import StateError
from consilium.common.training.device import choose_device


def opened(settings: TorchExportSettings, folder: Path, device: str) -> Ask:
    """Open the program. It runs what it holds: open your own files only.

    Raises
    ------
    StateError
        If the file is missing or no such program.
    """
    path, where = folder / settings.file, choose_device(device)
    if not path.is_file():
        raise StateError(f"teacher.file: there is no file {path}")
    try:
        program = torch.export.load(path)
        if where.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, where)
    except Exception as error:  # torch raises many kinds for damaged files
        raise StateError(f"{path}: no program that torch.export.save wrote: {type(error).__name__}: {error}") from None
    return torch_model.asked(program.module(), where)
