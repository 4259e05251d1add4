"""Keys on disk: a private key is written once, readable by its owner only, and never overwritten.

A key that is replaced by accident locks its owner out without a word. Four kinds are kept so, each for one purpose: those
of `certificates`, `node_keys` and `signing`, and a study's key, to which answers are sealed (`sealing`).
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from consilium.common.errors import StateError


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
    refuse_existing(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def refuse_existing(path: Path) -> None:
    """Refuse to go on where a key or certificate lies already: `StateError`."""
    if path.exists():
        raise StateError(f"a key or certificate is never overwritten; {path} exists: move it away first")


def private_pem(key: EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """Return a private key as PEM, PKCS #8, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
