import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import ErrorCode, SettingsError, StateError, WireError
from consilium.common.identity import (
    fingerprint,
    load_signing_key,
    make_authority,
    make_node_key,
    make_server_certificate,
    make_signing_key,
    public_key_of,
    read_node_public_key,
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


def test_a_node_key_is_a_p384_key_as_flower_reads_it(tmp_path: Path) -> None:
    public_path = make_node_key(tmp_path / "keys" / "node_key")
    private_path = tmp_path / "keys" / "node_key"
    assert public_path == tmp_path / "keys" / "node_key.pub"
    assert mode(private_path) == 0o600
    key = load_ssh_private_key(private_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert read_node_public_key(public_path) == public_key_to_bytes(key.public_key())
    with pytest.raises(StateError, match="never overwritten"):
        make_node_key(private_path)
    with pytest.raises(StateError, match=r"\.pub"):
        read_node_public_key(private_path)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """Shake hands in memory; raise what the client thinks of the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(10):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert here.version() is not None


def test_a_client_that_trusts_the_authority_accepts_the_server_under_its_names_only(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "study authority")
    made = make_server_certificate(tmp_path, authority, ["hub.example.org"], ["127.0.0.1", "::1"], 30)
    assert mode(made.key) == mode(authority.key) == 0o600
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(made.authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("hub.example.org", "127.0.0.1", "::1"):
        handshake(server, client, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "other.example.org")
    stranger = make_authority(tmp_path / "stranger", "study authority")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, ssl.create_default_context(cafile=str(stranger.certificate)), "127.0.0.1")


def test_a_server_certificate_ends_after_the_days_given(tmp_path: Path) -> None:
    made = make_server_certificate(tmp_path, make_authority(tmp_path, "a"), ["h"], [], 30)
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29, hours=23) < left <= datetime.timedelta(days=30)


def test_wrong_certificate_settings_are_named(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "a")
    for arguments, said in (
        (([], [], 1), "at least one"),
        ((["h"], [], 0), "at least 1 day"),
        (([], ["h"], 1), "not an IP"),
    ):
        with pytest.raises(SettingsError, match=said):
            make_server_certificate(tmp_path / "s", authority, *arguments)
    with pytest.raises(SettingsError, match="64 characters"):
        make_authority(tmp_path / "b", "x" * 65)
    with pytest.raises(StateError, match="never overwritten"):
        make_authority(tmp_path, "again")


def test_an_authority_whose_key_is_anothers_is_refused(tmp_path: Path) -> None:
    one, two = make_authority(tmp_path / "1", "a"), make_authority(tmp_path / "2", "b")
    one.key.write_bytes(two.key.read_bytes())
    with pytest.raises(StateError, match="not the key"):
        make_server_certificate(tmp_path / "s", one, ["h"], [], 1)
