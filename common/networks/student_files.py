"""A student on disk and on the wire: weights as safetensors, what they are in a card, and a copy in ONNX.

The card (``card.json``) says what `load_student` needs (`architecture`, `in_channels`, `classes`, `size`) and whatever else
its writer adds. Images enter every form of the student as ``x / 255`` (`consilium.common.training.device.to_unit`).
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from consilium.common.errors import DataError
from consilium.common.files import replacing, write_whole
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.weights import dump_weights, load_weights

WEIGHTS_NAME: Final = "student.safetensors"
CARD_NAME: Final = "card.json"


def student_card(network: NetworkSettings, in_channels: int, classes: int, size: int) -> dict[str, Any]:
    """Give the card's required part.

    Parameters
    ----------
    network
        What was given to `build`. What it began with is part of its weights now: a card names no file.
    in_channels, classes
        Channels C of the images and K of the masks.
    size
        Height and width the student was trained at, in pixels.
    """
    architecture = network.from_scratch.model_dump(mode="json", by_alias=True)
    return {"architecture": architecture, "in_channels": in_channels, "classes": classes, "size": size}


def save_student(folder: Path, module: nn.Module, card: Mapping[str, Any]) -> None:
    """Write ``student.safetensors`` and ``card.json``; each file is replaced whole, the card last.

    Parameters
    ----------
    folder
        Made if there is none.
    module
        The student.
    card
        JSON-able; holds `student_card`'s keys.

    Raises
    ------
    DataError
        If the card lacks a key.
    """
    lacking = [key for key in ("architecture", "in_channels", "classes", "size") if key not in card]
    if lacking:
        raise DataError(
            f"a student's card has architecture, in_channels, classes and size; {', '.join(lacking)} missing"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_NAME, dump_weights(module))
    write_whole(folder / CARD_NAME, json.dumps(dict(card), indent=2, sort_keys=True).encode())


def load_student(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a student.

    Returns
    -------
    tuple
        The network, on the CPU and in evaluation mode, and its card.

    Raises
    ------
    DataError
        If a file is missing or damaged, or the weights do not fit the card.
    SettingsError
        If the card's architecture cannot be built here.
    """
    try:
        card = json.loads((folder / CARD_NAME).read_text("utf-8"))
        weights = (folder / WEIGHTS_NAME).read_bytes()
        network = NetworkSettings.model_validate(card["architecture"]).from_scratch
        in_channels, classes = int(card["in_channels"]), int(card["classes"])
    except OSError as error:
        raise DataError(f"{folder} holds no student: {error}") from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(f"{folder / CARD_NAME} is no student's card: {error}") from None
    module = build(network, in_channels, classes, seed=0)
    load_weights(module, weights)
    return module.eval(), card


def export_onnx(module: nn.Module, path: Path, in_channels: int, size: int) -> None:
    """Write the student as one ONNX file: ``images`` to ``probabilities``, any number of images of one size.

    Parameters
    ----------
    module
        The student, on the CPU; its mode is as before afterwards.
    path
        The file; replaced whole.
    in_channels, size
        Channels, and height and width in pixels, of the images.

    Raises
    ------
    DataError
        If torch can not write the network as ONNX.
    """
    was_training = module.training
    example = torch.zeros(2, in_channels, size, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about its own insides
            program = torch.onnx.export(
                _WithSigmoid(module).eval(),
                (example,),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        [why, *_] = str(error.__cause__ or error).splitlines()
        raise DataError(
            f"torch can not write {type(module).__name__} as ONNX: {why}; take another network, or "
            "let a study do without with student.onnx = false"
        ) from error
    finally:
        module.train(was_training)
    if program is None:  # never, with dynamo; the signature also covers the older exporter
        raise DataError("torch.onnx gave no program")
    with replacing(path) as partial:
        program.save(partial, external_data=False)


def onnx_predict(
    path: Path, images: npt.NDArray[np.uint8], batch: int = 16, threads: int = 0
) -> npt.NDArray[np.float32]:
    """Give the probabilities of an exported student, without torch.

    Parameters
    ----------
    path
        What `export_onnx` wrote.
    images
        uint8, (n, C, H, W).
    batch
        Images computed at a time.
    threads
        CPU threads; 0 leaves the runtime's own choice.

    Returns
    -------
    NDArray
        float32, (n, K, H, W), in [0, 1]. For no images, (0, 0, H, W).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["probabilities"], {"images": images[start : start + batch].astype(np.float32) / np.float32(255)})[
            0
        ]
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 0, *images.shape[2:]), np.float32)


class _WithSigmoid(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.module(images))
