"""Where a network computes, and what it is given there."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.common.errors import MachineError


def choose_device(name: str) -> torch.device:
    """Give the device of a name; ``auto`` is a GPU where there is one.

    Raises
    ------
    MachineError
        If ``cuda`` is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError("device is 'cuda', but torch sees no usable GPU here; use 'auto' or 'cpu'")
    return torch.device(name)


def to_unit(planes: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Bring uint8 planes, any shape, to a device as float32 in [0, 1]: divided by 255.

    This is the one normalisation of the student's images, in training, prediction and the exported files alike, and the
    inverse of a soft mask's ``round(255 * p)``.
    """
    whole = torch.from_numpy(
        np.array(planes)
    )  # a copy: memory-mapped arrays are read-only, which torch has no notion of
    if device.type == "cuda":  # uint8 crosses the bus, from pinned memory so that the copy overlaps with computing
        whole = whole.pin_memory().to(device, non_blocking=True)
    return whole.to(torch.float32).div_(255.0)
