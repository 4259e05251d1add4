"""Keys on disk: a private key is written once and whole, readable by its owner only, and never overwritten.

A key that is replaced by accident locks its owner out without a word. Four kinds are kept so, each for one purpose: those
of `certificates`, `node_keys` and `signing`, and a study's key, to which answers are sealed (`sealing`).
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from consilium.common.errors import StateError
from consilium.common.files import create_whole


def private_folder(folder: Path) -> Path:
    """Make ``folder`` (and its parents) if need be and close it to everyone but its owner (mode 0700)."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Write ``content`` whole to a new file that only its owner can read (mode 0600).

    Raises
    ------
    StateError
        If the file exists, be it that another process made it just now.
    """
    try:
        create_whole(path, content, 0o600)
    except FileExistsError:
        raise _exists(path) from None


def refuse_existing(path: Path) -> None:
    """Refuse to go on where a key or certificate lies already: `StateError`."""
    if path.exists():
        raise _exists(path)


def private_pem(key: EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """Return a private key as PEM, PKCS #8, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_private(path: Path, what: str) -> PrivateKeyTypes:
    """Read a private key that `write_private` wrote of `private_pem`; which kind it is, the caller sees to.

    Raises
    ------
    StateError
        If the file is missing or damaged; ``what`` names the key.
    """
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"{path} holds no readable {what}: {error}; restore it from a backup") from None


def _exists(path: Path) -> StateError:
    return StateError(f"a key or certificate is never overwritten; {path} exists: move it away first")
