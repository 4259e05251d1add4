"""One small network in every format a site may bring: each gives the same soft masks as the network itself."""

import sys
import tomllib
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import grpc
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from consilium.clients.settings import SiteHome, SiteSettings
from consilium.clients.site import open_site
from consilium.clients.teachers import Teacher, fitted, geometry
from consilium.clients.teachers import inference_pb2 as pb
from consilium.clients.teachers.opening import open_teacher
from consilium.clients.teachers.served import SERVICE
from consilium.clients.teachers.settings import CallableSettings, TeacherSettings
from consilium.common.errors import (
    ConsiliumError,
    DataError,
    ErrorCode,
    MachineError,
    SettingsError,
    StateError,
    WireError,
)
from consilium.common.settings import parse
from consilium.common.soft_mask import quantise
from tests.unit.test_site import Coordinator

SIZE = 32
KINDS = get_args(get_args(TeacherSettings)[0])
HEIGHT, WIDTH = 24, 40  # what the network was made for
MEAN, STD = 0.3, 0.25
NETWORK = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Conv2d(1, width, 3, padding=1)
        self.last = torch.nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, images):
        return self.last(torch.relu(self.first(images)))

def make(width):
    return Tiny(width)
"""
SEGMENT = """
import pathlib, sys
import numpy as np
from PIL import Image

images, masks = map(pathlib.Path, sys.argv[1:3])
for path in sorted(images.iterdir()):
    pixels = np.asarray(Image.open(path))
    Image.fromarray(255 - pixels).save(masks / (path.stem.removesuffix("_0000") + ".png"))
(masks / "plans.json").write_text("{}")
"""
TENSOR = {
    "size": [HEIGHT, WIDTH],
    "normalisation": "mean-std",
    "mean": [MEAN],
    "std": [STD],
    "output": "softmax-logits",
    "output-channels": [1],
}


class Tiny(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, width, 3, padding=1)
        self.last = torch.nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.relu(self.first(images)))
        return result


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = Tiny(6).eval()
    with torch.no_grad():
        made.last.weight.mul_(4.0)
    return made


@pytest.fixture(scope="module")
def folder(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's folder with the network in every format."""
    folder = tmp_path_factory.mktemp("site")
    example = torch.zeros(1, 1, HEIGHT, WIDTH)
    (folder / "tiny_of_the_site.py").write_text(NETWORK)
    save_file(network.state_dict(), folder / "tiny.safetensors")
    torch.save(network.state_dict(), folder / "tiny.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (example,))
        torch.export.save(program, folder / "tiny.pt2")
        torch.jit.trace(network, example).save(folder / "tiny.ts")
        onnx = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(folder / "tiny.onnx", external_data=False)
    return folder


def home(folder: Path, teacher: dict[str, Any], **site: Any) -> SiteHome:
    values = {"name": "north", "teacher": teacher, "training": {"device": "cpu", "threads": 1}} | site
    return SiteHome(parse(SiteSettings, values, "site.toml"), folder)


def opened(folder: Path, teacher: dict[str, Any], **site: Any) -> Teacher:
    return open_teacher(home(folder, teacher, **site))


def pictures(count: int = 3, channels: int = 1, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, channels, size, size), np.uint8)


