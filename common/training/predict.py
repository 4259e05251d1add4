"""A network's soft masks of images."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from consilium.common.training.device import choose_device, to_unit


def predict(
    module: nn.Module, images: npt.NDArray[np.uint8], batch: int = 16, device: str = "auto"
) -> npt.NDArray[np.float32]:
    """Give the probabilities a network answers with.

    Parameters
    ----------
    module
        Maps images in [0, 1] to logits. Its mode and its device are as before afterwards.
    images
        uint8, (n, C, H, W); may be memory-mapped.
    batch
        Images computed at a time.
    device
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    NDArray
        float32, (n, K, H, W), in [0, 1]: the sigmoid of the logits. For no images, (0, 0, H, W).
    """
    where = choose_device(device)
    home = next((parameter.device for parameter in module.parameters()), where)
    was_training = module.training
    module.to(where).eval()
    try:
        with torch.inference_mode():
            parts = [
                torch.sigmoid(module(to_unit(images[start : start + batch], where)).float()).cpu().numpy()
                for start in range(0, len(images), batch)
            ]
    finally:
        module.to(home).train(was_training)
    return np.concatenate(parts) if parts else np.empty((0, 0, *images.shape[2:]), np.float32)
