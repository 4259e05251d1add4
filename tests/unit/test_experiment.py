"""Experiments: what a file may say, how cells are computed, kept and resumed, and that the paper's files run."""

import csv
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.metrics import score
from consilium.common.networks.settings import NetworkSettings
from consilium.common.study import StudentSettings
from consilium.common.training.settings import TrainingSettings
from consilium.server.cli import app
from consilium.server.experiment import scales, stages
from consilium.server.experiment.data import DataSet, labelled_few, part_of, prepare
from consilium.server.experiment.grid import StudentCell, cells
from consilium.server.experiment.rows import read_rows
from consilium.server.experiment.run import Experimenter, run
from consilium.server.experiment.settings import DataSettings, Experiment, load
from consilium.server.experiment.store import Store

PAPER = Path(__file__).parents[2] / "configs" / "paper"
FILES = sorted(path.name for path in PAPER.glob("*.toml"))
SHORT = {"image-budget": 32, "batch": 8, "learning-rate": 5e-3, "threads": 1, "augment": False}
NETWORK = {"name": "unet", "width": 4}


def document(**other: Any) -> dict[str, Any]:
    """A small experiment: two teachers, one student, phantoms."""

    def phantoms(hospital: str, count: int, **more: Any) -> dict[str, Any]:
        return {"data-set": "phantoms", "hospital": hospital, "count": count, **more}

    teacher = {"network": NETWORK, "training": SHORT, "train-on": "home"}
    return {
        "name": "small",
        "image": {"size": 48},
        "data": {
            "home": phantoms("north", 12),
            "away": phantoms("east", 10),
            "shared": phantoms("east", 16, **{"first": 5, "lesion-free": 0.25}),
        },
        "teachers": {"one": teacher, "two": teacher},
        "ensembles": [["one", "two"]],
        "transferal": {"shared": {}},
        "students": {"pupil": {"network": NETWORK, "training": SHORT}},
        "exclusion": {"use": [False], "beta": 8.0},
        "tests": ["away"],
        **other,
    }


def settings_of(folder: Path, **other: Any) -> Experiment:
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(document(**other)))
    return load(path)


def without_seconds(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as table:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(table)]


# --- settings


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("scale", ["full", "small", "tiny"])
def test_every_shipped_experiment_is_valid_at_every_scale(file: str, scale: scales.Name) -> None:
    settings = load(PAPER / file, scale)
    assert settings.image.size == {"full": 384, "small": 128, "tiny": 48}[scale]
    assert settings.tables
    assert file in (PAPER / file).read_text().splitlines()[0]


def test_the_files_hold_every_table_with_own_results() -> None:
    tables = sorted({number for file in FILES for number in load(PAPER / file).tables})
    assert tables == [2, 3, 4, 5, 6, 7]


def test_the_grid_of_tables_2_and_3_is_the_papers() -> None:
    settings = load(PAPER / "table2.toml")
    found = [cell for cell in cells(settings) if isinstance(cell, StudentCell)]
    assert len(found) == 5 * 4 * 2  # transferal data sets, students, with and without exclusion
    epochs = {name: one.applied_to(StudentSettings().training).epochs for name, one in settings.transferal.items()}
    assert epochs == {"baheya": 500, "thyroid": 175, "nerve": 60, "skin": 30, "voc": 40}
    assert len({cell.name for cell in cells(settings)}) == len(list(cells(settings)))


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as told:
        settings_of(
            tmp_path,
            seeds=[-1],
            colour="red",
            data={"home": {"data-set": "phantoms", "hospital": "mars", "part": [1, 0]}},
        )
    for fault in ("seeds.0", "colour: unknown key", "count and a hospital", "part is two numbers"):
        assert fault in str(told.value)
    with pytest.raises(SettingsError) as told:
        settings_of(tmp_path, tests=["nowhere", "nowhere"], ensembles=[["three"]])
    for fault in ("tests names nowhere", "tests: everything is named once", "ensembles 1 names three"):
        assert fault in str(told.value)


