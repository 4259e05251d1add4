"""The catalogue: identity by content, one signature over all, nothing but what belongs there."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from consilium.common import catalogue
from consilium.common.catalogue import CatalogueImage, Manifest, image_id
from consilium.common.errors import DataError, ErrorCode, StateError, WireError
from consilium.common.identity.signing import make_signing_key
from consilium.common.packing import Packing


def pixels(level: int) -> np.ndarray:
    return np.full((1, 32, 32), level, np.uint8)


@pytest.fixture
def built(tmp_path: Path) -> catalogue.Catalogue:
    images = [CatalogueImage(pixels(level), f"/data/jane doe/{level}.png") for level in (5, 6, 5)]
    images.append(CatalogueImage(pixels(6), "test", role="test"))
    return catalogue.build(tmp_path / "catalogue", "shared", images, make_signing_key(tmp_path / "key"))


def test_an_image_is_its_pixels() -> None:
    assert image_id(pixels(7)) == hashlib.sha256(bytes([7]) * 1024).hexdigest()


def test_a_repeated_image_is_listed_once_and_a_test_image_stays_one(built: catalogue.Catalogue) -> None:
    assert [(entry.id, entry.role) for entry in built.manifest.images] == [
        (image_id(pixels(5)), "transferal"),
        (image_id(pixels(6)), "test"),
    ]
    assert (built.pixels == np.stack([pixels(5), pixels(6)])).all()
    assert built.indices("test").tolist() == [1]


def test_the_list_carries_no_path(built: catalogue.Catalogue) -> None:
    assert b"jane" not in built.manifest_bytes
    assert "jane doe/5.png" in (built.folder / "sources.csv").read_text()


def test_the_hash_is_that_of_the_list_and_survives_a_round_trip(built: catalogue.Catalogue) -> None:
    assert built.hash == hashlib.sha256(built.manifest_bytes).hexdigest()
    assert Manifest.from_bytes(built.manifest_bytes).to_bytes() == built.manifest_bytes
    assert catalogue.open_catalogue(built.folder).hash == built.hash


def test_a_changed_list_is_found(built: catalogue.Catalogue) -> None:
    file = built.folder / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"shared", b"shaded"))
    with pytest.raises(WireError) as refused:
        catalogue.open_catalogue(built.folder)
    assert refused.value.code is ErrorCode.BAD_SIGNATURE


def test_truncated_pixels_are_found(built: catalogue.Catalogue) -> None:
    file = built.folder / "pixels.u8"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StateError, match="holds 2047 bytes where 2048 belong"):
        catalogue.open_catalogue(built.folder)


def test_a_folder_without_a_catalogue_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="consilium catalogue build"):
        catalogue.open_catalogue(tmp_path)


def test_a_second_build_into_the_same_folder_is_refused(built: catalogue.Catalogue, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="already holds a catalogue"):
        catalogue.build(built.folder, "other", [], make_signing_key(tmp_path / "key2"))


def test_shapes_must_agree_and_there_must_be_one_image(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "key")
    wide = np.zeros((1, 32, 64), np.uint8)
    with pytest.raises(DataError, match="have one shape"):
        catalogue.build(tmp_path / "a", "a", [CatalogueImage(pixels(1), ""), CatalogueImage(wide, "")], key)
    with pytest.raises(DataError, match="at least one image"):
        catalogue.build(tmp_path / "b", "b", [], key)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"name":"a","size":32,"channels":1,"images":[]}', b"\xff"])
def test_what_is_no_list_is_a_bad_message(data: bytes) -> None:
    with pytest.raises(WireError) as refused:
        Manifest.from_bytes(data)
    assert refused.value.code is ErrorCode.BAD_MESSAGE


def numbered(count: int, decoded: list[int] | None = None) -> list[CatalogueImage]:
    """Images that differ, every tenth a repeat of the first; ``decoded`` notes which were read."""

    def load(number: int) -> np.ndarray:
        if decoded is not None:
            decoded.append(number)
        return np.full((1, 32, 32), number % 10 and number % 251, np.uint8)

    return [CatalogueImage(partial(load, i), f"{i}.png", stamp="1") for i in range(count)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "key")
    for workers in (1, 2, 7):
        catalogue.build(tmp_path / str(workers), "c", numbered(100), key, shape=(1, 32, 32), workers=workers)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "7")
    assert set(files_of(tmp_path / "1")) == {
        "manifest.json", "signature.bin", "signer.pub", "pixels.u8", "sources.csv",
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["none", "half a line", "half an image", "a wrong pixel", "pixels gone"])
def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(damage: str, tmp_path: Path) -> None:
    key, folder = make_signing_key(tmp_path / "key"), tmp_path / "stopped"
    whole = catalogue.build(tmp_path / "whole", "c", numbered(100), key, shape=(1, 32, 32))

    def stop(done: int) -> None:
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalogue.build(folder, "c", numbered(100), key, shape=(1, 32, 32), workers=2, on_progress=stop)
    with (folder / "pixels.u8").open("r+b") as packed, (folder / "building.ids").open("ab") as log:
        if damage == "half a line":
            log.write(b"0123")
        if damage == "half an image":
            packed.truncate(20 * 1024 + 7)  # as after a power cut: listed, and not on the disk
        if damage == "a wrong pixel":
            packed.seek(20 * 1024)
            packed.write(b"\xff")
    if damage == "pixels gone":
        (folder / "pixels.u8").unlink()
    decoded: list[int] = []
    resumed = catalogue.build(folder, "c", numbered(100, decoded), key, shape=(1, 32, 32), workers=2)
    assert files_of(folder) == files_of(tmp_path / "whole")
    assert resumed.hash == whole.hash
    first = {"none": 50, "half a line": 50, "pixels gone": 0}.get(
        damage, 22
    )  # images 0 to 21, of which 10 and 20 repeat
    assert sorted(decoded) == list(range(first, 100))


def test_a_build_killed_between_its_last_two_steps_is_whole(tmp_path: Path) -> None:
    key, folder = make_signing_key(tmp_path / "key"), tmp_path / "c"
    built = catalogue.build(folder, "c", numbered(20), key, shape=(1, 32, 32))
    with Packing(tmp_path / "other", plan_of(numbered(20)), 1024):
        (tmp_path / "other" / "building.json").rename(folder / "building.json")
    decoded: list[int] = []
    assert catalogue.build(folder, "c", numbered(20, decoded), key, shape=(1, 32, 32)).hash == built.hash
    assert not decoded
    assert not (folder / "building.json").exists()


def plan_of(images: list[CatalogueImage]) -> dict[str, object]:
    listed = [(one.source, one.stamp, one.group, one.role, one.collection) for one in images]
    return {"name": "c", "shape": (1, 32, 32), "images": listed}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plan: plan | {"name": "d"}, "the name was c, now d"),
        (lambda plan: plan | {"shape": (1, 64, 64)}, "channels x height x width was 1 x 32 x 32, now 1 x 64 x 64"),
        (lambda plan: plan | {"images": plan["images"][:2]}, "3 images then, 2 now; 2.png is gone"),
        (
            lambda plan: plan | {"images": [*plan["images"], ("x.png", "", "", "", "")]},
            "3 images then, 4 now; x.png is new",
        ),
        (lambda plan: plan | {"images": plan["images"][1:]}, "3 images then, 2 now; image 1 was 0.png, now 1.png"),
        (
            lambda plan: plan | {"images": [("0.png", "2", "", "transferal", ""), *plan["images"][1:]]},
            r"image 1 was 0.png with another file size and time \(1, now 2\)",
        ),
        (
            lambda plan: plan | {"images": [("0.png", "1", "", "transferal", "b"), *plan["images"][1:]]},
            r"image 1 was 0.png with another collection \(none, now b\)",
        ),
    ],
)
def test_another_list_or_other_settings_are_noticed_and_said(
    change: Callable[[dict[str, object]], dict[str, object]], told: str, tmp_path: Path
) -> None:
    plan = plan_of(numbered(3))
    with Packing(tmp_path / "c", plan, 1024):
        pass
    with pytest.raises(StateError, match=told):
        Packing(tmp_path / "c", change(plan), 1024)


def test_groups_leave_as_numbers_that_tell_nothing(tmp_path: Path) -> None:
    groups = [("", "a"), ("jane doe", "a"), ("", "a"), ("jane doe", "b"), ("jane doe", "a"), ("x", "b")]
    images = [CatalogueImage(pixels(i), str(i), group, collection=name) for i, (group, name) in enumerate(groups)]
    built = catalogue.build(tmp_path / "c", "c", images, make_signing_key(tmp_path / "key"))
    assert [entry.group for entry in built.manifest.images] == ["", "1", "", "2", "1", "3"]
    assert b"jane" not in built.manifest_bytes


def test_a_list_with_collections_has_version_2_and_one_without_is_as_it_was(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "key")
    plain = catalogue.build(tmp_path / "a", "c", [CatalogueImage(pixels(0), "x")], key)
    assert plain.manifest_bytes == (
        b'{"channels":1,"images":[{"group":"","id":"5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",'
        b'"role":"transferal"}],"name":"c","schema-version":1,"size":32}'
    )
    assert plain.collections == {}
    images = [
        CatalogueImage(pixels(0), "x", collection="thyroid"),
        CatalogueImage(pixels(1), "y", collection="breast"),
        CatalogueImage(pixels(0), "z", collection="breast"),
        CatalogueImage(pixels(1), "t", role="test"),
        CatalogueImage(pixels(2), "u"),
    ]
    built = catalogue.build(tmp_path / "b", "c", images, key)
    assert (
        built.manifest_bytes
        == b'{"channels":1,"images":['
        + b",".join(
            b'{"collection":"%s","group":"","id":"%s","role":"%s"}' % (name, image_id(pixels(level)).encode(), role)
            for level, name, role in ((0, b"thyroid", b"transferal"), (1, b"breast", b"test"), (2, b"", b"transferal"))
        )
        + b'],"name":"c","schema-version":2,"size":32}'
    )
    assert catalogue.open_catalogue(built.folder).collections == {"thyroid": 1, "": 1}
    with pytest.raises(WireError):
        Manifest.from_bytes(built.manifest_bytes.replace(b'"schema-version":2', b'"schema-version":1'))
