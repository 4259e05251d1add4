"""A results folder of nnU-Net as a teacher: the masks of nnU-Net itself, where it is installed, and what is said of faults."""

import importlib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consilium.clients.teachers import nnunet
from consilium.clients.teachers.card import fingerprint
from consilium.clients.teachers.opening import open_untempered
from consilium.clients.teachers.settings import NnunetSettings
from consilium.common.errors import ConsiliumError, SettingsError, StateError
from tests.unit.test_teacher_formats import home, opened, pictures

TRAINER = "nnUNetTrainer.nnUNetTrainer"
VARIANT = "variants.training_length.nnUNetTrainer_Xepochs.nnUNetTrainer_5epochs"
IS_INSTALLED = importlib.util.find_spec("nnunetv2") is not None
SIZE = 40
TEACHER = {"kind": "nnunet", "folder": "results", "size": "native"}
CLASSES = {"background": 0, "tumour": 1, "Cyst wall": 2}
REGIONS = {"background": 0, "whole": [1, 2], "tumour": 2}


def described(labels: dict[str, Any], channels: int = 1) -> dict[str, Any]:
    """A ``dataset.json``."""
    return {
        "channel_names": {str(i): "gray" for i in range(channels)},
        "labels": labels,
        "regions_class_order": [1, 2],
        "numTraining": 2,
        "file_ending": ".png",
    }


def checkpoint(**changes: Any) -> dict[str, Any]:
    """What nnU-Net keeps, with a network of one layer; the score is a numpy number, as there."""
    return {
        "network_weights": {"layer": torch.zeros(2, 1, 3, 3)},
        "_best_ema": np.float64(0.5),
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.5)]},
        "init_args": {"configuration": "2d", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
    } | changes


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder with results that look like nnU-Net's."""
    results = tmp_path / "results"
    (results / "fold_0").mkdir(parents=True)
    (results / "dataset.json").write_text(json.dumps(described(CLASSES)))
    (results / "plans.json").write_text("{}")
    torch.save(checkpoint(), results / "fold_0" / "checkpoint_final.pth")
    return tmp_path


def test_classes_have_channels_by_number_and_regions_by_place() -> None:
    assert nnunet.channels(CLASSES) == {"tumour": 1, "cyst-wall": 2}
    assert nnunet.channels({"b": 2, "a": [1], "background": 0, "ignore": 3}) == {"b": 2, "a": 1}
    assert nnunet.channels(REGIONS) == {"whole": 0, "tumour": 1}


def test_a_label_without_a_channel_gets_that_of_its_name(site: Path) -> None:
    settings = NnunetSettings.model_validate(TEACHER)
    assert nnunet.with_channels(settings, site, ["cyst-wall", "tumour"]).output_channels == (2, 1)
    told = settings.model_copy(update={"output_channels": (1,)})
    assert nnunet.with_channels(told, site, ["mass"]) == told


def test_all_folds_that_are_there_are_used_and_fold_all_where_there_is_no_other(site: Path) -> None:
    def names(**changes: Any) -> list[str]:
        settings = NnunetSettings.model_validate(TEACHER | changes)
        return [path.relative_to(site / "results").as_posix() for path in settings.checkpoints(site)]

    final = "checkpoint_final.pth"
    (site / "results" / "fold_all").mkdir()
    (site / "results" / "fold_all" / final).touch()
    for fold in (10, 2, 3):
        (site / "results" / f"fold_{fold}").mkdir()
    for fold in (10, 2):
        (site / "results" / f"fold_{fold}" / final).touch()
    assert names() == [f"fold_0/{final}", f"fold_2/{final}", f"fold_10/{final}"]
    assert names(folds=[3, "all"]) == [f"fold_3/{final}", f"fold_all/{final}"]
    assert names(checkpoint="checkpoint_best.pth") == ["fold_all/checkpoint_best.pth"]


def test_what_is_checked_is_bound_to_every_file_of_the_results(site: Path) -> None:
    results = site / "results"
    seen = {fingerprint(home(site, TEACHER))}
    for name in ("dataset.json", "plans.json", "fold_0/checkpoint_final.pth"):
        with (results / name).open("ab") as file:
            file.write(b" ")
        seen.add(fingerprint(home(site, TEACHER)))
    (results / "fold_1").mkdir()
    (results / "fold_1" / "checkpoint_final.pth").write_text("another fold")
    seen.add(fingerprint(home(site, TEACHER)))
    assert len(seen) == 5


def _gone(name: str) -> Callable[[Path], None]:
    return lambda results: (results / name).unlink()


def _written(name: str, text: str) -> Callable[[Path], None]:
    def write(results: Path) -> None:
        (results / name).write_text(text)

    return write


def _saved(**changes: Any) -> Callable[[Path], None]:
    return lambda results: torch.save(checkpoint(**changes), results / "fold_0" / "checkpoint_final.pth")


def _nothing(results: Path) -> None:
    pass


FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, Any], type[ConsiliumError], str]] = {
    "no dataset.json": (_gone("dataset.json"), {}, StateError, r"there is no file .*dataset\.json"),
    "no plans.json": (_gone("plans.json"), {}, StateError, r"there is no file .*plans\.json"),
    "another dataset.json": (
        _written("dataset.json", '{"labels": {"0": "background"}, "modality": {"0": "US"}}'),
        {},
        StateError,
        r"no dataset\.json of nnU-Net v2: labels\.0",
    ),
    "no such fold": (
        _nothing,
        {"folds": [0, 1]},
        StateError,
        r"results has no fold_1/checkpoint_final\.pth; it has fold_0/checkpoint_final\.pth$",
    ),
    "no such checkpoint": (_nothing, {"checkpoint": "x.pth"}, StateError, r"no fold_all/x\.pth; it has fold_0/checkp"),
    "no fold": (_gone("fold_0/checkpoint_final.pth"), {}, StateError, "it has no checkpoint at all"),
    "a network for volumes": (
        _saved(network_weights={"layer": torch.zeros(2, 1, 3, 3, 3)}, init_args={"configuration": "3d_fullres"}),
        {},
        SettingsError,
        "is of configuration 3d_fullres, for volumes; .*__2d",
    ),
    "more than numbers": (
        _saved(logging=pathlib.PurePosixPath("x")),
        {},
        StateError,
        r"objects that are not unpickled here, pathlib\.PurePosixPath",
    ),
    "another checkpoint": (_saved(init_args={}), {}, StateError, "no checkpoint of nnU-Net v2: KeyError: 'config"),
    "a damaged checkpoint": (
        _written("fold_0/checkpoint_final.pth", "x"),
        {},
        StateError,
        r"checkpoint_final\.pth is no checkpoint of nnU-Net v2",
    ),
    "another number of channels": (_nothing, {"channels": 3}, SettingsError, "teacher.channels is 3; by .* it is 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_results_that_cannot_be_used_say_why(name: str, site: Path) -> None:
    spoil, changes, kind, words = FAULTS[name]
    spoil(site / "results")
    with pytest.raises(kind, match=words):
        opened(site, TEACHER | changes, labels=["tumour"])


def test_a_label_that_nnunet_does_not_know_is_named(site: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"labels: mass is not among .*: tumour \(channel 1\), cyst-wall \(channel 2\)"
    ):
        opened(site, TEACHER, labels=["tumour", "mass"])


def test_nnunets_own_loading_is_kept_from_unpickling_objects(site: Path) -> None:
    """It asks torch for everything; see `test_results_that_cannot_be_used_say_why` for what is refused before."""
    path = site / "results" / "fold_0" / "checkpoint_final.pth"
    with nnunet._numbers_only():
        assert torch.load(path, weights_only=False)["_best_ema"] == 0.5
    torch.save(checkpoint(logging=pathlib.PurePosixPath("x")), path)
    with nnunet._numbers_only(), pytest.raises(Exception, match="Unsupported global: GLOBAL pathlib"):
        torch.load(path, weights_only=False)
    assert torch.load(path, weights_only=False)["logging"] == pathlib.PurePosixPath("x")


@pytest.mark.skipif(IS_INSTALLED, reason="nnU-Net is installed")
def test_what_to_install_is_said(site: Path) -> None:
    with pytest.raises(SettingsError, match=r'pip install "consilium\[nnunet\]"'):
        opened(site, TEACHER, labels=["tumour"])


# What follows needs nnU-Net.

needs_nnunet = pytest.mark.skipif(not IS_INSTALLED, reason="nnU-Net is not installed")


def plans(channels: int, normalisation: str, spacing: float = 1.0) -> dict[str, Any]:
    """Plans of a small 2-D network; its windows are smaller than the images."""
    operations = {"conv_op": "torch.nn.modules.conv.Conv2d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d"}
    linear = ("resampling_fn_data", "resampling_fn_probabilities", "resampling_fn_seg")
    resampling = dict.fromkeys(linear, "resample_data_or_seg_to_shape") | {
        f"{name}_kwargs": {"is_seg": name.endswith("seg"), "order": 1, "order_z": 0, "force_separate_z": None}
        for name in linear
    }
    configuration = resampling | {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24, 32],
        "median_image_size_in_voxels": [SIZE, SIZE],
        "spacing": [spacing, spacing],
        "normalization_schemes": [normalisation] * channels,
        "use_mask_for_norm": [False] * channels,
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": operations
            | {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "kernel_sizes": [[3, 3], [3, 3]],
                "strides": [[1, 1], [2, 2]],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset501_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, SIZE, SIZE],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): {"mean": 120.0, "std": 60.0, "percentile_00_5": 5.0, "percentile_99_5": 250.0}
            for i in range(channels)
        },
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Let nnU-Net's own trainer write a results folder of two folds, with first weights."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))

        def write(folder: Path, told: dict[str, Any], dataset: dict[str, Any], trainer_name: str = TRAINER) -> Path:
            module, _, name = trainer_name.rpartition(".")
            make = getattr(importlib.import_module(f"nnunetv2.training.nnUNetTrainer.{module}"), name)

            data = root / "preprocessed" / "Dataset501_Tiny" / "nnUNetPlans_2d"
            data.mkdir(parents=True, exist_ok=True)
            (data / "case.b2nd").touch()
            results = folder / "results"
            for fold in (0, 1):
                (results / f"fold_{fold}").mkdir(parents=True)
                trainer = make(
                    json.loads(json.dumps(told)) | {"continue_training": False},
                    "2d",
                    fold,
                    dataset,
                    torch.device("cpu"),
                )
                with torch.random.fork_rng():
                    torch.manual_seed(fold)
                    trainer.initialize()
                with torch.no_grad():
                    for weights in trainer.network.decoder.seg_layers.parameters():
                        weights.mul_(4.0)  # something to agree about
                trainer.inference_allowed_mirroring_axes = (0, 1)
                trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
                trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
                trainer.save_checkpoint(str(results / f"fold_{fold}" / "checkpoint_final.pth"))
            (results / "plans.json").write_text(json.dumps(told))
            (results / "dataset.json").write_text(json.dumps(dataset))
            return folder

        yield write


