"""A certificate authority and the server certificate it issues: the sites know whom they talk to (TLS)."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consilium.common.errors import SettingsError, StateError
from consilium.common.files import write_whole
from consilium.common.identity.key_files import private_folder, private_pem, refuse_existing, write_private
from consilium.common.identity.signing import fingerprint

_CLOCK_SKEW: Final = datetime.timedelta(minutes=5)
_AUTHORITY_DAYS: Final = 3650


@dataclass(frozen=True)
class Authority:
    """A certificate authority on disk.

    Parameters
    ----------
    certificate
        PEM file; this is what sites are given.
    key
        PEM file with the private key; it stays with the coordinator.
    """

    certificate: Path
    key: Path


@dataclass(frozen=True)
class ServerCertificate:
    """What ``flower-superlink --ssl-*`` needs: three PEM files."""

    authority: Path
    certificate: Path
    key: Path


def make_authority(folder: Path, name: str) -> Authority:
    """Make a certificate authority (EC P-384, self-signed, ten years) in ``folder``.

    Parameters
    ----------
    folder
        Receives ``authority.pem`` and ``authority.key``; made, mode 0700, if need be.
    name
        Common name, 1 to 64 characters, as sites will see it.

    Raises
    ------
    StateError
        If either file exists.
    """
    authority = Authority(folder / "authority.pem", folder / "authority.key")
    private_folder(folder)
    refuse_existing(authority.certificate)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_private(authority.key, private_pem(key))
    write_whole(authority.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return authority


def make_server_certificate(
    folder: Path,
    authority: Authority,
    dns_names: Sequence[str],
    ip_addresses: Sequence[str],
    days: int,
) -> ServerCertificate:
    """Make a server key and have ``authority`` certify it for the names and addresses sites will connect to.

    Parameters
    ----------
    folder
        Receives ``server.pem`` and ``server.key``.
    authority
        Signs the certificate.
    dns_names, ip_addresses
        At least one of both together; clients refuse a server under any other name.
    days
        Days the certificate is valid from now, at least 1.

    Raises
    ------
    SettingsError
        If no name is given, an address is not one, or ``days`` is below 1.
    StateError
        If a file exists, or the authority's files are damaged.
    """
    if not dns_names and not ip_addresses:
        raise SettingsError("a server certificate needs at least one DNS name or IP address; none was given")
    if days < 1:
        raise SettingsError(f"a server certificate is valid for at least 1 day; got {days}")
    names = [*(x509.DNSName(name) for name in dns_names), *(_ip_name(address) for address in ip_addresses)]
    issuer, issuer_key = _load_authority(authority)
    result = ServerCertificate(authority.certificate, folder / "server.pem", folder / "server.key")
    private_folder(folder)
    refuse_existing(result.certificate)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _builder(_name((*dns_names, *ip_addresses)[0][:64]), issuer.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA384())
    )
    write_private(result.key, private_pem(key))
    write_whole(result.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return result


@dataclass(frozen=True)
class CertificateFacts:
    """What a person wants to know of a certificate.

    Parameters
    ----------
    subject, issuer
        Common names.
    names
        DNS names and IP addresses it is valid for.
    begins, ends
        When it is valid; time zone UTC.
    fingerprint
        Of the whole certificate (SHA-256 of its DER form), written as `fingerprint` writes a key's.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: datetime.datetime
    ends: datetime.datetime
    fingerprint: str

    def days_left(self, now: datetime.datetime) -> int:
        """Whole days until it ends, rounded down; negative once it has ended."""
        return (self.ends - now).days

    def is_valid(self, now: datetime.datetime) -> bool:
        """Whether ``now``, with a time zone, lies between its begin and its end."""
        return self.begins <= now < self.ends


def certificate_facts(pem: bytes, origin: str) -> CertificateFacts:
    """Read a certificate, PEM; `StateError`, which names ``origin``, if it is damaged."""
    certificate = _certificate(pem, origin)
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        san = x509.SubjectAlternativeName([])
    names = (*san.get_values_for_type(x509.DNSName), *map(str, san.get_values_for_type(x509.IPAddress)))
    return CertificateFacts(
        _common_name(certificate.subject),
        _common_name(certificate.issuer),
        names,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        fingerprint(certificate.public_bytes(serialization.Encoding.DER)),
    )


def issued_by(certificate_pem: bytes, authority_pem: bytes) -> bool:
    """Tell whether the authority, PEM, signed the certificate, PEM; dates are not looked at."""
    try:
        _certificate(certificate_pem, "the certificate").verify_directly_issued_by(
            _certificate(authority_pem, "the authority")
        )
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_key_of(key_pem: bytes, certificate_pem: bytes) -> bool:
    """Tell whether the private key, PEM, is the certificate's, PEM; False if either is damaged."""
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        return key.public_key() == x509.load_pem_x509_certificate(certificate_pem).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _certificate(pem: bytes, origin: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StateError(f"{origin} holds no certificate (PEM): {error}") from error


def _common_name(name: x509.Name) -> str:
    return ", ".join(str(part.value) for part in name.get_attributes_for_oid(NameOID.COMMON_NAME))


def _name(common_name: str) -> x509.Name:
    if not 1 <= len(common_name) <= 64:
        raise SettingsError(f"a certificate's name has 1 to 64 characters; got {common_name!r}")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _ip_name(address: str) -> x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError as error:
        raise SettingsError(f"{address!r} is not an IP address; give DNS names as DNS names") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(authority: Authority) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
        key = serialization.load_pem_private_key(authority.key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"the authority in {authority.key.parent} can not be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise StateError(f"{authority.key} is not the key of {authority.certificate}")
    return certificate, key
