"""The networks are those that were published, and a seed decides them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from consilium.common import torchvision_ops
from consilium.common.errors import SettingsError
from consilium.common.networks.build import build, count_parameters
from consilium.common.networks.encoders import smp
from consilium.common.networks.layers import group_count
from consilium.common.networks.settings import NetworkSettings

SMALL = {
    "unet": NetworkSettings(name="unet", width=4),
    "attention-unet": NetworkSettings(name="attention-unet", width=4),
    "sdu-net": NetworkSettings(name="sdu-net", width=16),
    "panoptic-fpn": NetworkSettings(name="panoptic-fpn", encoder="tu-test_efficientnet", width=4),
    "deeplabv3plus": NetworkSettings(name="deeplabv3plus", encoder="tu-test_efficientnet", width=4),
    "smp:linknet": NetworkSettings(name="smp:linknet", encoder="tu-test_efficientnet"),
}
every_small_network = pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small to share among cores
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "gray", "colour"),
    [
        ("unet", 14_787_777, 14_788_929),
        ("attention-unet", 34_877_421, 34_878_573),
        ("sdu-net", 5_997_681, 5_998_257),
        ("panoptic-fpn", 13_040_961, 13_047_233),
        ("deeplabv3plus", 12_323_025, 12_329_297),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, gray: int, colour: int) -> None:
    settings = NetworkSettings(name=name)
    assert [count_parameters(build(settings, channels, 1, seed=0)) for channels in (1, 3)] == [gray, colour]


@every_small_network
def test_logits_have_the_size_of_the_image_and_one_plane_a_label(settings: NetworkSettings) -> None:
    network = build(settings, in_channels=3, classes=2, seed=0).eval()
    for height, width in ((32, 64), (37, 50)):
        assert network(torch.zeros(2, 3, height, width)).shape == (2, 2, height, width)


@every_small_network
def test_the_seed_alone_decides_the_weights_and_the_global_state_stays(settings: NetworkSettings) -> None:
    before = torch.random.get_rng_state()
    first = build(settings, 1, 1, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again = build(settings, 1, 1, seed=5).state_dict()
    other = build(settings, 1, 1, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_small_network
def test_group_norm_leaves_no_batch_norm_and_every_image_is_judged_alone(settings: NetworkSettings) -> None:
    network = build(settings.model_copy(update={"norm": "group"}), 1, 1, seed=0)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    images = torch.rand(2, 1, 64, 64)
    together = network(images)  # in training mode: batch normalisation would mix the images
    alone = torch.cat([network(images[:1]), network(images[1:])])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (48, 16), (24, 8), (8, 4), (2, 1), (3, 1), (1, 1)]
)
def test_group_counts_divide_and_leave_two_channels_a_group(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


def test_a_wide_network_sees_a_padded_image_as_one_with_its_edge_repeated() -> None:
    network = build(SMALL["unet"], 1, 1, seed=0).eval()
    image = torch.rand(1, 1, 40, 64)
    by_hand = nn.functional.pad(image, (0, 0, 12, 12), mode="replicate")
    assert torch.equal(network(image), network(by_hand)[:, :, 12:52])


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="sdu-net"):
        NetworkSettings(name="vnet")
    with pytest.raises(SettingsError, match="segformer"):
        build(NetworkSettings(name="smp:vnet"), 1, 1, 0)
    with pytest.raises(SettingsError, match="no-such-encoder"):
        build(NetworkSettings(name="deeplabv3plus", encoder="no-such-encoder"), 1, 1, 0)
    with pytest.raises(SettingsError, match="sdu-net"):
        build(SMALL["unet"].model_copy(update={"name": "vnet"}), 1, 1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "sdu-net", "width": 8},
        {"name": "unet", "encoder_weights": "imagenet"},
        {"name": "smp:unet", "width": 8},
    ],
)
def test_settings_that_cannot_be_built_are_faults(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NetworkSettings.model_validate(wrong)


def colour_encoder() -> nn.Module:
    encoder: nn.Module = smp().encoders.get_encoder("tu-test_efficientnet", in_channels=3)
    return encoder


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_local_encoder_weights_give_a_gray_image_what_the_same_image_in_colour_gave(
    tmp_path: Path, ending: str
) -> None:
    source, path = colour_encoder().eval(), tmp_path / f"encoder{ending}"
    weights = {**source.state_dict(), "classifier.weight": torch.zeros(3)}
    save_file(weights, path) if ending == ".safetensors" else torch.save(weights, path)
    settings = SMALL["panoptic-fpn"].model_copy(update={"encoder_weights": str(path)})
    loaded = build(settings, 1, 1, seed=0).get_submodule("network.encoder").eval()
    gray = torch.rand(1, 1, 64, 64)
    for got, wanted in zip(loaded(gray)[1:], source(gray.expand(-1, 3, -1, -1))[1:], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_encoder_files_that_lack_a_tensor_or_are_no_tensors_are_refused(tmp_path: Path) -> None:
    weights = colour_encoder().state_dict()
    lacking, foreign, text = tmp_path / "lacking.safetensors", tmp_path / "foreign.pth", tmp_path / "text.pth"
    save_file({key: value for key, value in weights.items() if key != "model.bn1.weight"}, lacking)
    torch.save({"run": subprocess.Popen}, foreign)
    text.write_text("not a file of tensors")
    for path, words in (
        (lacking, "model.bn1.weight"),
        (foreign, "tensors"),
        (text, "tensors"),
        (tmp_path / "no.pth", "no.pth"),
    ):
        with pytest.raises(SettingsError, match=words):
            build(SMALL["panoptic-fpn"].model_copy(update={"encoder_weights": str(path)}), 1, 1, seed=0)


def test_declaring_the_operators_again_declares_nothing() -> None:
    smp()
    before = list(torchvision_ops._declared)
    torchvision_ops.declare_missing_operators()
    assert torchvision_ops._declared == before
    assert all(hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms"))


def test_reading_settings_loads_no_torch() -> None:
    code = "import consilium.common.networks.settings, consilium.common.training.settings, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
