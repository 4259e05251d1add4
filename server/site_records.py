"""What a coordinator keeps of each site: its invitation, its node key, and when they run out.

A site is *invited* (a kit was made), *joined* (its key was accepted) or *revoked*. Dates are compared with a clock that the
caller gives.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field

from consilium.common.errors import StateError
from consilium.common.files import write_whole
from consilium.common.identity.node_keys import node_fingerprint, node_key_pem
from consilium.common.settings import Name, NameList, Settings


class SiteRecord(Settings):
    """What is known of a site."""

    name: Name
    labels: NameList
    invitation: str = Field("", description="secret of the kit that is out; empty: none is")
    invited_until: AwareDatetime | None = None
    key: str = Field("", description="node key, public, one OpenSSH line; empty: it has not joined")
    key_until: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    former_keys: tuple[str, ...] = Field((), description="fingerprints of keys that are taken no more")

    def takes_part(self, now: datetime) -> bool:
        """Whether its key is to be let in."""
        return bool(self.key) and self.revoked is None and self.key_until is not None and now < self.key_until

    def is_invited(self, now: datetime) -> bool:
        """Whether a kit is out with which it may still join."""
        return bool(self.invitation) and self.invited_until is not None and now < self.invited_until

    def state(self, now: datetime) -> str:
        """In words."""
        if self.revoked is not None:
            return f"revoked {self.revoked:%Y-%m-%d}"
        if self.key:
            new = ", new kit out" if self.is_invited(now) else ""
            return ("joined" if self.takes_part(now) else "KEY RAN OUT") + new
        return "invited" if self.is_invited(now) else "INVITATION RAN OUT"

    @property
    def key_fingerprint(self) -> str:
        """Of the present key; empty if there is none."""
        return node_fingerprint(self.key.encode()) if self.key else ""

    @property
    def key_pem(self) -> bytes:
        """The key as the SuperLink keeps it."""
        return node_key_pem(self.key.encode())


def load_record(path: Path) -> SiteRecord:
    """Read a site's record; `StateError` if it is damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return SiteRecord.model_validate(values)
    except (OSError, ValueError) as error:
        raise StateError(
            f"{path} is damaged: {error}; restore it from a backup, or delete it and add the site"
        ) from None


def save_record(path: Path, record: SiteRecord) -> None:
    """Write a site's record, in one step."""
    text = json.dumps(record.model_dump(mode="json", by_alias=True), indent=2) + "\n"
    write_whole(path, text.encode(), 0o600)