def test_data_is_placed_from_the_command_line_by_name_or_by_data_set(tmp_path: Path) -> None:
    settings = load(PAPER / "table6.toml", "full", ("bus-bra=/data/bra", f"baheya=folder:{tmp_path}"))
    placed = {name: (one.data_set, one.path) for name, one in settings.data.items()}
    assert placed == {
        "lesion-1": ("bus-bra", "/data/bra"),
        "lesion-2": ("bus-bra", "/data/bra"),
        "baheya": ("folder", str(tmp_path.resolve())),
    }
    for wrong in ("nowhere=/data", "baheya", "baheya="):
        with pytest.raises(SettingsError, match="NAME=PATH"):
            load(PAPER / "table6.toml", "full", (wrong,))


def test_a_missing_path_is_told_with_what_to_type(tmp_path: Path) -> None:
    settings = load(PAPER / "table6.toml")
    with pytest.raises(SettingsError, match="--data lesion-1=FOLDER"):
        Experimenter(settings, Store(tmp_path)).data("lesion-1")


def test_a_scale_replaces_what_its_table_says_and_the_file_has_the_last_word() -> None:
    full, small, tiny = (load(PAPER / "table6.toml", scale) for scale in ("full", "small", "tiny"))
    assert full.teachers["unet"].training.epochs == 5
    assert (small.teachers["unet"].training.epochs, small.teachers["unet"].training.image_budget) == (0, 800)
    assert small.data["baheya"].data_set == "busi"
    assert (tiny.data["baheya"].data_set, tiny.data["baheya"].hospital) == ("phantoms", "east")
    assert tiny.data["lesion-1"].part == (0.0, 0.9)
    assert not tiny.transferal["baheya"].epochs
    assert {one.network.width for one in tiny.teachers.values()} == {4, 8, 16}


def test_every_data_set_of_the_registry_has_its_phantoms() -> None:
    from consilium.common.datasets.registry import DATA_SETS

    assert set(scales.PHANTOM_OF) == set(DATA_SETS)


def test_the_example_in_the_documents_is_an_experiment_and_its_script_runs(tmp_path: Path) -> None:
    text = (PAPER.parents[1] / "docs" / "experiments.md").read_text("utf-8")
    example, script = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("toml", "python"))
    (tmp_path / "mine.toml").write_text(example)
    settings = load(tmp_path / "mine.toml")
    assert (settings.teachers["b"].weight, settings.seeds, settings.fused) == (2, (0, 1, 2), (("a",), ("a", "b")))
    assert '"small"' in script
    script = script.replace('"small"', '"tiny"').replace("StudentSettings(),", 'settings.students["deeplabv3plus"],')
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert 0 <= float(told.stdout) <= 100


# --- data


@given(
    st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=30),
    st.lists(st.floats(0.01, 0.99), unique=True, max_size=3),
    st.integers(0, 9),
)
def test_parts_share_out_a_data_set_and_tear_no_group(groups: list[str], cuts: list[float], seed: int) -> None:
    bounds = [0.0, *sorted(cuts), 1.0]
    parts = [part_of(groups, (low, high), seed) for low, high in pairwise(bounds)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    for name in set(groups) - {""}:
        assert sum(any(groups[i] == name for i in part) for part in parts) == 1


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=6, max_size=30), st.integers(1, 5), st.integers(0, 9))
def test_labelled_images_are_as_many_as_asked_for_and_share_no_group_with_the_test(
    groups: list[str], count: int, seed: int
) -> None:
    few, rest = labelled_few(groups, count, seed)
    assert len(few) == count
    assert not {groups[i] for i in few} & {groups[i] for i in rest} - {""}
    assert not set(few.tolist()) & set(rest.tolist())


