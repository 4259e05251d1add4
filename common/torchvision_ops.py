"""Make torchvision importable beside a torch build that its compiled operators were not made for.

segmentation-models-pytorch and timm import torchvision. On Linux its published wheel is built for the CUDA torch of the
same release; beside a CPU-only torch its compiled library cannot be loaded, and ``import torchvision`` ends with
``operator torchvision::nms does not exist``: torchvision's Python code registers shape rules for `nms` and `qnms`, and
torch refuses rules for operators nobody declared. Declaring the two schemas first, without an implementation, is all
that is needed for the Python parts. Calling the operators still fails, as it should; nothing here calls them.
"""

import importlib.util
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

import torch

_SCHEMA: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS: Final = ("nms", "qnms")
_declared: Final[list[torch.library.Library]] = []  # a declaration lives as long as its Library object


def _load_compiled_operators() -> None:
    """Load torchvision's library of operators as torchvision itself would, without importing torchvision."""
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or []) if found else []:
        for suffix in EXTENSION_SUFFIXES:
            path = Path(folder) / f"_C{suffix}"
            if path.is_file():
                with suppress(OSError):  # made for another torch build: this is the case the module is for
                    torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch's types lack it
                return


def declare_missing_operators() -> None:
    """Declare `nms` and `qnms` if torchvision's own do not load; call it before importing smp, timm or torchvision.

    Where torchvision's operators load, this loads them and declares nothing. May be called any number of times.
    """
    _load_compiled_operators()
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's types lack it
    for name in missing:
        library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]  # torch's types lack it
    _declared.append(library)
