"""Signing keys (Ed25519): a catalogue, an approval or an offline answer can be checked long after it was made.

Every signature is for one domain, which says what it means (`in_domain`).
"""

import base64
import contextlib
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consilium.common.errors import ErrorCode, StateError, WireError
from consilium.common.identity.key_files import private_folder, private_pem, read_private, write_private


def make_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make an Ed25519 signing key and write it (PEM, PKCS #8, mode 0600) to the new file ``path``.

    Raises
    ------
    StateError
        If the file exists.
    """
    private_folder(path.parent)
    key = Ed25519PrivateKey.generate()
    write_private(path, private_pem(key))
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Load what `make_signing_key` wrote.

    Raises
    ------
    StateError
        If the file is missing, damaged or another kind of key.
    """
    key = read_private(path, "signing key")
    if not isinstance(key, Ed25519PrivateKey):
        raise StateError(f"a signing key is an Ed25519 key; {path} holds a {type(key).__name__}")
    return key


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Load the signing key at ``path``, made at first use, whichever process is first; see `load_signing_key`."""
    if not path.exists():
        with contextlib.suppress(StateError):  # another process was faster
            make_signing_key(path)
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
        What the signature means, for instance ``b"consilium catalogue 1"``; a signature for one domain never
        verifies in another, so an approval can not be passed off as a catalogue.
    data
        What is signed.

    Returns
    -------
    bytes
        64 bytes (Ed25519, RFC 8032, over the domain's length, the domain and the data).
    """
    return key.sign(in_domain(domain, data))


def verify(public_key: bytes, domain: bytes, data: bytes, signature: bytes) -> None:
    """Check a signature made by `sign`.

    Raises
    ------
    WireError
        With code ``BAD_SIGNATURE`` if it does not verify, or the public key is not 32 bytes of a key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, in_domain(domain, data))
    except (InvalidSignature, ValueError) as error:
        raise WireError(ErrorCode.BAD_SIGNATURE, f"domain {domain!r}, key {fingerprint(public_key)}") from error


def fingerprint(public_key: bytes) -> str:
    """Return the name of a public key for people to compare over the telephone: ``SHA256:`` and the hash in base64.

    That is OpenSSH's way of writing it. What is hashed are the bytes given: of a signing key the 32 raw ones, where OpenSSH
    hashes its own encoding of the key, so ``ssh-keygen`` prints another name for it; of a node key (`node_fingerprint`) that
    encoding.
    """
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode().rstrip("=")


def in_domain(domain: bytes, data: bytes) -> bytes:
    """Put the domain before the data so that no other split of the same bytes exists."""
    return len(domain).to_bytes(4, "big") + domain + data
