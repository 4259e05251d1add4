"""Fine-tuning trains on the images it says, measures before and after on others, and never hides which is better."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError, StateError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import dump_weights, load_student, save_student, student_card
from consilium.common.training.fine_tune import choose_images, fine_tune
from consilium.common.training.settings import FineTuningSettings, TrainingSettings
from consilium.common.wire import Score
from consilium.server.fine_tune import fine_tune_student

SMALL = NetworkSettings(name="unet", width=4)


def squares(count: int, size: int = 32) -> Labelled:
    """A bright square on black, somewhere."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, 1, size, size), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, size // 2, 2)
        mask[0, top : top + size // 2, left : left + size // 2] = 1
    images = masks * np.uint8(150) + rng.integers(0, 60, masks.shape, np.uint8)
    return Labelled(images, masks, tuple(f"{i}.png" for i in range(count)), ("",) * count)


def settings(images: int, **training: object) -> FineTuningSettings:
    values = {
        "epochs": 40,
        "batch": 8,
        "learning_rate": 3e-3,
        "device": "cpu",
        "threads": 1,
        "augment": False,
    } | training
    return FineTuningSettings(images=images, training=TrainingSettings.model_validate(values))


def test_images_to_fine_tune_on_are_as_many_as_asked_for_and_the_seed_decides_which() -> None:
    chosen, rest = choose_images([""] * 80, 50, seed=3)
    assert len(chosen) == 50
    assert sorted([*chosen, *rest]) == list(range(80))
    assert choose_images([""] * 80, 50, seed=3)[0].tolist() == chosen.tolist()
    assert choose_images([""] * 80, 50, seed=4)[0].tolist() != chosen.tolist()


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=20), st.integers(0, 25), st.integers(0, 99))
def test_no_group_is_on_both_sides_and_no_more_are_chosen_than_asked_for(
    groups: list[str], count: int, seed: int
) -> None:
    smallest = 1 if "" in groups else min(groups.count(name) for name in groups)
    if 0 < count < smallest:
        with pytest.raises(DataError, match=f"smallest one here has {smallest} images"):
            choose_images(groups, count, seed)
        return
    chosen, rest = choose_images(groups, count, seed)
    assert not {groups[i] for i in chosen} & {groups[i] for i in rest} - {""}
    assert 0 < len(chosen) <= (count or len(groups))
    if not count:
        assert len(chosen) == len(groups)


def test_a_network_is_measured_before_and_after_on_the_images_it_was_not_trained_on() -> None:
    data = squares(24)
    network = build(SMALL, 1, 1, seed=0)
    tuned = fine_tune(network, data, settings(16), seed=1)
    assert (len(tuned.chosen), tuned.before.n, tuned.after.n) == (16, 8, 8)
    assert tuned.after.mean > tuned.before.mean + 10
    assert tuned.better == "after"
    again = build(SMALL, 1, 1, seed=0)
    fine_tune(again, data, settings(16), seed=1)
    assert dump_weights(again) == dump_weights(network)


@pytest.mark.parametrize(("before", "after", "better"), [(50, 49.9, "before"), (50, 50, "before"), (50, 50.1, "after")])
def test_what_is_worse_or_no_better_is_not_called_better(before: float, after: float, better: str) -> None:
    scores = iter([Score(mean=before, std=0, n=1), Score(mean=after, std=0, n=1)])
    tuned = fine_tune(
        build(SMALL, 1, 1, 0), squares(4), settings(0, epochs=1), seed=0, measure=lambda _network: next(scores)
    )
    assert tuned.better == better
    assert tuned.facts()["images"] == 4


def write(folder: Path, data: Labelled) -> Path:
    for kind, planes in (("images", data.images), ("masks", data.masks * np.uint8(255))):
        (folder / kind).mkdir(parents=True)
        for name, plane in zip(data.sources, planes, strict=True):
            Image.fromarray(plane[0]).save(folder / kind / name)
    return folder


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A run folder with an untrained student, whose study fine-tunes on 12 images."""
    torch.set_num_threads(1)
    recipe = settings(12, epochs=2).model_dump(mode="json", by_alias=True) | {"sites": ["north"]}
    card = student_card(SMALL, 1, 1, 32) | {"labels": ["lesion"], "settings": {"seed": 5, "fine-tune": recipe}}
    save_student(tmp_path / "run" / "student", build(SMALL, 1, 1, seed=0), card)
    return tmp_path / "run"


def test_the_coordinator_fine_tunes_a_copy_and_says_which_images_served_for_what(student: Path, tmp_path: Path) -> None:
    before = (student / "student" / "student.safetensors").read_bytes()
    tuned, folder = fine_tune_student(student, write(tmp_path / "clinic", squares(20)))
    assert folder == student / "student" / "fine_tuned"
    assert (student / "student" / "student.safetensors").read_bytes() == before
    network, card = load_student(folder)
    assert dump_weights(network) != before
    assert card["fine_tuned"] == tuned.facts()
    assert (card["fine_tuned"]["images"], card["fine_tuned"]["before"]["n"]) == (12, 8)
    with (folder / "images.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["used_for"] for row in rows].count("training") == 12
    assert {path.name for path in folder.iterdir()} == {
        "card.json",
        "images.csv",
        "student.onnx",
        "student.safetensors",
    }


def test_a_fine_tuned_student_is_replaced_only_by_force(student: Path, tmp_path: Path) -> None:
    clinic = write(tmp_path / "clinic", squares(6))
    fine_tune_student(student / "student", clinic, images=4)
    with pytest.raises(StateError, match="--force"):
        fine_tune_student(student, clinic, images=3)
    fine_tune_student(student, clinic, images=3, force=True)
    assert json.loads((student / "student" / "fine_tuned" / "card.json").read_text())["fine_tuned"]["images"] == 3


def test_a_student_is_not_tested_on_the_images_it_was_fine_tuned_on(student: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 5 labelled images; all would be trained on"):
        fine_tune_student(student, write(tmp_path / "clinic", squares(5)))
    with pytest.raises(DataError, match="holds no student"):
        fine_tune_student(tmp_path, tmp_path / "clinic")
