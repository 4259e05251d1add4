"""The moving average of a network's weights, which is often better, and always steadier, than the newest weights.

``average <- d average + (1 - d) weights`` after each step. The running means and variances of batch normalisation are averaged
likewise: they were measured under the weights of the same steps, so both averages are over the same networks; taking the
newest ones instead would pair averaged weights with statistics of others. Counters are taken as they are.

So that a short training is not averaged with its random beginning, the decay grows: it is at most ``(1 + t) / (10 + t)``
after ``t`` steps, which reaches 0.99 after 890 steps and 0.999 after 8,990.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """The average of one network's state, on the network's device.

    Parameters
    ----------
    module
        The network, before its first step; where its tensors are, they stay.
    decay
        In (0, 1): the weight of what was before, once the steps are many.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from an earlier average, `tensors` of a checkpoint."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def update(self, steps: int) -> None:
        """Take in the network's state after so many steps."""
        state = self.module.state_dict()
        means, news = list[Tensor](), list[Tensor]()
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point():
                means.append(tensor)
                news.append(state[name])
            else:
                tensor.copy_(state[name])
        torch._foreach_lerp_(means, news, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    def put(self) -> None:
        """Give the network the average as its state."""
        self.module.load_state_dict(self.tensors)
