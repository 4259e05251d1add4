"""The semantic branch of Panoptic FPN (Kirillov et al., CVPR 2019, arXiv 1901.02446), as smp's FPN builds it.

Departures of smp from the paper: no 3 x 3 convolution on the pyramid's maps, spatial dropout of 0.2 before the last
convolution. The instance branch is left out: one class of lesion and no instances.
"""

from torch import nn

from consilium.common.networks.encoders import HubWeights, smp


def panoptic_fpn(
    in_channels: int, classes: int, encoder: str, weights: HubWeights = None, width: int = 64
) -> nn.Module:
    """Build it; the pyramid has ``4 * width`` channels, the segmentation branch ``2 * width`` (published: 256, 128).

    The branch's channels are rounded up to a multiple of 32, the number of groups its normalisation always has.
    """
    branch = -(-2 * width // 32) * 32
    network: nn.Module = smp().FPN(
        encoder_name=encoder,
        encoder_weights=weights,
        decoder_pyramid_channels=4 * width,
        decoder_segmentation_channels=branch,
        in_channels=in_channels,
        classes=classes,
    )
    return network
