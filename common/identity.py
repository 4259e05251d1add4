"""Keys, certificates and signatures.

Three kinds of key, each for one purpose:

- a **certificate authority** and the server certificate it issues: the sites know whom they talk to (TLS);
- a **node key** (EC P-384, OpenSSH format) per site: Flower's SuperLink knows who talks to it;
- a **signing key** (Ed25519): a catalogue, an approval or an offline answer can be checked long after it was made.

A node key also signs a site's wish to join (`sign_with_node_key`): the proof that whoever sent the public key holds the
private one.

Private keys are written once, readable by their owner only, and never overwritten: a key that is replaced by accident
locks its owner out without a word.
"""

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consilium.common.errors import ErrorCode, SettingsError, StateError, WireError

NODE_KEY_HELP: Final = "a node key is an EC P-384 key; make one with `consilium-site join`"
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


def private_folder(folder: Path) -> Path:
    """Make ``folder`` (and its parents) if need be and close it to everyone but its owner (mode 0700)."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Write ``content`` to a new file that only its owner can read (mode 0600).

    Raises
    ------
    StateError
        If the file exists.
    """
    _refuse_existing(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


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
    _refuse_existing(authority.certificate)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_private(authority.key, _private_pem(key))
    authority.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
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
    _refuse_existing(result.certificate)
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
    write_private(result.key, _private_pem(key))
    result.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
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


def _certificate(pem: bytes, origin: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StateError(f"{origin} holds no certificate (PEM): {error}") from error


def _common_name(name: x509.Name) -> str:
    return ", ".join(str(part.value) for part in name.get_attributes_for_oid(NameOID.COMMON_NAME))


def make_node_key(path: Path) -> Path:
    """Make a site's node key as Flower's SuperNode wants it.

    Parameters
    ----------
    path
        Receives the private key (EC P-384, OpenSSH format, no passphrase); ``path`` + ``.pub`` the public one.

    Returns
    -------
    Path
        The public key file; it is all the coordinator needs.

    Raises
    ------
    StateError
        If either file exists.
    """
    public_path = path.with_name(path.name + ".pub")
    private_folder(path.parent)
    _refuse_existing(public_path)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(path, private)
    public_path.write_bytes(public + b"\n")
    return public_path


def read_node_public_key(path: Path) -> bytes:
    """Read the ``.pub`` file of a node key.

    Returns
    -------
    bytes
        The key as the SuperLink keeps it and as ``NodeInfo.public_key`` gives it back: PEM, SubjectPublicKeyInfo.

    Raises
    ------
    StateError
        If the file is missing or holds no EC P-384 public key.
    """
    try:
        return node_key_pem(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(f"a node's public key is an OpenSSH file (.pub); {path} is not: {error}") from error


def node_key_pem(line: bytes) -> bytes:
    """Turn a node's public key, one OpenSSH line, into PEM as the SuperLink keeps it; `ValueError` if it is none."""
    key = _node_public_key(line)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def node_fingerprint(line: bytes) -> str:
    """Return the name of a node's public key, one OpenSSH line, as ``ssh-keygen -lf`` prints it; `ValueError` if it is none."""
    openssh = _node_public_key(line).public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return fingerprint(base64.b64decode(openssh.split()[1]))


def sign_with_node_key(path: Path, domain: bytes, data: bytes) -> bytes:
    """Sign ``data`` for one purpose with the private node key of a file.

    Returns
    -------
    bytes
        A DER signature (ECDSA, P-384, SHA-384) over the domain's length, the domain and the data, as `sign` has it.

    Raises
    ------
    StateError
        If the file is missing, damaged or another kind of key.
    """
    return load_node_key(path).sign(_in_domain(domain, data), ec.ECDSA(hashes.SHA384()))


def verify_with_node_key(line: bytes, domain: bytes, data: bytes, signature: bytes) -> bool:
    """Tell whether `sign_with_node_key` made the signature with the private half of a public key, one OpenSSH line."""
    try:
        _node_public_key(line).verify(signature, _in_domain(domain, data), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def node_public_line(path: Path) -> bytes:
    """Return the public half of the private node key in ``path``, one OpenSSH line; `StateError` if it is no node key."""
    key = load_node_key(path).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _node_public_key(line: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(line)
    except (UnsupportedAlgorithm, NotImplementedError) as error:  # the latter of a point that is compressed
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError(f"it holds another kind of key; {NODE_KEY_HELP}")
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the private key that `make_node_key` wrote; `StateError` if it is missing, damaged or another kind of key."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"{path} holds no readable node key: {error}; restore it, or join anew") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise StateError(f"{path} holds another kind of key; {NODE_KEY_HELP}")
    return key


def make_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make an Ed25519 signing key and write it (PEM, PKCS #8, mode 0600) to the new file ``path``.

    Raises
    ------
    StateError
        If the file exists.
    """
    private_folder(path.parent)
    key = Ed25519PrivateKey.generate()
    write_private(path, _private_pem(key))
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Load what `make_signing_key` wrote.

    Raises
    ------
    StateError
        If the file is missing, damaged or another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"{path} holds no readable signing key: {error}; restore it from a backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StateError(f"a signing key is an Ed25519 key; {path} holds a {type(key).__name__}")
    return key


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Load the signing key at ``path``, made at first use, whichever process is first; see `load_signing_key`."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.partial")
        make_signing_key(partial)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(partial, path)
        partial.unlink()
    return load_signing_key(path)


def public_key_of(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of the public key that verifies what ``key`` signs."""
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, domain: bytes, data: bytes) -> bytes:
    """Sign ``data`` for one purpose.

    Parameters
    ----------
    key
        Whose signature.
    domain
        What the signature means, for instance ``b"consilium-catalogue-1"``; a signature for one domain never
        verifies in another, so an approval can not be passed off as a catalogue.
    data
        What is signed.

    Returns
    -------
    bytes
        64 bytes (Ed25519, RFC 8032, over the domain's length, the domain and the data).
    """
    return key.sign(_in_domain(domain, data))


def verify(public_key: bytes, domain: bytes, data: bytes, signature: bytes) -> None:
    """Check a signature made by `sign`.

    Raises
    ------
    WireError
        With code ``BAD_SIGNATURE`` if it does not verify, or the public key is not 32 bytes of a key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _in_domain(domain, data))
    except (InvalidSignature, ValueError) as error:
        raise WireError(ErrorCode.BAD_SIGNATURE, f"domain {domain!r}, key {fingerprint(public_key)}") from error


def fingerprint(public_key: bytes) -> str:
    """Return the name of a public key for people to compare over the telephone, as OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode().rstrip("=")


def _in_domain(domain: bytes, data: bytes) -> bytes:
    """Put the domain before the data so that no other split of the same bytes exists."""
    return len(domain).to_bytes(4, "big") + domain + data


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise StateError(f"a key or certificate is never overwritten; {path} exists: move it away first")


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


def _private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
