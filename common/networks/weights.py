"""A network's weights as safetensors: the same weights give the same bytes, and no bytes run code."""

import hashlib
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from consilium.common.errors import DataError, SettingsError

ENDING: Final = ".safetensors"
"""Of a file of weights."""


def dump_weights(module: nn.Module) -> bytes:
    """Give every tensor of the network's state as safetensors; the same weights give the same bytes."""
    return write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()})


def load_weights(module: nn.Module, data: bytes) -> None:
    """Put `dump_weights`' bytes into a network, in place; it is unchanged if they do not fit.

    Raises
    ------
    DataError
        If the bytes are no safetensors, or a tensor is missing, unknown, of another shape or type, or not finite; names
        the first.
    """
    try:
        given = read_tensors(data)
    except SafetensorError as error:
        raise DataError(f"a student's weights are a safetensors file; this is none: {error}") from None
    wanted = module.state_dict()
    for name in sorted(wanted.keys() ^ given.keys()):
        raise DataError(f"the weights {'lack' if name in wanted else 'have an unknown'} tensor {name!r}")
    for name, tensor in given.items():
        rule, came = _form(wanted[name]), _form(tensor)
        if rule != came:
            raise DataError(f"the tensor {name!r} must be {rule}; got {came}")
        if not torch.isfinite(tensor).all():
            raise DataError(f"the tensor {name!r} holds a number that is not finite")
    module.load_state_dict(given)


def begin_with(module: nn.Module, path: Path) -> None:
    """Put the weights of a file into a network that training begins with.

    Raises
    ------
    SettingsError
        If the file cannot be read, or is another network's.
    """
    try:
        load_weights(module, path.read_bytes())
    except (OSError, DataError) as error:
        raise SettingsError(
            f"weights: {path} does not fit this network: {error}. Give a student.safetensors of the same network, width, "
            "channels and labels, as `consilium pretrain` or a former study leaves it, by its whole path"
        ) from None


def digest_of_file(path: Path) -> str:
    """Name a file of weights by what is in it: SHA-256, in hex."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SettingsError(f"weights: cannot read {path}: {error}") from None


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
