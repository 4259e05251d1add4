"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) in the form the paper's comparison rests on.

Departures from the original: five levels of 64, 128, 256, 512 and 512 channels, convolutions that keep the size, batch
normalisation, up-convolutions that keep the number of channels. 14,787,777 parameters for one channel in and one out;
the ratio of SDU-Net's published size to U-Net's (40 %, arXiv 2004.03466) belongs to this form.
"""

from consilium.common.networks.layers import EncoderDecoder, double_conv


def unet(in_channels: int, classes: int, width: int = 64) -> EncoderDecoder:
    """Build it; see `EncoderDecoder`."""
    return EncoderDecoder(in_channels, classes, width, double_conv)
