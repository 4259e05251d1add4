"""A student that was saved, sent or exported answers as it did before."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from consilium.common.errors import DataError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import (
    CARD_NAME,
    WEIGHTS_NAME,
    dump_weights,
    export_onnx,
    load_student,
    load_weights,
    onnx_predict,
    save_student,
    student_card,
)
from consilium.common.training.predict import predict

UNET = NetworkSettings(name="unet", width=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 64, 64), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small to share among cores
    yield
    torch.set_num_threads(before)


def test_a_card_names_no_file_that_the_student_began_with() -> None:
    began = NetworkSettings(name="deeplabv3plus", encoder_weights="/srv/patients/encoder.pth")
    for network in (began, UNET.model_copy(update={"weights": "/srv/runs/first/student.safetensors"})):
        card = student_card(network, 1, 1, 64)["architecture"]
        assert (card["weights"], card["encoder-weights"]) == ("none", "none")


def test_a_saved_student_gives_the_same_masks_exactly(tmp_path: Path) -> None:
    student = build(UNET, 1, 2, seed=4)
    student(torch.rand(4, 1, 64, 64))  # moves the running statistics, which must be kept too
    save_student(tmp_path, student, {**student_card(UNET, 1, 2, 64), "study": "demo"})
    loaded, card = load_student(tmp_path)
    assert (card["study"], card["size"], loaded.training) == ("demo", 64, False)
    assert np.array_equal(predict(loaded, IMAGES), predict(student, IMAGES))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD_NAME, WEIGHTS_NAME]


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (UNET, 64),
        (NetworkSettings(name="attention-unet", width=4, norm="group"), 72),
        (NetworkSettings(name="deeplabv3plus", encoder="tu-test_efficientnet", width=4), 72),
    ],
    ids=["unet", "attention-unet-padded", "deeplabv3plus-padded"],
)
def test_an_exported_student_gives_the_same_masks_to_one_level(
    tmp_path: Path, network: NetworkSettings, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    student, path = build(network, 1, 1, seed=4), tmp_path / "student.onnx"
    images = np.random.default_rng(0).integers(0, 256, (5, 1, size, size), dtype=np.uint8)
    export_onnx(student, path, in_channels=1, size=size)
    assert list(tmp_path.iterdir()) == [path]
    assert student.training
    wanted = np.rint(255 * predict(student, images)).astype(int)
    for batch in (1, 5):
        got = np.rint(255 * onnx_predict(path, images, batch, threads=1)).astype(int)
        assert got.shape == (5, 1, size, size)
        assert abs(got - wanted).max() <= 1
    assert capfd.readouterr() == ("", "")


def test_a_network_that_onnx_can_not_express_is_refused_with_what_to_do(tmp_path: Path) -> None:
    class Moody(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.mean() > 0.5 else -images

    with pytest.raises(DataError, match=r"can not write Moody as ONNX: .*student\.onnx = false"):
        export_onnx(Moody(), tmp_path / "student.onnx", in_channels=1, size=16)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_refused_and_the_first_is_named() -> None:
    student = build(UNET, 1, 1, seed=0)
    before = dump_weights(student)
    weights = student.state_dict()
    name = "network.head.weight"
    wrong = {
        "lack tensor 'network.head.weight'": {key: value for key, value in weights.items() if key != name},
        "unknown tensor 'extra'": {**weights, "extra": torch.zeros(1)},
        r"'network.head.weight' must be .*\(1, 4, 1, 1\)": {**weights, name: torch.zeros(1, 4)},
        "'network.head.weight' must be torch.float32": {**weights, name: weights[name].double()},
        "'network.head.weight' holds": {**weights, name: weights[name] * float("nan")},
    }
    for words, tensors in wrong.items():
        with pytest.raises(DataError, match=words):
            load_weights(student, save(tensors))
    with pytest.raises(DataError, match="safetensors"):
        load_weights(student, before[:-7])
    assert dump_weights(student) == before
    other = build(UNET, 1, 1, seed=1)
    load_weights(other, before)
    assert dump_weights(other) == before


def test_a_folder_without_a_whole_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no student"):
        load_student(tmp_path)
    with pytest.raises(DataError, match="classes, size missing"):
        save_student(tmp_path, build(UNET, 1, 1, 0), {"architecture": {}, "in_channels": 1})
    save_student(tmp_path, build(UNET, 1, 1, 0), student_card(UNET, 1, 1, 64))
    (tmp_path / CARD_NAME).write_text('{"architecture": {"name": "vnet"}}')
    with pytest.raises(DataError, match="card"):
        load_student(tmp_path)
