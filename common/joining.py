"""What a coordinator hands to a site, and what the site sends back to join: the words both sides agree on.

The coordinator makes a *kit*: one archive with the certificate authority, the site's settings and policy, and an *invitation*, a
secret that is good once and for some days. The site makes its node key and answers with a *join file*: name, public key, a
signature by the private key (whoever sends the public key holds the private one) and a tag made with the invitation
(whoever joins under this name was given this kit). Nothing in a join file is secret.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import AwareDatetime, Field

from consilium.common.errors import DataError, SettingsError
from consilium.common.identity.node_keys import (
    node_fingerprint,
    node_public_line,
    sign_with_node_key,
    verify_with_node_key,
)
from consilium.common.settings import Name, Settings, parse

KIT_FACTS: Final = "kit.json"
AUTHORITY: Final = "authority.pem"
SITE_SETTINGS: Final = "site.toml"
SITE_POLICY: Final = "policy.toml"
NODE_KEY: Final = "node-key"
KIT_FILES: Final = (
    KIT_FACTS, AUTHORITY, SITE_SETTINGS, SITE_POLICY, "README.md", "consilium-site.service", "compose.yaml",
)  # fmt: skip
"""Every kit holds these files, at the top, and nothing else."""
MAX_KIT_BYTES: Final = 2**20
MAX_JOIN_BYTES: Final = 2**14
_DOMAIN: Final = b"consilium-join-1"


class KitFacts(Settings):
    """What ``kit.json`` says."""

    format: Literal["consilium-kit-1"] = "consilium-kit-1"
    federation: Name
    site: Name
    superlink: str = Field(description="host:port that the site connects to")
    authority: str = Field(description="fingerprint of the certificate authority")
    signer: str = Field(pattern="^[0-9a-f]{64}$", description="the coordinator's Ed25519 public key")
    invitation: str = Field(pattern="^[0-9a-f]{64}$", description="the secret of this kit")
    expires: AwareDatetime = Field(description="when the invitation runs out")


class JoinRequest(Settings):
    """A join file."""

    format: Literal["consilium-join-1"] = "consilium-join-1"
    name: Name
    authority: str = Field(max_length=100, description="fingerprint of the authority the site was given")
    public_key: str = Field(max_length=1000, description="the node key's public half, one OpenSSH line")
    made: AwareDatetime
    invitation_tag: str = Field(pattern="^[0-9a-f]{64}$", description="HMAC-SHA256 of the statement")
    signature: str = Field(max_length=300, description="by the node key, over the statement; base64")

    @property
    def statement(self) -> bytes:
        """What is signed and tagged."""
        return _statement(self.model_dump(mode="json", by_alias=True))

    @property
    def key_fingerprint(self) -> str:
        """For people to compare."""
        return node_fingerprint(self.public_key.encode())


def make_join(name: str, authority: str, key: Path, invitation: str, now: datetime) -> JoinRequest:
    """Ask to join.

    Parameters
    ----------
    name
        Of the site.
    authority
        Fingerprint of the authority in the kit.
    key
        The site's private node key.
    invitation
        Of the kit, 64 hexadecimal digits.
    now
        With a time zone.

    Raises
    ------
    StateError
        If the key can not be read.
    """
    facts = {
        "format": "consilium-join-1",
        "name": name,
        "authority": authority,
        "public-key": node_public_line(key).decode(),
        "made": now.isoformat(timespec="seconds"),
    }
    request = JoinRequest.model_validate(facts | {"invitation-tag": "0" * 64, "signature": ""})
    signature = base64.b64encode(sign_with_node_key(key, _DOMAIN, request.statement)).decode()
    return request.model_copy(
        update={"invitation_tag": invitation_tag(invitation, request.statement), "signature": signature}
    )


def read_join(path: Path) -> JoinRequest:
    """Read a join file and check that it proves what it says; that its invitation is good is for the coordinator to say.

    Raises
    ------
    DataError
        If it is no join file, damaged, or the signature is not by the key that it names.
    """
    try:
        if path.stat().st_size > MAX_JOIN_BYTES:
            raise DataError(f"{path}: a join file has at most {MAX_JOIN_BYTES} bytes; this is something else")
        request = parse(JoinRequest, json_object(path.read_bytes()), str(path))
    except (OSError, ValueError, SettingsError) as error:
        raise DataError(f"{path} is no join file, as `consilium-site join` writes it: {error}") from None
    try:
        signature = base64.b64decode(request.signature, validate=True)
    except binascii.Error:
        signature = b""
    if not verify_with_node_key(request.public_key.encode(), _DOMAIN, request.statement, signature):
        raise DataError(
            f"{path}: the signature is not by the key that the file names; it was changed or forged: ask the site to send it "
            "again, and register nothing"
        )
    return request


def invitation_tag(invitation: str, statement: bytes) -> str:
    """Tag a statement with an invitation, 64 hexadecimal digits: HMAC-SHA256, in hexadecimal digits."""
    return hmac.new(bytes.fromhex(invitation), statement, hashlib.sha256).hexdigest()


def write_join(path: Path, request: JoinRequest) -> None:
    """Write a join file; nothing in it is secret."""
    path.write_text(json.dumps(request.model_dump(mode="json", by_alias=True), indent=2) + "\n", "utf-8")


def _statement(fields: Mapping[str, Any]) -> bytes:
    said = {key: value for key, value in fields.items() if key not in ("signature", "invitation-tag")}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def json_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object; `ValueError` if it is anything else, or nested deeper than Python follows."""
    try:
        read = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(read, dict):
        raise ValueError("not a JSON object")
    return read
