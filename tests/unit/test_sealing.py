"""Only the study opens an answer, only the site can have made it, and it answers one question."""

import dataclasses
import stat
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from consilium.clients.site import Site
from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import sealing, soft_mask, wire
from consilium.common.errors import ErrorCode, StateError, WireError
from consilium.common.identity import signing
from consilium.server.run_folder import RunFolder
from consilium.server.seals import Seals, offer_key
from tests.unit.test_site import SIZE, Coordinator, echo, make_home

ONCE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
STUDY = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
SITE = Ed25519PrivateKey.from_private_bytes(bytes(range(64, 96)))
STUDY_PUBLIC, SITE_PUBLIC = STUDY.public_key().public_bytes_raw(), signing.public_key_of(SITE)
SUBJECT = sealing.about("5" * 64, "c" * 64, "north", ["a" * 64, "b" * 64], [])
MASKS = [b"first", b""]


def code_of(sealed: sealing.Sealed, private: X25519PrivateKey = STUDY, subject: bytes = SUBJECT) -> ErrorCode:
    with pytest.raises(WireError) as refused:
        sealing.unseal(sealed, private, SITE_PUBLIC, subject)
    return refused.value.code


def test_an_answer_is_what_the_page_on_the_wire_says() -> None:
    """Every step again, by its primitive: the module may not change what it computes without this test."""
    sealed = sealing.seal(MASKS, STUDY_PUBLIC, SITE, SUBJECT, ONCE)
    once = ONCE.public_key().public_bytes_raw()
    shared = STUDY.exchange(X25519PublicKey.from_public_bytes(once))
    info = b"consilium sealed answer 1" + SUBJECT
    key = HKDF(hashes.SHA256(), 32, salt=once + STUDY_PUBLIC, info=info).derive(shared)
    expected = [ChaCha20Poly1305(key).encrypt(bytes(11) + bytes([i]), mask, SUBJECT) for i, mask in enumerate(MASKS)]
    assert (sealed.key, sealed.masks) == (once, expected)
    assert [len(mask) for mask in sealed.masks] == [5 + sealing.TAG_BYTES, sealing.TAG_BYTES]
    assert sealing.unseal(sealed, STUDY, SITE_PUBLIC, SUBJECT) == MASKS


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_what_is_sealed_is_opened(masks: list[bytes]) -> None:
    assert sealing.unseal(sealing.seal(masks, STUDY_PUBLIC, SITE, SUBJECT), STUDY, SITE_PUBLIC, SUBJECT) == masks


def test_every_answer_has_a_key_of_its_own() -> None:
    first, second = (sealing.seal(MASKS, STUDY_PUBLIC, SITE, SUBJECT) for _ in range(2))
    assert first.key != second.key
    assert first.masks != second.masks


def test_what_was_changed_or_is_of_another_question_site_or_study_is_not_opened() -> None:
    sealed = sealing.seal(MASKS, STUDY_PUBLIC, SITE, SUBJECT)
    assert code_of(dataclasses.replace(sealed, masks=sealed.masks[::-1])) == ErrorCode.BAD_SEAL
    assert code_of(dataclasses.replace(sealed, masks=sealed.masks[:1])) == ErrorCode.BAD_SEAL
    assert code_of(dataclasses.replace(sealed, key=STUDY_PUBLIC)) == ErrorCode.BAD_SEAL
    assert code_of(dataclasses.replace(sealed, signature=bytes(64))) == ErrorCode.BAD_SEAL
    assert code_of(sealed, private=ONCE) == ErrorCode.BAD_SEAL
    assert code_of(sealed, subject=bytes(32)) == ErrorCode.BAD_SEAL
    assert code_of(sealing.seal(MASKS, STUDY_PUBLIC, Ed25519PrivateKey.generate(), SUBJECT)) == ErrorCode.BAD_SEAL


@pytest.mark.parametrize("key", [b"", b"short", bytes(32)], ids=["none", "short", "a point that shares nothing"])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    with pytest.raises(WireError) as refused:
        sealing.seal(MASKS, key, SITE, SUBJECT)
    assert refused.value.code == ErrorCode.BAD_SEAL


