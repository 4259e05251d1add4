"""Signing keys: what is signed for one purpose verifies for that alone; a key is kept privately and for good."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import ErrorCode, StateError, WireError
from consilium.common.identity.certificates import make_authority
from consilium.common.identity.signing import (
    fingerprint,
    load_signing_key,
    make_signing_key,
    public_key_of,
    sign,
    verify,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_key_of(KEY)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@given(domain=st.binary(max_size=20), data=st.binary(max_size=200))
def test_what_is_signed_verifies(domain: bytes, data: bytes) -> None:
    verify(PUBLIC, domain, data, sign(KEY, domain, data))


@given(data=st.binary(min_size=1, max_size=50), place=st.integers(0, 10_000))
def test_one_changed_bit_of_data_or_signature_is_refused(data: bytes, place: int) -> None:
    def flipped(content: bytes) -> bytes:
        bit = place % (8 * len(content))
        return bytes(byte ^ (1 << bit % 8 if k == bit // 8 else 0) for k, byte in enumerate(content))

    signature = sign(KEY, b"d", data)
    for changed in ((flipped(data), signature), (data, flipped(signature))):
        with pytest.raises(WireError) as refused:
            verify(PUBLIC, b"d", *changed)
        assert refused.value.code is ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize(("domain", "data"), [(b"approval", b"x"), (b"cat", b"aloguex"), (b"", b"cataloguex")])
def test_a_signature_for_one_purpose_is_refused_for_another(domain: bytes, data: bytes) -> None:
    signature = sign(KEY, b"catalogue", b"x")
    with pytest.raises(WireError):
        verify(PUBLIC, domain, data, signature)


@pytest.mark.parametrize(
    "key",
    [b"", b"short", bytes(33), public_key_of(Ed25519PrivateKey.generate())],
    ids=["empty", "short", "long", "another"],
)
def test_another_key_or_no_key_is_refused_as_a_bad_signature(key: bytes) -> None:
    with pytest.raises(WireError) as refused:
        verify(key, b"d", b"x", sign(KEY, b"d", b"x"))
    assert refused.value.code is ErrorCode.BAD_SIGNATURE


def test_signatures_are_frozen() -> None:
    # Ed25519 is deterministic: this value changes only if the bytes under the signature do.
    assert PUBLIC.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert sign(KEY, b"consilium-test-1", b"data") == KEY.sign(b"\x00\x00\x00\x10consilium-test-1data")


def test_a_fingerprint_is_the_base64_sha256_of_the_key() -> None:
    # SHA-256 of the empty string, the textbook value e3b0c442...b855 in base64 without padding.
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"


def test_a_signing_key_is_private_comes_back_the_same_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "sign.pem"
    key = make_signing_key(path)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert public_key_of(load_signing_key(path)) == public_key_of(key)
    with pytest.raises(StateError, match="never overwritten"):
        make_signing_key(path)
    assert public_key_of(load_signing_key(path)) == public_key_of(key)


def test_a_damaged_missing_or_foreign_signing_key_is_a_state_error(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca", "x")
    (tmp_path / "torn").write_bytes(b"-----BEGIN PRIVATE KEY-----\nMC4C")
    for path in (tmp_path / "absent", tmp_path / "torn", authority.key):
        with pytest.raises(StateError):
            load_signing_key(path)
