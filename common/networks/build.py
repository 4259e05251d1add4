"""Any network from its settings and a seed."""

from pathlib import Path
from typing import Final

import torch
from torch import nn

from consilium.common.errors import MachineError, SettingsError
from consilium.common.networks.attention_unet import AttentionUNet
from consilium.common.networks.deeplabv3plus import deeplabv3plus
from consilium.common.networks.encoders import HubWeights, is_weight_file, load_encoder_file
from consilium.common.networks.layers import PaddedToMultiple, replace_batch_norm
from consilium.common.networks.panoptic_fpn import panoptic_fpn
from consilium.common.networks.sdu_net import sdu_net
from consilium.common.networks.settings import ENCODER_NETWORKS, OWN_NETWORKS, SMP_PREFIX, NetworkSettings
from consilium.common.networks.smp_any import smp_any
from consilium.common.networks.unet import unet
from consilium.common.networks.weights import begin_with

_OWN: Final = {"unet": unet, "attention-unet": AttentionUNet, "sdu-net": sdu_net}
_WITH_ENCODER: Final = {"panoptic-fpn": panoptic_fpn, "deeplabv3plus": deeplabv3plus}


def build(settings: NetworkSettings, in_channels: int, classes: int, seed: int) -> nn.Module:
    """Make a network with fresh weights, or with those that its settings name.

    Parameters
    ----------
    settings
        Which network.
    in_channels
        Channels C of the images.
    classes
        Channels K of the logits, one a label.
    seed
        Decides every random weight; torch's own random state is neither read nor changed.

    Returns
    -------
    nn.Module
        On the CPU, in training mode; maps float images (n, C, H, W) in [0, 1], H and W at least 32, to logits
        (n, K, H, W).

    Raises
    ------
    SettingsError
        If the architecture, encoder or weights are unknown, or do not fit together.
    MachineError
        If weights of the hub cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _network(settings, in_channels, classes)
    if is_weight_file(settings.encoder_weights):
        encoder = network.get_submodule("encoder")
        load_encoder_file(encoder, Path(settings.encoder_weights))
    if settings.norm == "group":
        replace_batch_norm(network)
    padded = PaddedToMultiple(network)
    if settings.weights != "none":
        begin_with(padded, Path(settings.weights))
    return padded


def count_parameters(module: nn.Module) -> int:
    """Count the numbers that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _network(settings: NetworkSettings, in_channels: int, classes: int) -> nn.Module:
    name = settings.name
    if name in _OWN:
        return _OWN[name](in_channels, classes, settings.width)
    if name not in _WITH_ENCODER and not name.startswith(SMP_PREFIX):
        known = (*OWN_NETWORKS, *ENCODER_NETWORKS, f"{SMP_PREFIX}ARCH")
        raise SettingsError(f"a network is one of {', '.join(known)}; got {name!r}")
    weights = _hub_weights(settings)
    try:
        if name in _WITH_ENCODER:
            return _WITH_ENCODER[name](in_channels, classes, settings.encoder, weights, settings.width)
        return smp_any(name.removeprefix(SMP_PREFIX), in_channels, classes, settings.encoder, weights)
    except OSError as error:  # what the hub's client raises when it is offline or the name is unknown
        raise MachineError(
            f"the weights {settings.encoder_weights!r} of {settings.encoder} cannot be fetched: {error}; "
            "fetch them elsewhere and give the path of the file as encoder-weights"
        ) from None
    except (KeyError, ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise SettingsError(f"{name} cannot be built on the encoder {settings.encoder!r}: {error}") from None


def _hub_weights(settings: NetworkSettings) -> HubWeights:
    if settings.encoder_weights == "none" or is_weight_file(settings.encoder_weights):
        return None
    return True if settings.encoder.startswith("tu-") else settings.encoder_weights
