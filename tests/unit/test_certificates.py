"""Certificates: whom a client trusts, under which names, until when, and what is refused."""

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from consilium.common.errors import SettingsError, StateError
from consilium.common.identity.certificates import make_authority, make_server_certificate


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
    assert {stat.S_IMODE(key.stat().st_mode) for key in (made.key, authority.key)} == {0o600}
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
