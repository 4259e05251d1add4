"""Node keys (EC P-384, OpenSSH format), one per site: Flower's SuperLink knows who talks to it.

A node key also signs a site's wish to join (`sign_with_node_key`): the proof that whoever sent the public key holds the
private one.
"""

import base64
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.common.errors import StateError
from consilium.common.files import write_whole
from consilium.common.identity.key_files import private_folder, refuse_existing, write_private
from consilium.common.identity.signing import fingerprint, in_domain

NODE_KEY_HELP: Final = "a node key is an EC P-384 key; make one with `consilium-site join`"


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
    refuse_existing(public_path)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(path, private)
    write_whole(public_path, public + b"\n")
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
    return load_node_key(path).sign(in_domain(domain, data), ec.ECDSA(hashes.SHA384()))


def verify_with_node_key(line: bytes, domain: bytes, data: bytes, signature: bytes) -> bool:
    """Tell whether `sign_with_node_key` made the signature with the private half of a public key, one OpenSSH line."""
    try:
        _node_public_key(line).verify(signature, in_domain(domain, data), ec.ECDSA(hashes.SHA384()))
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
