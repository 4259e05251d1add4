"""The bridge to segmentation-models-pytorch and its encoders, imported only when a network needs it."""

from pathlib import Path
from types import ModuleType
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from consilium.common.errors import SettingsError
from consilium.common.torchvision_ops import declare_missing_operators

HubWeights = str | bool | None
"""Weights smp or timm fetches from its hub: none, a name, or, for a timm encoder, `True`."""

WEIGHT_FILES: Final = (".safetensors", ".pth", ".pt")


def smp() -> ModuleType:
    """Import segmentation-models-pytorch."""
    declare_missing_operators()
    import segmentation_models_pytorch

    module: ModuleType = segmentation_models_pytorch
    return module


def is_weight_file(weights: str) -> bool:
    """Tell a path of encoder weights from a hub name, by its ending."""
    return weights.endswith(WEIGHT_FILES)


def load_encoder_file(encoder: nn.Module, path: Path) -> None:
    """Load an encoder's weights from a local file.

    Every tensor of the encoder must be in the file; what the file has beyond that (a classifier) is left. A first
    convolution made for colour is summed over its channels where the encoder takes gray images, so that a gray image
    gives what the same image as R = G = B would have given. A ``.pth`` file is read as tensors only: it runs no code.

    Raises
    ------
    SettingsError
        If the file cannot be read or lacks a tensor of the encoder, naming the first.
    """
    try:
        given: dict[str, Tensor] = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SettingsError(f"encoder-weights: cannot read {path} as a file of tensors: {error}") from None
    except Exception as error:  # pickle raises what it likes, and its error class is a bare Exception's child
        raise SettingsError(f"encoder-weights: {path} holds more than tensors, or none: {error}") from None
    wanted = encoder.state_dict()
    # smp keeps a timm encoder under "model."; files written by timm do not have the prefix
    given = {key if key in wanted else f"model.{key}": tensor for key, tensor in given.items()}
    for key, current in wanted.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, current)
        if key not in given:
            raise SettingsError(f"encoder-weights: {path} has no tensor {key!r}; is it of another encoder?")
        given[key] = _adapt(given[key], current)
        if given[key].shape != current.shape:
            came, rule = tuple(given[key].shape), tuple(current.shape)
            raise SettingsError(f"encoder-weights: {key!r} must have the shape {rule}; {path} has {came}")
    encoder.load_state_dict({key: given[key] for key in wanted})


def _adapt(given: Tensor, current: Tensor) -> Tensor:
    colour_to_gray = given.ndim == 4 and given.shape[1] == 3 and current.ndim == 4 and current.shape[1] == 1
    return given.sum(1, keepdim=True) if colour_to_gray else given
