"""Asking a torch model, however it was opened."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.clients.teachers.fitted import Ask, Numbers
from consilium.common.errors import DataError, StateError


def asked(model: Callable[[torch.Tensor], Any], device: torch.device) -> Ask:
    """Make `Ask` of a model that is on its device and in evaluation mode.

    Of a list or tuple the first tensor counts, which is the finest where a network gives several scales; of a mapping the
    one named ``out``.
    """

    def ask(numbers: Numbers) -> Numbers:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's own business
            answer = _tensor(model(torch.from_numpy(np.ascontiguousarray(numbers)).to(device)))
        return np.asarray((answer.float() if answer.is_floating_point() else answer).cpu().numpy())

    return ask


def _tensor(answer: object) -> torch.Tensor:
    if isinstance(answer, list | tuple) and answer:
        answer = answer[0]
    elif isinstance(answer, Mapping):
        answer = answer.get("out")
    if not isinstance(answer, torch.Tensor):
        raise DataError(
            "a model answers with a tensor, a list that begins with one, or a mapping with one named 'out'; got "
            f"{type(answer).__name__}"
        )
    return answer


def load_state(model: torch.nn.Module, path: Path) -> None:
    """Put a file's weights into a module, in place.

    Parameters
    ----------
    model
        The module.
    path
        ``.safetensors``, or a state dict as ``torch.save`` writes it; nothing but tensors is read from it.

    Raises
    ------
    StateError
        If the file cannot be read, or its tensors are not those of the module.
    """
    if not path.is_file():
        raise StateError(f"teacher.weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for damaged files
        raise StateError(
            f"{path}: the weights must be a state dict of tensors with the names and shapes of the module's: {error}"
        ) from None