def expected(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """What the network says of images, the long way round."""
    fitted = geometry.to_size(images, (HEIGHT, WIDTH))
    with torch.inference_mode():
        logits = network((torch.from_numpy(fitted) / 255 - MEAN) / STD)
        return geometry.to_grid(torch.softmax(logits, 1)[:, 1:].numpy(), SIZE)


FORMATS: dict[str, dict[str, Any]] = {
    "module, safetensors": {
        "kind": "module",
        "factory": "tiny_of_the_site:make",
        "code": ".",
        "arguments": {"width": 6},
        "weights": "tiny.safetensors",
    },
    "module, torch.save": {
        "kind": "module",
        "factory": "tiny_of_the_site:make",
        "code": ".",
        "arguments": {"width": 6},
        "weights": "tiny.pt",
    },
    "torch-export": {"kind": "torch-export", "file": "tiny.pt2"},
    "torchscript": {"kind": "torchscript", "file": "tiny.ts"},
    "onnx": {"kind": "onnx", "file": "tiny.onnx"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_masks_of_the_network_itself(name: str, folder: Path, network: torch.nn.Module) -> None:
    images = pictures()
    found = opened(folder, FORMATS[name] | TENSOR).predict(images)
    wanted = expected(network, images)
    assert wanted.std() > 0.1  # there is something to agree about
    assert (found.shape, found.dtype) == ((3, 1, SIZE, SIZE), np.float32)
    assert np.abs(quantise(found).astype(int) - quantise(wanted)).max() <= 1


class ModelServer:
    """A server of the Open Inference Protocol with one model, ``tiny``; the rest of the protocol is not there."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.spelled_out = False
        self.lie_about_the_shape = False
        handlers = {
            "ModelMetadata": grpc.unary_unary_rpc_method_handler(
                self.metadata, pb.ModelMetadataRequest.FromString, pb.ModelMetadataResponse.SerializeToString
            ),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(
                self.infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
            ),
        }
        self.server = grpc.server(ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name != "tiny":
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{request.name}'")
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name="tiny",
            inputs=[tensor(name="images", datatype="FP32", shape=[-1, 1, HEIGHT, WIDTH])],
            outputs=[
                tensor(name="masks", datatype="FP32", shape=[-1, 2, HEIGHT, WIDTH]),
                tensor(name="extra", datatype="INT64", shape=[1]),
            ],
        )

    def infer(self, request: Any, context: grpc.ServicerContext) -> Any:
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        if list(tensor.shape[1:]) != [1, HEIGHT, WIDTH]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected shape {list(tensor.shape)}")
        numbers = np.frombuffer(raw, "<f4").reshape(tuple(tensor.shape)).copy()
        with torch.inference_mode():
            answer = self.network(torch.from_numpy(numbers)).numpy().astype("<f4")
        shape = [*answer.shape[:3], answer.shape[3] + self.lie_about_the_shape]
        output = pb.ModelInferResponse.InferOutputTensor(name="masks", datatype="FP32", shape=shape)
        if self.spelled_out:
            output.contents.fp32_contents.extend(answer.ravel().tolist())
        reply = pb.ModelInferResponse(model_name="tiny", outputs=[output])
        if not self.spelled_out:
            reply.raw_output_contents.append(answer.tobytes())
        return reply


@pytest.fixture(scope="module")
def server(network: torch.nn.Module) -> Iterator[ModelServer]:
    running = ModelServer(network)
    yield running
    running.server.stop(None).wait()


def served(server: ModelServer, **changes: Any) -> dict[str, Any]:
    return {"kind": "served", "address": server.address, "model": "tiny", "timeout-s": 20.0} | TENSOR | changes


@pytest.mark.parametrize("spelled_out", [False, True])
def test_a_served_model_gives_the_masks_of_the_network_itself(
    spelled_out: bool, folder: Path, network: torch.nn.Module, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw bytes and numbers spelled out are both of the protocol."""
    monkeypatch.setattr(server, "spelled_out", spelled_out)
    images = pictures()
    found = opened(folder, served(server)).predict(images)
    np.testing.assert_allclose(found, expected(network, images), atol=1 / 255)


SERVED_FAULTS: dict[str, tuple[dict[str, Any], type[ConsiliumError], str]] = {
    "no such model": ({"model": "huge"}, SettingsError, "has no model 'huge'"),
    "no such input": ({"input-name": "x"}, SettingsError, "tiny has images"),
    "no such output": ({"output-name": "y"}, SettingsError, "tiny has masks, extra"),
    "another size": ({"size": 64}, DataError, "unexpected shape"),
    "an output that was not answered": ({"output-name": "extra"}, DataError, "answered with masks"),
    "nobody there": ({"address": "127.0.0.1:9"}, MachineError, "cannot be reached"),
}


@pytest.mark.parametrize("name", SERVED_FAULTS)
def test_a_served_models_faults_are_named(name: str, folder: Path, server: ModelServer) -> None:
    changes, kind, words = SERVED_FAULTS[name]
    with pytest.raises(kind, match=words):
        opened(folder, served(server, **changes)).predict(pictures(1))


def test_a_server_that_says_another_shape_than_it_sends_is_not_believed(
    folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "lie_about_the_shape", True)
    with pytest.raises(DataError, match="holds 1920 numbers"):
        opened(folder, served(server)).predict(pictures(1))


def command(*arguments: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "command",
        "command": [sys.executable, *(arguments or ("segment.py", "{images}", "{masks}"))],
        "output": "probabilities",
    } | changes


def test_a_commands_masks_are_its_levels_over_255(tmp_path: Path) -> None:
    """The command inverts: 255 - pixel. It runs in the folder of site.toml, three images in calls of two."""
    (tmp_path / "segment.py").write_text(SEGMENT)
    images = pictures()
    for name in ("{number}.png", "case_{number}_0000.png"):
        told = {"image-name": name, "mask-name": name.replace("_0000", ""), "batch": 2}
        found = opened(tmp_path, command(**told)).predict(images)
        np.testing.assert_array_equal(quantise(found), 255 - images)


def test_a_commands_classes_become_one_mask_a_label(tmp_path: Path) -> None:
    (tmp_path / "segment.py").write_text(SEGMENT)
    images = np.array([255, 254, 253, 255], np.uint8).reshape(1, 1, 2, 2).repeat(16, 2).repeat(16, 3)
    teacher = command(output="classes", **{"output-channels": [2, 1]})
    found = opened(tmp_path, teacher, labels=["mass", "cyst"]).predict(images)
    assert found[0, :, 0, 0].tolist() == [0, 0]
    np.testing.assert_array_equal(found[0, 0], images[0, 0] == 253)
    np.testing.assert_array_equal(found[0, 1], images[0, 0] == 254)


def test_a_commands_labels_each_have_a_folder(tmp_path: Path) -> None:
    (tmp_path / "segment.py").write_text(SEGMENT.replace("[1:3])", "[1:3]); masks = masks / 'mass'"))
    with pytest.raises(DataError, match=r"1 of 1 are not there: 000000\.png"):
        opened(tmp_path, command(), labels=["mass", "cyst"]).predict(pictures(1))
    both = (
        "import subprocess, sys\n"
        "for label in ('mass', 'cyst'):\n"
        "    subprocess.run([sys.executable, 'one.py', sys.argv[1], sys.argv[2] + '/' + label], check=True)\n"
    )
    (tmp_path / "segment.py").write_text(both)
    (tmp_path / "one.py").write_text(SEGMENT)
    found = opened(tmp_path, command(), labels=["mass", "cyst"]).predict(pictures(1))
    np.testing.assert_array_equal(quantise(found), (255 - pictures(1)).repeat(2, 1))


COMMAND_FAULTS: dict[str, tuple[dict[str, Any], type[ConsiliumError], str]] = {
    "a status that is not 0": (
        command("-c", "import sys; print('no licence'); sys.exit(7)", "{images}", "{masks}"),
        DataError,
        r"status 7; it said last:\nno licence",
    ),
    "too slow": (
        command("-c", "import time; time.sleep(60)", "{images}", "{masks}", **{"timeout-s": 0.5}),
        MachineError,
        "did not end in 0.5 s",
    ),
    "no masks": (command("-c", "", "{images}", "{masks}"), DataError, "1 of 1 are not there: 000000.png"),
    "masks of other names": (
        command("segment.py", "{images}", "{masks}", **{"image-name": "a{number}.png"}),
        DataError,
        "not there: 000000.png; there are a000000.png",
    ),
    "masks of another size": (
        command(
            "-c",
            "import sys; from PIL import Image; Image.new('L', (9, 8)).save(sys.argv[2] + '/000000.png')",
            "{images}",
            "{masks}",
        ),
        DataError,
        r"size of its image, here \(height, width\) \(32, 32\); 000000.png has the form \(8, 9\)",
    ),
    "masks that are no pictures": (
        command("-c", "import sys; open(sys.argv[2] + '/000000.png', 'w').write('x')", "{images}", "{masks}"),
        DataError,
        "000000.png is no picture",
    ),
    "a program that is not there": (
        {"kind": "command", "command": ["no-such-program", "{images}", "{masks}"], "output": "binary"},
        MachineError,
        "could not be started: no-such-program",
    ),
}


@pytest.mark.parametrize("name", COMMAND_FAULTS)
def test_a_commands_faults_are_named(name: str, tmp_path: Path) -> None:
    teacher, kind, words = COMMAND_FAULTS[name]
    (tmp_path / "segment.py").write_text(SEGMENT)
    with pytest.raises(kind, match=words):
        opened(tmp_path, teacher).predict(pictures(1))


def test_a_function_is_given_pixels(tmp_path: Path) -> None:
    (tmp_path / "function_of_the_site.py").write_text("def ask(images):\n    return images / 255.0\n")
    teacher = {"kind": "callable", "function": "function_of_the_site:ask", "code": ".", "output": "probabilities"}
    images = pictures(2)
    np.testing.assert_array_equal(quantise(opened(tmp_path, teacher).predict(images)), images)
    big = pictures(2, size=64)
    assert opened(tmp_path, teacher | {"size": 32}).predict(big).shape == (2, 1, 64, 64)


OPENING_FAULTS: dict[str, tuple[dict[str, Any], type[ConsiliumError], str]] = {
    "no file": ({"kind": "onnx", "file": "x.onnx"}, StateError, "teacher.file: there is no file"),
    "not ONNX": ({"kind": "onnx", "file": "tiny.safetensors"}, StateError, "ONNX Runtime cannot open it"),
    "not TorchScript": ({"kind": "torchscript", "file": "tiny.onnx"}, StateError, "no TorchScript file"),
    "not torch.export": ({"kind": "torch-export", "file": "tiny.onnx"}, StateError, "no program that torch.export"),
    "no such output": (FORMATS["onnx"] | {"output-name": "y"}, SettingsError, "teacher.output-name = 'y': the network"),
    "no such module": ({"kind": "module", "factory": "nowhere:make"}, SettingsError, "cannot be imported"),
    "no such factory": (
        FORMATS["torch-export"] | {"kind": "module", "factory": "json:make"},
        SettingsError,
        "unknown key",
    ),
    "a factory that fails": (
        FORMATS["module, torch.save"] | {"arguments": {"x": 1}},
        SettingsError,
        "unexpected keyword",
    ),
    "no module": (
        {"kind": "module", "factory": "collections:OrderedDict"},
        SettingsError,
        "must return a torch.nn.Module",
    ),
    "other weights": (FORMATS["module, torch.save"] | {"arguments": {"width": 5}}, StateError, "names and shapes"),
    "no weights": (FORMATS["module, torch.save"] | {"weights": "x.pt"}, StateError, "there is no file"),
    "weights that are code": (
        FORMATS["module, torch.save"] | {"weights": "tiny.ts"},
        StateError,
        "state dict of tensors",
    ),
}


@pytest.mark.parametrize("name", OPENING_FAULTS)
def test_a_teacher_that_cannot_be_opened_says_why(name: str, folder: Path) -> None:
    teacher, kind, words = OPENING_FAULTS[name]
    with pytest.raises(kind, match=words):
        opened(folder, teacher | TENSOR)


SETTINGS_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown kind": ({"kind": "keras"}, "teacher.kind: one of 'checkpoint', 'module'"),
    "a key of another kind": (
        FORMATS["onnx"] | TENSOR | {"weights": "x"},
        "teacher.weights: unknown key; known here:.*file",
    ),
    "no meaning": ({"kind": "onnx", "file": "x", "size": 64}, "teacher.output: is required"),
    "no size": ({"kind": "onnx", "file": "x", "output": "logits"}, "teacher.size: is required"),
    "a size of three": (
        FORMATS["onnx"] | TENSOR | {"size": [1, 2, 3]},
        r'teacher.size: "native", one number .*\[1, 2, 3\]',
    ),
    "a mean without mean-std": (FORMATS["onnx"] | TENSOR | {"normalisation": "unit"}, "mean and std belong to"),
    "too many means": (FORMATS["onnx"] | TENSOR | {"mean": [0.1, 0.2]}, "one number each or one for each channel"),
    "a channel too many": (
        FORMATS["onnx"] | TENSOR | {"output-channels": [0, 1]},
        "one for each of the 1 labels; got 2",
    ),
    "a binary temperature": (
        FORMATS["onnx"] | TENSOR | {"output": "binary", "temperature": 2.0},
        "temperature: binary masks",
    ),
    "a hot temperature": (
        FORMATS["onnx"] | TENSOR | {"temperature": 9.0},
        "teacher.temperature: .*less than or equal to 8",
    ),
    "a command without folders": (command("x.py", "{images}"), r"\{masks\} missing"),
    "logits in pictures": (command(output="logits"), "teacher.output: .*'binary'"),
    "a name without a number": (command(**{"mask-name": "a.png"}), "mask-name: holds"),
    "a shell's import path": ({"kind": "callable", "function": "a b", "output": "binary"}, "teacher.function: "),
}


@pytest.mark.parametrize("name", SETTINGS_FAULTS)
def test_faults_in_the_settings_of_a_teacher_are_named(name: str) -> None:
    teacher, words = SETTINGS_FAULTS[name]
    with pytest.raises(SettingsError, match=words):
        parse(SiteSettings, {"name": "north", "teacher": teacher}, "site.toml")


def test_every_site_of_the_documentation_can_be_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text("utf-8")
    blocks = [block.partition("```")[0] for block in text.split("```toml\n")[1:]]
    kinds = [parse(SiteSettings, tomllib.loads(block), "docs/teachers.md").teacher.kind for block in blocks]
    every = {get_args(one.model_fields["kind"].annotation)[0] for one in KINDS}
    assert set(kinds) == every - {"checkpoint"}


def test_logits_taken_for_probabilities_are_told_at_the_site_and_not_beyond(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = Coordinator(tmp_path / "coordinator")
    (tmp_path / "sharp_of_the_site.py").write_text("def ask(images):\n    return images / 10.0 - 12\n")
    teacher = {"kind": "callable", "function": "sharp_of_the_site:ask", "code": ".", "output": "probabilities"}
    site = open_site(home(tmp_path, teacher, policy={"auto-approve": True, "sealed": False}))
    site.describe(coordinator.describe())
    with pytest.raises(WireError) as failure:
        site.predict(coordinator.predict(0))
    assert (failure.value.code, failure.value.detail) == (ErrorCode.SITE_FAILED, "")
    assert 'set teacher.output = "logits"' in caplog.text


def meaning(output: str, *channels: int) -> CallableSettings:
    return CallableSettings.model_validate(
        {"kind": "callable", "function": "a:b", "output": output, "output-channels": list(channels)}
    )


def test_each_meaning_is_made_into_probabilities() -> None:
    """The logit of 0.8 is log 4; over two channels the softmax of 0 and log 4 is 0.2 and 0.8."""
    logits = np.array([0.0, np.log(4.0)], np.float32).reshape(1, 2, 1, 1)
    rows = {
        "logits": ([0.5, 0.8], logits),
        "softmax-logits": ([0.2, 0.8], logits),
        "probabilities": ([0.25, 0.75], np.array([0.25, 0.75]).reshape(1, 2, 1, 1)),
        "binary": ([1, 0], np.array([1, 0]).reshape(1, 2, 1, 1)),
        "classes": ([0, 1], np.array([2]).reshape(1, 1, 1, 1)),
    }
    for output, (wanted, raw) in rows.items():
        np.testing.assert_allclose(fitted.read(raw, meaning(output), 2).ravel(), wanted, rtol=1e-6)
        if output != "classes":
            np.testing.assert_allclose(fitted.read(raw, meaning(output, 1), 1).ravel(), wanted[1:], rtol=1e-6)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6))
def test_no_logit_is_too_large(values: list[float]) -> None:
    raw = np.array(values, np.float32).reshape(1, -1, 1, 1)
    single = fitted.activate(raw, meaning("logits"))
    np.testing.assert_allclose(single + fitted.activate(-raw, meaning("logits")), 1, atol=1e-6)
    np.testing.assert_allclose(fitted.activate(raw, meaning("softmax-logits")).sum(), 1, rtol=1e-5)


WRONG_ANSWERS: dict[str, tuple[str, np.ndarray, str]] = {
    "logits for probabilities": ("probabilities", np.full((1, 1, 2, 2), 3.5), r"\[0, 1\]; the teacher gives .* to 3.5"),
    "levels for binary": ("binary", np.full((1, 1, 2, 2), 255), "0 and 1 only"),
    "halves for classes": ("classes", np.full((1, 1, 2, 2), 0.5), "not whole"),
    "channels for classes": ("classes", np.ones((1, 2, 2, 2)), "gives 2 channels"),
    "one channel for softmax": ("softmax-logits", np.ones((1, 1, 2, 2)), "at least two"),
    "too many channels": ("logits", np.ones((1, 3, 2, 2)), "3 channels for 1 label; say in teacher.output-channels"),
    "not a number": ("logits", np.full((1, 1, 2, 2), np.nan), "NaN"),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_an_answer_that_cannot_mean_what_is_said_is_refused(name: str) -> None:
    output, raw, words = WRONG_ANSWERS[name]
    with pytest.raises(DataError, match=words):
        fitted.read(raw, meaning(output), 1)


def test_a_channel_that_is_not_there_and_an_answer_of_no_form_are_refused() -> None:
    with pytest.raises(DataError, match="names 2; there are 0 to 1"):
        fitted.read(np.zeros((1, 2, 2, 2)), meaning("logits", 2), 1)
    for answer in (np.zeros((2, 1, 4, 4)), np.zeros((4, 4)), np.array([["x"]])):
        with pytest.raises(DataError, match="1 image with numbers of the form"):
            fitted.planes(answer, 1)
    assert fitted.planes(np.ones((1, 4, 4), bool), 1).dtype == np.uint8


def test_normalisation_by_hand() -> None:
    """0, 0, 100, 100: mean 50, deviation 50."""
    image = np.array([0, 0, 100, 100], np.uint8).reshape(1, 1, 2, 2)
    rows = {
        "raw": [0, 0, 100, 100],
        "unit": [0, 0, 100 / 255, 100 / 255],
        "zscore": [-1, -1, 1, 1],
        "min-max": [0, 0, 1, 1],
    }
    for rule, wanted in rows.items():
        np.testing.assert_allclose(fitted.normalise(image, rule).ravel(), wanted, rtol=1e-6)
    np.testing.assert_allclose(
        fitted.normalise(image.repeat(3, 1), "mean-std", (0.0, 0.5, 1.0), (1.0, 0.5, 2.0))[0, :, 0, 0], [0, -1, -0.5]
    )
    for rule in ("zscore", "min-max"):
        assert not fitted.normalise(np.full((1, 1, 2, 2), 7, np.uint8), rule).any()


def test_channels_last_models_are_fed_and_read_so(tmp_path: Path) -> None:
    (tmp_path / "last_of_the_site.py").write_text(
        "import torch\n"
        "class Last(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        assert images.shape[1:] == (24, 40, 3)\n"
        "        return images[..., 1:2]\n"
    )
    teacher = {"kind": "module", "factory": "last_of_the_site:Last", "code": ".", "channels": 3, "channels-last": True}
    values = teacher | {"size": [HEIGHT, WIDTH], "output": "probabilities"}
    assert opened(tmp_path, values).predict(np.full((2, 1, 32, 32), 51, np.uint8)).round(6).ravel()[0] == 0.2


@pytest.mark.filterwarnings("ignore")  # MONAI's own, where it is installed
def test_a_monai_bundle_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.json").write_text('{"network_def": 1}')
    teacher = {"kind": "monai-bundle", "folder": "bundle", "size": 64, "output": "logits"}
    try:
        import monai  # noqa: F401 - whether it is there
    except ImportError:
        with pytest.raises(SettingsError, match=r'pip install "consilium\[monai\]"'):
            opened(tmp_path, teacher)
    with pytest.raises(StateError, match="there is no file"):
        opened(tmp_path, teacher | {"folder": "nowhere"})


@pytest.mark.filterwarnings("ignore")
def test_a_monai_bundles_network_gives_its_masks(tmp_path: Path, network: torch.nn.Module) -> None:
    """With MONAI itself, where it is installed."""
    pytest.importorskip("monai.bundle")
    bundle = tmp_path / "bundle"
    for name in ("configs", "models"):
        (bundle / name).mkdir(parents=True)
    (tmp_path / "tiny_in_a_bundle.py").write_text(NETWORK)
    sys.path.append(str(tmp_path))
    (bundle / "configs" / "inference.json").write_text(
        '{"width": 6, "network_def": {"_target_": "tiny_in_a_bundle.make", "width": "@width"}}'
    )
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    images = pictures()
    found = opened(tmp_path, {"kind": "monai-bundle", "folder": "bundle"} | TENSOR).predict(images)
    np.testing.assert_allclose(found, expected(network, images), atol=1 / 255)