def test_no_two_questions_have_the_same_subject() -> None:
    a, b = "a" * 64, "b" * 64
    questions = [(a, b, "n", [], []), (b, a, "n", [], []), (a, b, "n", [a], []), (a, b, "n", [], [a]),
                 (a, b, "n", [a, b], []), (a, b, "n", [b, a], []), (a, b, "nn", [], [])]  # fmt: skip
    assert len({sealing.about(*question) for question in questions}) == len(questions)


def sealed_study(folder: Path) -> tuple[Coordinator, RunFolder, Seals]:
    coordinator = Coordinator(folder / "coordinator")
    run = RunFolder(folder / "run")
    run.root.mkdir()
    offer_key(run, coordinator.catalogue.hash, coordinator.key)
    return coordinator, run, Seals(run, coordinator.catalogue.hash)


def describe(coordinator: Coordinator, seals: Seals, **changes: object) -> wire.DescribeRequest:
    return coordinator.describe(**{"sealing_key": seals.key, "sealing_signature": seals.signature} | changes)


def test_a_sites_answer_is_read_by_the_study_alone(tmp_path: Path) -> None:
    coordinator, run, seals = sealed_study(tmp_path)
    assert stat.S_IMODE(run.sealing_key.stat().st_mode) == 0o600
    site = Site(make_home(tmp_path / "north", sealed=True), ModuleTeacher(echo))
    seals.pin("north", site.describe(describe(coordinator, seals)).signer)
    reply = site.predict(coordinator.predict(1, 0))
    with pytest.raises(WireError):
        soft_mask.decode(reply.masks[0], (1, SIZE, SIZE))
    for number, mask in zip((1, 0), Seals(run, coordinator.catalogue.hash).open("north", reply), strict=True):
        np.testing.assert_array_equal(soft_mask.decode(mask, (1, SIZE, SIZE)), coordinator.catalogue.pixels[number])
    again = site.predict(coordinator.predict(1, 0))
    assert (again.masks != reply.masks, seals.open("north", again)) == (True, seals.open("north", reply))
    for lie in ({"ids": reply.ids[::-1]}, {"study": "0" * 64}, {"site": "east"}, {"key": b"", "signature": b""}):
        with pytest.raises(WireError) as refused:
            seals.open("north", reply.model_copy(update=lie))
        assert refused.value.code == ErrorCode.BAD_SEAL


def test_a_site_that_shows_another_key_than_before_is_refused(tmp_path: Path) -> None:
    _, run, seals = sealed_study(tmp_path)
    seals.pin("north", SITE_PUBLIC)
    seals.pin("north", SITE_PUBLIC)
    for other in (STUDY_PUBLIC, b""):
        with pytest.raises(WireError) as refused:
            seals.pin("north", other)
        assert refused.value.code == ErrorCode.BAD_SEAL
    run.site_keys.write_text("[]")
    with pytest.raises(StateError, match="site_keys"):
        seals.pin("north", SITE_PUBLIC)


def test_a_study_key_that_the_signer_did_not_sign_is_refused_and_none_is_against_the_policy(tmp_path: Path) -> None:
    coordinator, _, seals = sealed_study(tmp_path)
    site = Site(make_home(tmp_path / "north", sealed=True), ModuleTeacher(echo))
    swapped = X25519PrivateKey.generate().public_key().public_bytes_raw()
    for changes, code in (
        ({"sealing_key": swapped}, ErrorCode.BAD_SIGNATURE),
        ({"sealing_signature": b""}, ErrorCode.BAD_SIGNATURE),
        ({"sealing_key": b""}, ErrorCode.REFUSED_BY_POLICY),
    ):
        with pytest.raises(WireError) as refused:
            site.describe(describe(coordinator, seals, **changes))
        assert refused.value.code == code


def test_an_offer_of_another_key_or_catalogue_is_named(tmp_path: Path) -> None:
    coordinator, run, _ = sealed_study(tmp_path)
    with pytest.raises(StateError, match="catalogue seal"):
        Seals(run, "0" * 64)
    run.sealing_key.unlink()
    sealing.make_study_key(run.sealing_key)
    with pytest.raises(StateError, match="catalogue seal"):
        Seals(run, coordinator.catalogue.hash)
    offer_key(run, coordinator.catalogue.hash, coordinator.key)
    assert Seals(run, coordinator.catalogue.hash).key
