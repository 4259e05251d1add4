"""`consilium catalogue build`: thousands of images, several sets, killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.common.catalogue import open_catalogue
from consilium.common.errors import SettingsError
from consilium.server.transferal_sets import TransferalSet, parse

COMMAND = (sys.executable, "-m", "consilium.server.cli", "catalogue", "build")
IMAGES = 2000


def draw(folder: Path, count: int, level: int = 0) -> Path:
    folder.mkdir(parents=True)
    ramp = np.add.outer(np.arange(96), np.arange(120)).astype(np.int64)
    for i in range(count):
        Image.fromarray((ramp * (1 + i % 7) + i * 3 + level).astype(np.uint8)).save(
            folder / f"{i}.png", compress_level=1
        )
    return folder


def build(folder: Path, *sets: str) -> list[str]:
    key = folder.parent / "key.pem"
    return [*COMMAND, *sets, "--run", str(folder), "--key", str(key), "--size", "64", "--workers", "2"]


def test_killed_in_the_middle_it_goes_on_without_reading_again_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", IMAGES)
    subprocess.run(build(tmp_path / "whole", str(images)), check=True, capture_output=True)
    child = subprocess.Popen(build(tmp_path / "killed", str(images)), stdout=subprocess.DEVNULL)
    log, done = tmp_path / "killed" / "catalogue" / "building.ids", 0
    while done < IMAGES // 4 and child.poll() is None:
        time.sleep(0.001)
        done = log.stat().st_size // 65 if log.exists() else 0
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert IMAGES // 4 <= done < IMAGES
    assert not (tmp_path / "killed" / "catalogue" / "manifest.json").exists()
    for i in range(IMAGES // 4):  # whoever read these again would fail
        file = images / f"{i}.png"
        held = file.stat()
        file.write_bytes(b"x" * held.st_size)
        os.utime(file, ns=(held.st_atime_ns, held.st_mtime_ns))
    resumed = subprocess.run(build(tmp_path / "killed", str(images)), check=True, capture_output=True, text=True)
    assert "going on where it was" in resumed.stdout
    for path in (tmp_path / "whole" / "catalogue").iterdir():
        assert (tmp_path / "killed" / "catalogue" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "killed" / "catalogue").iterdir())) == 5


def test_a_changed_file_is_noticed_before_it_goes_on(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 5)
    (images / "3.png").write_bytes(b"no image")
    first = subprocess.run(build(tmp_path / "run", str(images)), capture_output=True, text=True)
    assert first.returncode == 2
    assert "3.png: cannot be read as an image" in first.stderr
    (images / "3.png").unlink()
    second = subprocess.run(build(tmp_path / "run", str(images)), capture_output=True, text=True)
    assert second.returncode == 1
    assert "5 images then, 4 now" in second.stderr
    assert "3.png, now" in second.stderr


def test_several_sets_make_one_catalogue_with_their_names(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a", 7), draw(tmp_path / "b", 5, level=1)
    done = subprocess.run(
        build(tmp_path / "run", f"thyroid={first}", f"breast=images:{second}"),
        check=True,
        capture_output=True,
        text=True,
    )
    made = open_catalogue(tmp_path / "run" / "catalogue")
    assert made.collections == {"thyroid": 7, "breast": 5}
    assert [entry.collection for entry in made.manifest.images] == ["thyroid"] * 7 + ["breast"] * 5
    assert "  breast: 5 images" in done.stdout


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("images", TransferalSet("", "images", Path("images"))),
        ("a=images", TransferalSet("a", "images", Path("images"))),
        ("a=busi:x/y", TransferalSet("a", "busi", Path("x/y"))),
        ("busi:x", TransferalSet("", "busi", Path("x"))),
        ("a=c:x", TransferalSet("a", "images", Path("c:x"))),
        ("a=b=c", TransferalSet("a", "images", Path("b=c"))),
    ],
)
def test_a_set_is_a_folder_with_a_name_and_a_data_set_where_they_are_given(text: str, found: TransferalSet) -> None:
    assert parse(text) == found


@pytest.mark.parametrize("text", ["=x", "A=x", "a b=x", "a/b=c"])
def test_a_set_with_another_name_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="in small letters"):
        parse(text)


def test_a_folder_that_is_there_is_a_folder_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a=busi:x").mkdir()
    assert parse(str(tmp_path / "a=busi:x")).folder == tmp_path / "a=busi:x"
