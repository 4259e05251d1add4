"""A site sees a study's labels in its own words, and a study whose sites know different labels ends with a whole student."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.clients.settings import SiteHome, SiteSettings
from consilium.clients.site import Site
from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import soft_mask, wire
from consilium.common.catalogue import CatalogueImage, build, image_id
from consilium.common.datasets import label_folder, labelled
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError, SettingsError, StudyError
from consilium.common.identity.signing import make_signing_key
from consilium.common.labels import positions, view
from consilium.common.networks.build import build as build_network
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import load_student
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.common.training.fine_tune import fine_tune
from consilium.common.training.settings import FineTuningSettings, TrainingSettings
from consilium.server.app import run_stages
from consilium.server.ledger import Ledger
from consilium.server.report.tables import best_teacher, label_table
from consilium.server.run_folder import RunFolder
from consilium.server.study_run import StudyRun
from consilium.server.weighting import self_dice
from tests.federation_in_memory import SitesInMemory

SIZE = 32


def planes(*levels: int) -> np.ndarray:
    """One image of one pixel, a level for each channel."""
    return np.array(levels, np.uint8).reshape(1, -1, 1, 1)


def test_a_label_of_the_same_name_is_meant_and_comes_in_the_order_of_the_study() -> None:
    seen = view(["a", "b", "c"], ["c", "a"], {})
    assert (seen.known, seen.sources) == ((0, 2), ((1,), (0,)))
    assert seen.take(planes(10, 20)).ravel().tolist() == [20, 10]


def test_labels_of_a_site_are_renamed_and_united() -> None:
    """The study's lesion is what the site tells apart as benign and malignant: the larger level counts."""
    seen = view(["lesion", "vessel"], ["benign", "malignant", "artery"], {"lesion": ["benign", "malignant"]})
    assert seen.known == (0,)
    assert seen.take(planes(10, 200, 99)).ravel().tolist() == [200]
    assert view(["vessel"], ["benign", "artery"], {"vessel": ["artery"]}).take(planes(1, 2)).ravel().tolist() == [2]


def test_a_site_may_say_that_its_label_of_that_name_is_another_thing() -> None:
    assert view(["mass"], ["mass"], {"mass": []}).known == ()


@given(st.integers(1, 5))
def test_the_same_labels_leave_masks_alone(count: int) -> None:
    names = [f"l{i}" for i in range(count)]
    masks = np.zeros((2, count, 3, 3), np.uint8)
    assert view(names, names, {}).take(masks) is masks


def test_only_a_studys_labels_count() -> None:
    assert positions(["a", "b"], ["b", "x", "b"]) == (1,)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"labels": ["a", "a"]}, "every label is named once"),
        ({"labels": ["a"], "label-map": {"lesion": ["a", "b"]}}, "label-map.lesion names b, not among the labels a"),
    ],
)
def test_a_label_map_names_the_sites_labels(values: dict[str, object], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        parse(SiteSettings, {"name": "north"} | values, "site.toml")


# ---- folders


def test_a_folder_has_the_masks_of_each_label_in_its_own_folder(tmp_path: Path) -> None:
    for place, label in enumerate(("cyst", "mass")):
        (tmp_path / "masks" / label).mkdir(parents=True)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, place * 16 : place * 16 + 16] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / label / "1_mask.png")
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((SIZE, SIZE), 7, np.uint8)).save(tmp_path / "images" / "1.png")
    data = label_folder.read(tmp_path, SIZE, 1, ["mass", "cyst"])
    assert data.masks[0, :, 0, [0, 31]].tolist() == [[0, 1], [1, 0]]
    assert label_folder.read(tmp_path, SIZE, 1, ["cyst"]).masks.shape == (1, 1, SIZE, SIZE)
    with pytest.raises(DataError, match="no folder for vessel"):
        label_folder.read(tmp_path, SIZE, 1, ["mass", "vessel"])
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / "images" / "2.png")
    with pytest.raises(DataError, match=r"an empty one where it shows no such target; 1 of 2 have none: 2\.png"):
        label_folder.read(tmp_path, SIZE, 1, ["mass", "cyst"])


# ---- fine-tuning with the ground truth of some labels


