"""Node keys: what Flower reads, and nothing is overwritten."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from consilium.common.errors import StateError
from consilium.common.identity.node_keys import make_node_key, read_node_public_key


def test_a_node_key_is_a_p384_key_as_flower_reads_it(tmp_path: Path) -> None:
    public_path = make_node_key(tmp_path / "keys" / "node_key")
    private_path = tmp_path / "keys" / "node_key"
    assert public_path == tmp_path / "keys" / "node_key.pub"
    assert stat.S_IMODE(private_path.stat().st_mode) == 0o600
    key = load_ssh_private_key(private_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert read_node_public_key(public_path) == public_key_to_bytes(key.public_key())
    with pytest.raises(StateError, match="never overwritten"):
        make_node_key(private_path)
    with pytest.raises(StateError, match=r"\.pub"):
        read_node_public_key(private_path)