def test_a_data_set_is_read_once_and_named_by_its_pixels(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = DataSettings(data_set="phantoms", hospital="north", count=6, limit=4)
    first = prepare(store, "a", one, size=48, channels=1)
    again = prepare(store, "b", one, size=48, channels=1)
    assert first.digest == again.digest
    assert first.images.shape == first.truth.shape == (4, 1, 48, 48)
    assert isinstance(first.images, np.memmap)
    bare = prepare(store, "c", one, size=48, channels=1, with_masks=False)
    assert bare.pixels == first.pixels
    assert bare.digest != first.digest
    with pytest.raises(DataError, match="packed without masks"):
        _ = bare.truth


def test_unlabelled_images_of_a_folder_are_packed_in_order(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    for level in range(3):
        Image.new("L", (60, 50), 80 * level).save(tmp_path / "in" / f"{level}.png")
    one = DataSettings(data_set="images", path=str(tmp_path / "in"))
    packed = prepare(Store(tmp_path / "store"), "levels", one, size=48, channels=1, with_masks=False)
    assert packed.images.mean((1, 2, 3)).tolist() == [0, 80, 160]


# --- stages


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def lesions(store: Store) -> DataSet:
    one = DataSettings(data_set="phantoms", hospital="north", count=10)
    return prepare(store, "lesions", one, size=48, channels=1)


def test_what_is_in_the_store_is_not_computed_again(store: Store, lesions: DataSet) -> None:
    training = TrainingSettings.model_validate(SHORT)
    first = stages.teach(store, NetworkSettings.model_validate(NETWORK), training, lesions, seed=0)
    before = first.artefact.folder.stat().st_mtime_ns
    elsewhere = training.model_copy(update={"threads": 2, "checkpoint_every_s": 1.0})  # where, not what
    again = stages.teach(store, first.network, elsewhere, lesions, seed=0)
    assert again.artefact == first.artefact
    assert again.artefact.folder.stat().st_mtime_ns == before
    assert stages.teach(store, first.network, training, lesions, seed=1).artefact.digest != first.artefact.digest
    assert not (first.artefact.folder / "checkpoints").exists()


def test_one_teacher_fused_is_that_teacher_and_order_does_not_matter(store: Store, lesions: DataSet) -> None:
    training, network = TrainingSettings.model_validate(SHORT), NetworkSettings.model_validate(NETWORK)
    one, two = (
        stages.annotate(store, stages.teach(store, network, training, lesions, seed=i), lesions) for i in (0, 1)
    )
    assert stages.fuse(store, [one]) == one
    mean = stages.fuse(store, [one, two])
    assert np.array_equal(mean.masks, stages.fuse(store, [two, one]).masks)
    assert np.array_equal(mean.masks, (one.masks.astype(int) + two.masks) // 2)  # halves down
    assert not np.array_equal(mean.masks, stages.fuse(store, [one, two], [3, 1]).masks)
    hard = stages.annotate(store, stages.teach(store, network, training, lesions, seed=0), lesions, binary=True)
    assert np.array_equal(hard.masks, np.where(one.masks > 127, 255, 0))


# --- whole experiments


def test_rows_hold_what_was_measured(tmp_path: Path) -> None:
    tuning = {"away": {"images": 4, "training": SHORT, "scratch": SHORT}}
    settings = settings_of(tmp_path, **{"fine-tune": tuning, "tests": ["away", "shared"]})
    work, rows = run(settings, tmp_path / "run")
    assert Counter(row.variant for row in rows) == {"teacher": 4, "scratch": 1, "distilled": 2, "fine-tuned": 1}
    held = {(row.variant, row.test, row.teachers): row for row in rows}
    distilled = held["distilled", "away", "one+two"]
    best = max(held["teacher", "away", name].dice_mean for name in ("one", "two"))
    assert distilled.teacher_mean == best
    assert (distilled.n, distilled.images_before, distilled.images_after) == (10, 16, 16)
    assert distilled.teacher_networks == "unet+unet"
    assert distilled.transductive  # five of the phantoms of "away" are in "shared" as well
    assert held["fine-tuned", "away", "one+two"].n == held["scratch", "away", ""].n == 6
    cell = next(cell for cell in cells(settings) if isinstance(cell, StudentCell))
    student = work.student(cell)
    assert student is not None
    values = stages.evaluate(work.store, student, work.data("away"))
    assert distilled.dice_mean == pytest.approx(score(values).mean, abs=1e-4)
    assert read_rows(tmp_path / "run" / "results.csv") == rows


def test_a_cell_without_an_image_left_has_no_row_and_a_note(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, exclusion={"use": [True], "alpha": 384.0**2 + 1})
    work, rows = run(settings, tmp_path / "run")
    assert {row.variant for row in rows} == {"teacher"}
    assert work.warnings == ["one+two/shared/pupil/on/0: every image was excluded, so there is no student"]
    assert (tmp_path / "run" / "selections.csv").read_text().splitlines()[1] == "one+two,shared,0,16,0,16,0"


def test_a_teacher_is_not_tested_on_what_it_learned(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 of the 12 images of home"):
        run(settings_of(tmp_path, tests=["home"]), tmp_path / "run")


def test_two_processes_do_not_write_one_experiment(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="in use by another process"):
            run(settings_of(tmp_path), tmp_path / "run")


WAITS_IN_TRAINING = """
import time
from consilium.common.training import checkpoint
from consilium.server.cli import main

def save_and_wait(state, folder, save=checkpoint.save):
    save(state, folder)
    if state.step == 15:
        time.sleep(600)

checkpoint.save = save_and_wait
main()
"""
"""The command, but that a training waits at its fifteenth step, however fast the machine is: teachers here take four."""


def test_a_killed_experiment_goes_on_and_ends_with_the_same_results(tmp_path: Path) -> None:
    long = SHORT | {"image-budget": 240, "checkpoint-every-s": 0}
    students = {"pupil": {"network": NETWORK, "training": long}}
    settings_of(tmp_path, students=students)
    arguments = ["experiment", str(tmp_path / "experiment.toml"), "--run"]
    command = [sys.executable, "-m", "consilium.server.cli", *arguments]
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def steps_done() -> int:
        """Of the training that is under way; 0 for none."""
        try:
            return max(int(torch.load(path)["step"]) for path in killed.glob("artefacts/model/*/checkpoints/*.pt"))
        except (ValueError, FileNotFoundError):  # a teacher's is removed when it is trained
            return 0

    waiting = [sys.executable, "-c", WAITS_IN_TRAINING, *arguments, str(killed)]
    with subprocess.Popen(waiting, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 120
        while steps_done() != 15 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        process.kill()
        told = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, f"it ended by itself, before the student was in training: {told}"
    assert steps_done() == 15, f"of 30, when it was killed after 120 s at the latest: {told}"
    assert len(without_seconds(killed / "results.csv")) == 2
    for folder in (killed, whole):
        subprocess.run([*command, str(folder)], check=True, stdout=subprocess.DEVNULL)
    assert without_seconds(killed / "results.csv") == without_seconds(whole / "results.csv")
    for name in ("index.html", "selections.csv", "tables/many-teachers-one-two-shared.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    students_of = [sorted(folder.glob("artefacts/model/*/student.safetensors")) for folder in (killed, whole)]
    assert len(students_of[0]) == 3
    assert [path.read_bytes() for path in students_of[0]] == [path.read_bytes() for path in students_of[1]]


@pytest.fixture(scope="module")
def shared_artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize(
    ("file", "rows", "kinds"),
    [
        ("table2.toml", 2 + 40 * 2, {"single-teacher-deeplabv3plus-lesion-2", "single-teacher-deeplabv3plus-baheya"}),
        ("table4.toml", 8 + 40 * 2, {"fine-tuned-deeplabv3plus-baheya", "fine-tuned-deeplabv3plus-thyroid"}),
        ("table6.toml", 4 * 2 + 2, {"many-teachers-unet-attention-unet-sdu-net-panoptic-fpn-baheya"}),
        ("table6-busi-ddti.toml", 4 * 2 + 4 * 2, {"exclusion-unet-attention-unet-sdu-net-panoptic-fpn"}),
        ("table7.toml", 0, {"exclusion-deeplabv3plus"}),
    ],
)
def test_the_papers_experiments_run_on_phantoms(
    file: str, rows: int, kinds: set[str], shared_artefacts: Path, tmp_path: Path
) -> None:
    arguments = ["experiment", file, "--scale", "tiny", "--run", str(tmp_path), "--artefacts", str(shared_artefacts)]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert told.exit_code == 0
    assert len(read_rows(tmp_path / "results.csv")) == rows
    assert kinds <= {path.stem for path in (tmp_path / "tables").glob("*.tex")}
    page = (tmp_path / "index.html").read_text()
    assert all(f'id="{kind}"' in page for kind in kinds)
    assert ('class="entropy-histograms"' in page) == (7 in load(PAPER / file).tables)
    assert str(tmp_path / "index.html") in told.output
