"""A teacher in ONNX, asked by ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from consilium.clients.teachers.fitted import Ask, Numbers
from consilium.clients.teachers.settings import OnnxSettings
from consilium.common.errors import DataError, MachineError, SettingsError, StateError

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def opened(settings: OnnxSettings, folder: Path, device: str, threads: int = 0) -> Ask:
    """Open the network, on the GPU where ONNX Runtime has a provider for one.

    Parameters
    ----------
    settings, folder
        Of the site.
    device
        ``auto``, ``cpu`` or ``cuda``.
    threads
        CPU threads; 0 leaves the runtime's own choice.

    Raises
    ------
    StateError
        If the file is missing or no ONNX network.
    SettingsError
        If it has no input or output of the names given.
    MachineError
        If a GPU is asked for and this ONNX Runtime knows none.
    """
    path = folder / settings.file
    if not path.is_file():
        raise StateError(f"teacher.file: there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=_providers(device))
    except Exception as error:  # its exceptions have no common base of their own
        raise StateError(f"{path}: ONNX Runtime cannot open it: {error}") from None
    given = _named(session.get_inputs(), settings.input_name, "input")
    wanted = _named(session.get_outputs(), settings.output_name, "output")
    if given.type not in _TYPES:
        raise StateError(
            f"{path}: its input {given.name!r} must be a tensor of {', '.join(_TYPES)}; it is {given.type}"
        )
    if given.type == "tensor(uint8)" and settings.normalisation != "raw":
        raise SettingsError('the network takes whole pixels (uint8): set teacher.normalisation = "raw"')
    kind = _TYPES[given.type]

    def ask(numbers: Numbers) -> Numbers:
        try:
            return np.asarray(session.run([wanted.name], {given.name: numbers.astype(kind)})[0])
        except Exception as error:
            raise DataError(
                f"the network takes an input of the form {given.shape}; it got {numbers.shape} and says: {error}. Mend "
                "teacher.size, teacher.channels, teacher.batch or teacher.channels-last"
            ) from None

    return ask


def _providers(device: str) -> list[str]:
    has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_gpu:
        raise MachineError(
            "training.device is 'cuda', but this ONNX Runtime knows no GPU; install onnxruntime-gpu, or use 'auto' or 'cpu'"
        )
    return [*(["CUDAExecutionProvider"] if has_gpu and device != "cpu" else []), "CPUExecutionProvider"]


def _named(held: list[Any], name: str, what: str) -> Any:
    names = [one.name for one in held]
    if name and name not in names:
        raise SettingsError(f"teacher.{what}-name = {name!r}: the network has {', '.join(names)}")
    if not name and what == "input" and len(held) != 1:
        raise SettingsError(
            f"the network has inputs {', '.join(names)}; a teacher has one: name it in teacher.input-name"
        )
    return held[names.index(name)] if name else held[0]