def test_fine_tuning_leaves_labels_without_ground_truth_out_of_the_loss() -> None:
    torch.set_num_threads(1)
    network = build_network(NetworkSettings(name="unet", width=4), 1, 2, seed=0)
    last = [parameter for parameter in network.parameters() if parameter.shape[0] == 2]
    before = [parameter.detach().clone() for parameter in last]
    data = shapes(4, seed=0)
    training = TrainingSettings(epochs=2, batch=4, learning_rate=1e-2, device="cpu", threads=1)
    fine_tune(
        network,
        Labelled(data.images, data.masks[:, 1:], data.sources, data.groups),
        FineTuningSettings(images=0, training=training),
        seed=0,
        channels=[1],
    )
    assert last
    for old, new in zip(before, last, strict=True):
        assert torch.equal(old[0], new[0])  # what gives label 0 saw no gradient
        assert not torch.equal(old[1], new[1])


# ---- a whole study of three sites that know different labels


def shapes(count: int, seed: int) -> Labelled:
    """On gray, a bright disc, label a, and a dark one, label b."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    images, masks = np.empty((count, 1, SIZE, SIZE), np.uint8), np.empty((count, 2, SIZE, SIZE), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        side = rng.permutation([9, 23])
        for label in range(2):
            centre, radius = (rng.integers(9, 23), side[label]), rng.uniform(4, 7)
            mask[label] = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        image[0] = np.clip(128 + 100.0 * mask[0] - 100.0 * mask[1] + rng.normal(0, 8, (SIZE, SIZE)), 0, 255)
    names = tuple(f"shape {seed} {i}" for i in range(count))
    return Labelled(images, masks, names, ("",) * count)


def bright(images: torch.Tensor, slope: float = 20) -> torch.Tensor:
    return torch.sigmoid(slope * (images - 0.7))


def dark(images: torch.Tensor, slope: float = 20) -> torch.Tensor:
    return torch.sigmoid(slope * (0.3 - images))


def both(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([bright(images), dark(images)], 1)


def dark_first(images: torch.Tensor) -> torch.Tensor:
    """The site in the west is less sure."""
    return torch.cat([dark(images, 10), bright(images, 10)], 1)


TEACHERS = {
    "north": (both, {"labels": ["a", "b"]}, [0, 1]),
    "east": (bright, {"labels": ["a"]}, [0]),
    "west": (dark_first, {"labels": ["b", "c"], "label-map": {"a": ["c"]}}, [1, 0]),
}


def open_sites(root: Path, names: tuple[str, ...]) -> SitesInMemory:
    sites = {}
    for number, name in enumerate(names):
        teacher, labels, rows = TEACHERS[name]
        values = {
            "name": name,
            "policy": {"auto-approve": True, "min-images": 1, "sealed": False},
            "training": {"epochs": 1, "threads": 1, "device": "cpu"},
        }
        home = SiteHome(parse(SiteSettings, values | labels, "test"), root / name)
        for folder, count in ((home.train_set, 6), (home.test_set, 4)):
            data = shapes(count, seed=100 + number)
            labelled.pack(folder, Labelled(data.images, data.masks[:, rows], data.sources, data.groups))
        sites[name] = Site(home, ModuleTeacher(teacher))
    return SitesInMemory(sites)


def open_study(root: Path, names: tuple[str, ...], labels: tuple[str, ...] = ("a", "b")) -> StudyRun:
    folder = RunFolder(root)
    training = {"image-budget": 800, "batch": 8, "learning-rate": 3e-3, "device": "cpu", "threads": 1, "augment": False}
    values = {
        "name": "shapes",
        "sites": list(names),
        "labels": list(labels),
        "image": {"size": SIZE},
        "exclusion": {"beta": 8.0},
        "student": {"onnx": False, "network": {"name": "unet", "width": 8}, "training": training},
        "fine-tune": {"sites": list(names[1:]), "training": training | {"image-budget": 16}},
    }
    study = parse(Study, values, "test")
    folder.create(study)
    tests = shapes(8, seed=1)
    listed = [CatalogueImage(image, name, role="test") for image, name in zip(tests.images, tests.sources, strict=True)]
    listed += [CatalogueImage(image, str(i)) for i, image in enumerate(shapes(32, seed=2).images)]
    ids = tuple(image_id(image) for image in tests.images)
    labelled.pack(folder.test_set, Labelled(tests.images, tests.masks, ids, tests.groups))
    made = build(folder.catalogue, "shapes", listed, make_signing_key(root / "coordinator.pem"))
    return StudyRun(folder, study, made, Ledger.open(folder.ledger))


def test_sites_that_know_different_labels_teach_a_student_of_all(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    names = ("north", "east", "west")
    run = open_study(tmp_path / "run", names)
    run_stages(run, open_sites(tmp_path / "sites", names))
    assert [run.participants.known_labels(name) for name in names] == [(0, 1), (0,), (0, 1)]
    image = torch.from_numpy(run.catalogue.pixels[8:9].astype(np.float32) / 255)
    for label, teacher, sure, unsure in (
        (0, bright, 2, 1),
        (1, dark, 1, 1),
    ):  # a: north, east and west; b: north and west
        told = [soft_mask.quantise(teacher(image, slope).numpy())[0, 0].astype(np.float64) for slope in (20, 10)]
        mean = (sure * told[0] + unsure * told[1]) / (sure + unsure)
        assert (run.pseudo_masks.read()[8, label] == np.ceil(mean - 0.5)).all()
    _, card = load_student(run.folder.student)
    assert card["labels"] == ["a", "b"]
    measured = json.loads(run.folder.metrics.read_text())
    assert measured["labels"] == ["a", "b"]
    by_label = measured["student"]["pooled_dice_by_label"]
    assert {label: score["mean"] > 70 for label, score in by_label.items()} == {"a": True, "b": True}
    assert measured["student"]["pooled_dice"]["mean"] == pytest.approx(np.mean([s["mean"] for s in by_label.values()]))
    assert measured["sites"]["east"]["teacher"]["pooled_dice_by_label"].keys() == {"a"}
    for name in names:  # at home: teacher and student are judged by the labels the site knows, and no others
        assert measured["sites"][name]["teacher"]["local_dice"]["mean"] > 90
        assert measured["sites"][name]["student"]["local_dice"]["mean"] > 70
    assert measured["sites"]["east"]["fine_tuned"]["local_dice"]["n"] == 4
    table = label_table(measured)
    assert table is not None
    assert [cell.text for cell in table.rows[1]][2] == "—"  # east and b
    best = best_teacher(measured)
    assert best is not None
    assert best.name in {"north", "west"}
    assert "How good at which label" in run.folder.report.read_text()
    with run.folder.selection.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["sites"] for row in rows} == {"3"}
    sure = self_dice(run.pseudo_masks.read())
    assert [row["self_dice"] for row in rows] == [f"{value:.6f}" for value in sure]


def test_a_label_that_nobody_knows_ends_the_study_before_anything_is_collected(tmp_path: Path) -> None:
    names = ("east",)
    run = open_study(tmp_path / "run", names)
    with pytest.raises(StudyError, match=r"nobody knows b: each label needs a site(.|\n)*east knows a"):
        run_stages(run, open_sites(tmp_path / "sites", names))
    assert not run.ledger.traffic().get("east", (0, 0))[0] > 10_000
    assert run.ledger.stage("collect") is None


def test_a_site_that_knows_none_of_the_labels_takes_no_part_and_is_told_why(tmp_path: Path) -> None:
    run = open_study(tmp_path / "run", ("east", "north"), labels=("c", "b"))
    with pytest.raises(StudyError, match=r"1 of 2 sites take part(.|\n)*east: bad-message.*knows none of c, b"):
        run.describe(open_sites(tmp_path / "sites", ("east", "north")))


def test_a_partial_answer_has_the_planes_of_the_labels_it_named(tmp_path: Path) -> None:
    run = open_study(tmp_path / "run", ("west",), labels=("x", "b", "a"))
    sites = open_sites(tmp_path / "sites", ("west",))
    manifest = run.catalogue
    described = sites.sites["west"].describe(
        wire.DescribeRequest(
            **run.envelope,
            settings=run.folder.study.read_text(),
            manifest=manifest.manifest_bytes,
            signature=manifest.signature,
            signer=manifest.signer,
            sealing_key=b"",
            sealing_signature=b"",
        )
    )
    assert described.labels == ["b", "a"]
