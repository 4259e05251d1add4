"""Consent: what a person at the site decided about a study, signed with the site's own key.

A consent is about one study (its settings' digest) on one catalogue (its hash) by one coordinator (the key that signed), and
it ends on a day. Nothing else consents: not a trusted signer, not an earlier study of the same name. The gateway reads it
again for every request, so what a person decides holds from the next answer on.

The private key is needed to decide, not to answer: it may be kept away from the machine of the gateway, which reads
``keys/consent.pub`` only.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import StringConstraints, ValidationError

from consilium.common.errors import ErrorCode, StateError, WireError
from consilium.common.files import write_whole
from consilium.common.identity import signing
from consilium.common.identity.key_files import private_folder
from consilium.common.settings import Name, Settings
from consilium.common.wire import Digest, Envelope

LOG: Final = logging.getLogger(__name__)
DOMAIN: Final = b"consilium consent 1"
DEFAULT_DAYS: Final = 90


class Consent(Settings):
    """A decision; ``until`` is the last day, in UTC, on which it holds."""

    schema_version: Literal[1] = 1
    site: Name
    study: Digest
    catalogue: Digest
    signer: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    decision: Literal["approved", "revoked"]
    decided: datetime
    until: date

    def to_bytes(self) -> bytes:
        """What is signed: canonical JSON, sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":")).encode()


class State(StrEnum):
    """How it stands with a study."""

    WAITING = "waiting"
    APPROVED = "approved"
    EXPIRED = "expired"
    REVOKED = "revoked"
    INVALID = "invalid"


class ConsentBook:
    """The decisions of a site, one file a study and catalogue.

    Parameters
    ----------
    folder
        Holds the decisions; ``keys/`` beside it holds ``consent.pem`` and ``consent.pub``.
    site
        The site's name.
    today
        The day, in UTC; an argument so that tests need not wait.
    """

    def __init__(self, folder: Path, site: str, today: Callable[[], date] = lambda: datetime.now(UTC).date()) -> None:
        self._folder: Final = folder
        self._site: Final = site
        self._today: Final = today
        self._private: Final = folder.parent / "keys" / "consent.pem"
        self._public: Final = folder.parent / "keys" / "consent.pub"

    def decide(
        self, study: Envelope, signer: bytes, decision: Literal["approved", "revoked"], until: date
    ) -> tuple[Consent, bytes]:
        """Write a decision down, signed; gives it with the public key. The key is made at first use, mode 0600.

        Raises
        ------
        StateError
            If the key is damaged.
        """
        key = signing.signing_key(self._private)
        public = signing.public_key_of(key)
        consent = Consent(
            site=self._site,
            study=study.study,
            catalogue=study.catalogue,
            signer=signer.hex(),
            decision=decision,
            decided=datetime.now(UTC).replace(microsecond=0),
            until=until,
        )
        kept = {
            "consent": consent.model_dump(mode="json", by_alias=True),
            "key": public.hex(),
            "signature": signing.sign(key, DOMAIN, consent.to_bytes()).hex(),
        }
        private_folder(self._folder)
        write_whole(self._public, (public.hex() + "\n").encode())
        write_whole(self._page(study), (json.dumps(kept, indent=2) + "\n").encode())
        return consent, public

    def read(self, study: Envelope) -> Consent | None:
        """The decision about a study, or None if there is none.

        Raises
        ------
        StateError
            If it is damaged, or not signed with this site's consent key, or about something else.
        """
        try:
            kept = json.loads(self._page(study).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise StateError(f"{self._page(study)} cannot be read; approve or revoke the study again") from None
        try:
            consent = Consent.model_validate_json(json.dumps(kept["consent"]))
            own = bytes.fromhex(self._public.read_text("ascii"))
            signing.verify(own, DOMAIN, consent.to_bytes(), bytes.fromhex(kept["signature"]))
        except (KeyError, TypeError, ValueError, OSError, ValidationError, WireError):
            raise StateError(
                f"{self._page(study)} is not a decision signed with this site's consent key ({self._public}); approve or "
                "revoke the study again"
            ) from None
        if (consent.site, consent.study, consent.catalogue) != (self._site, study.study, study.catalogue):
            raise StateError(f"{self._page(study)} is a decision about another study or of another site; remove it")
        return consent

    def state(self, study: Envelope, signer: bytes) -> State:
        """How it stands with a study shown by a signer."""
        try:
            consent = self.read(study)
        except StateError as error:
            LOG.error("%s", error)
            return State.INVALID
        if consent is None:
            return State.WAITING
        if consent.decision == "revoked":
            return State.REVOKED
        if consent.signer != signer.hex():
            return State.WAITING
        return State.APPROVED if self._today() <= consent.until else State.EXPIRED

    def require(self, study: Envelope, signer: bytes, *, auto_approve: bool = False) -> None:
        """Refuse a study without consent: `WireError` ``not-consented``. What a person revoked is not approved by itself."""
        state = self.state(study, signer)
        if state is not State.APPROVED and not (auto_approve and state in (State.WAITING, State.EXPIRED)):
            raise WireError(ErrorCode.NOT_CONSENTED, f"study {study.study[:12]} is {state}")

    def _page(self, study: Envelope) -> Path:
        return self._folder / f"{study.study}-{study.catalogue[:12]}.json"
