"""DeepLabV3+ (Chen et al., ECCV 2018, arXiv 1802.02611), as smp builds it, with the paper's atrous rates.

At output stride 16 the published rates are 6, 12 and 18; smp's own default of 12, 24 and 36 belongs to stride 8.
Departures of smp from the paper: one separable 3 x 3 convolution in the decoder instead of two of 256 channels, one
more after the pyramid, dropout of 0.5 in the pyramid.
"""

from torch import nn

from consilium.common.networks.encoders import HubWeights, smp


def deeplabv3plus(
    in_channels: int, classes: int, encoder: str, weights: HubWeights = None, width: int = 64
) -> nn.Module:
    """Build it; pyramid and decoder have ``4 * width`` channels (256 published)."""
    network: nn.Module = smp().DeepLabV3Plus(
        encoder_name=encoder,
        encoder_weights=weights,
        decoder_channels=4 * width,
        decoder_atrous_rates=(6, 12, 18),
        in_channels=in_channels,
        classes=classes,
    )
    return network
