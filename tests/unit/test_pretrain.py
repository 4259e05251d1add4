"""A network that begins with a file's weights is that network; what synthetic ultrasound made of one is such a file."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from consilium.clients.settings import SiteHome, SiteSettings
from consilium.clients.train import train_teacher
from consilium.common import catalogue
from consilium.common.catalogue import CatalogueImage
from consilium.common.datasets import labelled
from consilium.common.errors import SettingsError, StateError
from consilium.common.identity.signing import make_signing_key
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import CARD_NAME, WEIGHTS_NAME, load_student, save_student, student_card
from consilium.common.networks.weights import dump_weights
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.common.training.loop import Progress
from consilium.common.training.settings import TrainingSettings
from consilium.server.cli import app
from consilium.server.distill import distill
from consilium.server.inquiry import Post
from consilium.server.ledger import Ledger
from consilium.server.pretrain import of_a_start, pretrain, synthetic
from consilium.server.run_folder import RunFolder
from consilium.server.study_run import StudyRun

UNET = NetworkSettings(name="unet", width=4)
STUDY = Study.model_validate(
    {
        "name": "short",
        "sites": ["north"],
        "image": {"size": 48, "channels": 3},
        "labels": ["lesion", "cyst"],
        "student": {
            "network": {"name": "unet", "width": 4},
            "training": {"image-budget": 8, "threads": 1, "checkpoint-every-s": 0},
        },
    }
)


def saved(folder: Path, seed: int = 3) -> Path:
    save_student(folder, build(UNET, 1, 1, seed), student_card(UNET, 1, 1, 48))
    return folder / WEIGHTS_NAME


def beginning_with(path: Path) -> NetworkSettings:
    return UNET.model_copy(update={"weights": str(path)})


def test_a_network_begins_with_the_weights_of_a_file_whatever_its_seed(tmp_path: Path) -> None:
    module = build(beginning_with(saved(tmp_path)), 1, 1, seed=8)
    assert dump_weights(module) == dump_weights(build(UNET, 1, 1, seed=3)) != dump_weights(build(UNET, 1, 1, seed=8))


@pytest.mark.parametrize(
    ("network", "channels", "classes"),
    [({"width": 8}, 1, 1), ({"name": "attention-unet"}, 1, 1), ({}, 3, 1), ({}, 1, 2)],
    ids=["width", "network", "channels", "labels"],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, network: dict[str, object], channels: int, classes: int
) -> None:
    other = beginning_with(saved(tmp_path)).model_copy(update=network)
    with pytest.raises(SettingsError, match=r"does not fit this network: .*tensor.* Give a student\.safetensors"):
        build(other, channels, classes, seed=0)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.safetensors"):
        build(beginning_with(tmp_path / "gone.safetensors"), 1, 1, seed=0)


@pytest.mark.parametrize("weights", ["imagenet", "student.pth", ""])
def test_weights_are_a_safetensors_file_or_none(weights: str) -> None:
    with pytest.raises(ValidationError, match="weights"):
        NetworkSettings(name="unet", weights=weights)


def test_a_student_that_cannot_begin_so_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    begun = {"network": {"name": "unet", "width": 8, "weights": str(saved(tmp_path))}}
    study = Study.model_validate({"name": "s", "sites": ["a"], "image": {"size": 48}, "student": begun})
    image = CatalogueImage(np.zeros((1, 48, 48), np.uint8), "x")
    listed = catalogue.build(tmp_path / "catalogue", "c", [image], make_signing_key(tmp_path / "key"))
    run = RunFolder(tmp_path / "run")
    run.create(study)
    with pytest.raises(SettingsError, match="does not fit this network"):
        StudyRun(run, study, listed, Ledger.open(run.ledger)).describe(cast(Post, None))  # asks nobody


def test_whole_weights_and_an_encoders_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="leave encoder-weights out"):
        NetworkSettings(name="deeplabv3plus", encoder_weights="imagenet", weights="a.safetensors")


def test_a_student_of_no_step_worth_speaking_of_is_what_it_began_with(tmp_path: Path) -> None:
    path = saved(tmp_path)
    training = STUDY.student.training.model_copy(update={"image_budget": 4, "learning_rate": 1e-12, "ema": 0.0})
    settings = STUDY.student.model_copy(
        update={"network": beginning_with(path), "training": training, "image_weights": "none"}
    )
    images, masks = synthetic(4, (1, 1, 48), 1)
    student, _ = distill(images, masks, settings, seed=5)
    before, after = load_student(tmp_path)[0].state_dict(), student.state_dict()
    for name, tensor in before.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):  # they move without a step
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9)


def test_synthetic_images_come_from_every_hospital_in_the_studys_form() -> None:
    images, masks = synthetic(6, (3, 2, 48), 0)
    assert (images.shape, masks.shape) == ((6, 3, 48, 48), (6, 2, 48, 48))
    assert set(np.unique(masks)) == {0, 255}
    np.testing.assert_array_equal(images[:, 0], images[:, 2])
    np.testing.assert_array_equal(masks[:, 0], masks[:, 1])
    assert masks.any(axis=(1, 2, 3)).all()


def test_a_start_is_augmented_to_its_end_whatever_the_student_is() -> None:
    student = TrainingSettings(epochs=4, batch=2, augment_until=0.5, dice_share=0.75)
    wanted = TrainingSettings(image_budget=30, batch=2, augment_until=1.0, dice_share=0.75)
    assert of_a_start(student, 30) == wanted


def test_pretraining_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def stop(at: Progress) -> None:
        if at.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(STUDY, tmp_path / "stopped", images=8, budget=16, on_step=stop)
    parts = [pretrain(STUDY, tmp_path / name, images=8, budget=16).read_bytes() for name in ("stopped", "whole")]
    assert parts[0] == parts[1]
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["card.json", WEIGHTS_NAME]


def test_weights_that_are_there_are_not_made_anew(tmp_path: Path) -> None:
    pretrain(STUDY, tmp_path, images=8, budget=4)
    with pytest.raises(StateError, match="is there already"):
        pretrain(STUDY, tmp_path, images=8, budget=4)


def test_the_command_says_what_to_write_into_the_study(tmp_path: Path) -> None:
    settings, out = tmp_path / "study.toml", tmp_path / "start"
    settings.write_text(
        'name = "short"\nsites = ["north"]\n[image]\nsize = 48\n[student.network]\nname = "unet"\nwidth = 4\n'
        '[simulation]\nsource = "phantoms"\n'
    )
    told = CliRunner().invoke(
        app, ["pretrain", str(settings), "--out", str(out), "--images", "8", "--budget", "8"], catch_exceptions=False
    )
    assert told.exit_code == 0, told.output
    assert f'[student.network]\n  weights = "{out / WEIGHTS_NAME}"' in told.output
    study = Study.model_validate({"name": "next", "sites": ["a"], "student": {"network": {"name": "unet", "width": 4}}})
    build(study.student.network.model_copy(update={"weights": str(out / WEIGHTS_NAME)}), 1, 1, seed=0)
    assert '[teacher.network]\n  name = "unet"\n  width = 4\n  weights = "/where/the/copy/is/' in told.output


def test_a_sites_teacher_begins_with_a_file_too_and_its_card_does_not_name_it(tmp_path: Path) -> None:
    def trained(name: str, **weights: str) -> dict[str, torch.Tensor]:
        document = {
            "name": name,
            "teacher": {"network": {"name": "unet", "width": 4} | weights, "size": 48},
            "training": {"image-budget": 8, "learning-rate": 1e-12, "threads": 1},
            "data": {"size": 48},
        }
        home = SiteHome(parse(SiteSettings, document, name), tmp_path / name)
        images, masks = synthetic(8, (1, 1, 48), 1)
        for folder in (home.train_set, home.test_set):
            labelled.pack(folder, labelled.Labelled(images, masks // 255, ("",) * 8, ("",) * 8))
        train_teacher(home)
        assert WEIGHTS_NAME not in (home.teacher / CARD_NAME).read_text()
        return load_student(home.teacher)[0].state_dict()

    start = load_student(saved(tmp_path / "saved").parent)[0].state_dict()
    begun, fresh = trained("begun", weights=str(tmp_path / "saved" / WEIGHTS_NAME)), trained("fresh")
    kernels = [name for name, tensor in start.items() if tensor.ndim == 4]
    assert all(torch.allclose(begun[name], start[name], rtol=0, atol=1e-9) for name in kernels)
    assert not any(torch.allclose(fresh[name], start[name], rtol=0, atol=1e-9) for name in kernels)
