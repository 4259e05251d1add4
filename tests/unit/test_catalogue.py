"""The catalogue: identity by content, one signature over all, nothing but what belongs there."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from consilium.common import catalogue
from consilium.common.catalogue import CatalogueImage, Manifest, image_id
from consilium.common.errors import DataError, ErrorCode, StateError, WireError
from consilium.common.identity import make_signing_key


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
