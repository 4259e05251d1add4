"""Any architecture of segmentation-models-pytorch by its name, as smp builds it."""

from torch import nn

from consilium.common.errors import SettingsError
from consilium.common.networks.encoders import HubWeights, smp


def smp_any(architecture: str, in_channels: int, classes: int, encoder: str, weights: HubWeights = None) -> nn.Module:
    """Build it with smp's own defaults; `SettingsError` lists the known names."""
    known = smp().MODEL_ARCHITECTURES_MAPPING
    if architecture.lower() not in known:
        raise SettingsError(f"smp:ARCH takes one of {', '.join(sorted(known))}; got {architecture!r}")
    network: nn.Module = smp().create_model(
        architecture, encoder_name=encoder, encoder_weights=weights, in_channels=in_channels, classes=classes
    )
    return network