def nnunets_own(site: Path, images: np.ndarray, place: Path, folds: tuple[int, ...]) -> np.ndarray:
    """What nnU-Net's prediction of PNG files says: (n, channels, H, W)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    for number, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(place / f"case{number}_0000.png")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(site / "results"), folds)
    files = [[str(place / f"case{number}_0000.png")] for number in range(len(images))]
    predictor.predict_from_files_sequential(
        files, [str(place / f"case{number}") for number in range(len(images))], save_probabilities=True
    )
    return np.stack([np.load(place / f"case{n}.npz")["probabilities"][:, 0] for n in range(len(images))])


@needs_nnunet
@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("normalisation", ["ZScoreNormalization", "CTNormalization"])
def test_classes_are_the_probabilities_that_nnunet_itself_writes(
    normalisation: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    site = trained(tmp_path, plans(1, normalisation), described(CLASSES))
    images = pictures(2, size=SIZE)
    images[1, 0, :9] = 0  # nnU-Net leaves out a margin of zeros
    for folds in ((0, 1), (1,)):
        place = tmp_path / f"{normalisation}{len(folds)}"
        place.mkdir()
        wanted = nnunets_own(site, images, place, folds)
        found = opened(site, TEACHER | {"folds": list(folds)}, labels=["cyst-wall", "tumour"]).predict(images)
        assert wanted[:, 1:].std() > 0.05
        np.testing.assert_array_equal(found, wanted[:, [2, 1]])


@needs_nnunet
@pytest.mark.filterwarnings("ignore")
def test_regions_overlap_and_colour_has_three_channels(trained: Callable[..., Path], tmp_path: Path) -> None:
    """With one of the many trainers that nnU-Net has."""
    site = trained(tmp_path, plans(3, "RGBTo01Normalization"), described(REGIONS, 3), VARIANT)
    images = pictures(2, 3, SIZE)
    place = tmp_path / "own"
    place.mkdir()
    found = opened(site, TEACHER | {"channels": 3}, labels=["tumour", "whole"]).predict(images)
    wanted = nnunets_own(site, images, place, (0, 1))
    assert wanted.sum(1).max() > 1.05  # which exclusive classes never have
    np.testing.assert_array_equal(found, wanted[:, [1, 0]])


@needs_nnunet
@pytest.mark.filterwarnings("ignore")
def test_spacing_and_the_order_of_axes_of_its_training_images_change_nothing(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """A teacher of slices of volumes is given an image as one of its slices, without resampling."""
    images = pictures(1, size=SIZE)
    masks = []
    for name, changes, spacing in (("plain", {}, 1.0), ("turned", {"transpose_forward": [2, 0, 1]}, 0.3)):
        (tmp_path / name).mkdir()
        told = plans(1, "ZScoreNormalization", spacing) | changes
        told["transpose_backward"] = np.argsort(told["transpose_forward"]).tolist()
        site = trained(tmp_path / name, told, described(CLASSES))
        masks.append(opened(site, TEACHER | {"size": [32, 48]}, labels=["tumour"]).predict(images))
    assert masks[0].shape == (1, 1, SIZE, SIZE)
    np.testing.assert_array_equal(masks[0], masks[1])


@needs_nnunet
@pytest.mark.filterwarnings("ignore")
def test_a_black_image_and_no_mirroring_are_answered(trained: Callable[..., Path], tmp_path: Path) -> None:
    site = trained(tmp_path, plans(1, "ZScoreNormalization"), described(CLASSES))
    images = pictures(1, size=SIZE)
    plain, mirrored = (
        opened(site, TEACHER | {"mirrored": mirrored}, labels=["tumour"]).predict(images) for mirrored in (False, True)
    )
    assert np.abs(plain - mirrored).max() > 0.01
    black = open_untempered(home(site, TEACHER, labels=["tumour"])).predict(np.zeros_like(images))
    assert np.isfinite(black).all()
