"""SDU-Net (Wang et al., arXiv 2004.03466; Comput Biol Med 2022): U-Net with stacked dilated convolutions.

A block is one standard convolution followed by four dilated ones, each on the result of the one before; the five
results, of n/2, n/4, n/8, n/16 and n/16 channels with rates 1, 3, 6, 9 and 12, are concatenated to n channels. The
paper's wording ("concatenates all dilated convolution outputs") leaves open whether the first is among them: only with
it do the widths sum to n. 5,997,681 parameters for one channel in and one out, 40.6 % of U-Net's; the paper says "around 40 %".
"""

from typing import Final

import torch
from torch import Tensor, nn

from consilium.common.networks.layers import EncoderDecoder, conv_norm_relu

_RATES: Final = (1, 3, 6, 9, 12)
_SHARES: Final = (2, 4, 8, 16, 16)


class StackedDilations(nn.Module):
    """Five convolutions in a row, of growing dilation; all their results side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [outputs // share for share in _SHARES]
        self.convs = nn.ModuleList(
            conv_norm_relu(i, o, rate) for i, o, rate in zip([inputs, *widths[:-1]], widths, _RATES, strict=True)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, inputs, H, W) to (n, outputs, H, W)."""
        results = list[Tensor]()
        for conv in self.convs:
            features = conv(features)
            results.append(features)
        return torch.cat(results, 1)


def sdu_net(in_channels: int, classes: int, width: int = 64) -> EncoderDecoder:
    """Build it; `width` is a multiple of 16. See `EncoderDecoder`."""
    return EncoderDecoder(in_channels, classes, width, StackedDilations)
