"""The command consilium-site, run as its user runs it."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.clients.gateway import GatewayClient
from consilium.clients.settings import load_site
from consilium.clients.teachers.checkpoint import CheckpointTeacher, public_card
from consilium.common import wire
from consilium.common.datasets import labelled
from consilium.common.errors import ErrorCode, StateError, WireError

COMMAND = [sys.executable, "-P", "-m", "consilium.clients.cli"]
SITE = """
name = "north"
[teacher]
network = { name = "unet", width = 4 }
size = 32
[training]
image-budget = 40
threads = 1
device = "cpu"
checkpoint-every-s = 0
[fine-tune]
images = 4
training = { epochs = 1 }
[data]
folder = "raw"
size = 32
test-share = 0.25
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def draw_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((40, 48), np.uint8)
        top, left = rng.integers(2, 20, 2)
        mask[top : top + 14, left : left + 14] = 255
        Image.fromarray(mask // 2 + 40).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    """A site with a trained teacher."""
    with tempfile.TemporaryDirectory(prefix="consilium-") as folder:  # a Unix socket's path is short
        path = Path(folder) / "site.toml"
        path.write_text(SITE)
        draw_images(path.parent / "raw", 8)
        done = run("train", path, "--progress-json")
        assert done.returncode == 0, done.stderr
        (path.parent / "progress").write_text(done.stdout)
        yield path


def test_training_tells_its_progress_in_json_lines_and_its_result_last(site: Path) -> None:
    lines = [json.loads(line) for line in (site.parent / "progress").read_text().splitlines()]
    assert set(lines[0]) == {"step", "steps", "loss"}
    assert (lines[-2]["step"], lines[-2]["steps"]) == (10, 10)
    assert lines[-1]["done"]
    assert (lines[-1]["train-images"], lines[-1]["test-images"]) == (5, 2)


def test_a_trained_teacher_is_left_alone(site: Path) -> None:
    weights = site.parent / "teacher" / "student.safetensors"
    before = weights.stat().st_mtime_ns
    done = run("train", site)  # takes no torch
    assert (done.returncode, weights.stat().st_mtime_ns) == (0, before)
    assert "north: the teacher is trained on 5 images" in done.stdout


def test_images_are_packed_once_and_test_images_kept_apart(site: Path) -> None:
    home = load_site(site)
    train, test = labelled.open_packed(home.train_set), labelled.open_packed(home.test_set)
    assert (len(train), len(test)) == (6, 2)
    assert not set(train.sources) & set(test.sources)


def test_an_interrupted_training_goes_on_to_the_same_weights(site: Path, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "raw").symlink_to(site.parent / "raw")
    begun = subprocess.Popen(
        [*COMMAND, "train", str(tmp_path / "site.toml"), "--progress-json"], stdout=subprocess.PIPE, text=True
    )
    assert begun.stdout is not None
    begun.stdout.readline()
    begun.kill()
    begun.communicate()
    done = run("train", tmp_path / "site.toml")
    assert done.returncode == 0, done.stderr
    weights = Path("teacher") / "student.safetensors"
    assert (tmp_path / weights).read_bytes() == (site.parent / weights).read_bytes()


def test_describe_shows_teacher_data_and_policy(site: Path) -> None:
    shown = run("describe", site).stdout
    for part in ("unet, 32 x 32", "6, of shape 1x32x32", "anyone may show a study"):
        assert part in shown


def test_start_answers_until_it_is_told_to_stop(site: Path) -> None:
    errors = (site.parent / "errors").open("w")
    process = subprocess.Popen([*COMMAND, "start", str(site)], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        address = load_site(site).gateway_address
        assert process.stdout.readline() == f"north is ready: gateway at {address}\n"
        assert stat.S_IMODE(Path(address.removeprefix("unix:")).stat().st_mode) == 0o600
        request = wire.PredictRequest(study="a" * 64, catalogue="b" * 64, ids=["c" * 64], pixels=[])
        with GatewayClient(address) as client, pytest.raises(WireError) as refusal:
            client.predict(request)
        assert refusal.value.code == ErrorCode.UNKNOWN_STUDY
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "north has stopped\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
        errors.close()


def test_every_command_shows_an_example_and_help_does_not_wait_for_torch() -> None:
    for command in ("train", "check", "fine-tune", "start", "describe", "audit"):
        assert f"Example: consilium-site {command} hospital/site.toml" in run(command, "--help").stdout
    check = "import sys, consilium.clients.cli; print('torch' in sys.modules, 'flwr' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.split() == ["False", "False"]


FAULTS = {
    "no such file": (None, 2, "there is no such settings file"),
    "a key that does not exist": ('name = "north"\ncolour = "red"', 2, "colour: unknown key"),
    "no data": (SITE.replace('"raw"', '"nowhere"'), 2, "there is no such folder"),
    "neither packed nor to be packed": (SITE.replace('folder = "raw"', ""), 1, "holds no whole packed data set"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_in_words_without_a_traceback(name: str, tmp_path: Path) -> None:
    text, status, words = FAULTS[name]
    path = tmp_path / "site.toml"
    if text is not None:
        path.write_text(text)
    done = run("train", path)
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr


def test_a_teacher_of_other_settings_is_not_passed_off_as_trained(site: Path, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE.replace("image-budget = 40", "image-budget = 44"))
    (tmp_path / "teacher").symlink_to(site.parent / "teacher")
    done = run("train", tmp_path / "site.toml")
    assert (done.returncode, "trained with other settings" in done.stderr) == (1, True)
    (tmp_path / "site.toml").write_text(SITE.replace("threads = 1", "threads = 2"))
    assert run("train", tmp_path / "site.toml").returncode == 0


def test_starting_an_untrained_site_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    done = run("start", path)
    assert done.returncode == 1
    assert "consilium-site train" in done.stderr


def test_a_fine_tuned_teacher_lies_beside_the_teacher_and_is_replaced_only_by_force(site: Path) -> None:
    teacher = (site.parent / "teacher" / "student.safetensors").read_bytes()
    done = run("fine-tune", site)
    assert done.returncode == 0, done.stderr
    assert "fine-tuned on 4 images. Dice on 2 test images:" in done.stdout
    refused = run("fine-tune", site, "--images", "2")
    assert (refused.returncode, "--force" in refused.stderr) == (1, True)
    again = run("fine-tune", site, "--images", "2", "--force", "--progress-json")
    told = json.loads(again.stdout.splitlines()[-1])
    assert (told["images"], told["before"]["n"], told["better"] in {"before", "after"}) == (2, 2, True)
    assert (site.parent / "teacher" / "student.safetensors").read_bytes() == teacher
    home = load_site(site)
    other = home.settings.teacher.model_copy(update={"folder": "teacher-fine-tuned"})
    answers = [
        CheckpointTeacher(home.folder / folder, other, "cpu").predict(np.full((1, 1, 32, 32), 90, np.uint8))
        for folder in ("teacher", "teacher-fine-tuned")
    ]
    assert (answers[0] != answers[1]).any()


def test_a_teacher_of_another_geometry_than_the_settings_say_is_refused(site: Path) -> None:
    home = load_site(site)
    with pytest.raises(StateError, match="size and channels"):
        CheckpointTeacher(home.teacher, home.settings.teacher.model_copy(update={"size": 64}))


def test_a_soft_mask_does_not_depend_on_its_company(site: Path) -> None:
    home = load_site(site)
    teacher = CheckpointTeacher(home.teacher, home.settings.teacher, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 32, 32), np.uint8)
    together = teacher.predict(images)
    alone = np.concatenate([teacher.predict(images[i : i + 1]) for i in range(7)])
    np.testing.assert_array_equal(together, alone)


def test_the_card_that_leaves_names_no_path(site: Path) -> None:
    card = json.loads((site.parent / "teacher" / "card.json").read_text())
    card["architecture"]["encoder-weights"] = "/srv/patients/encoder.pth"
    card["note"] = os.sep + "srv"
    text = json.dumps(public_card(card))
    assert "/srv" not in text
    assert json.loads(text)["network"]["name"] == "unet"
