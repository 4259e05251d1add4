"""The studies a site was shown: what may be shown to it, and how it remembers them.

A site remembers the whole request, signature included, and checks it again whenever it is read back: a study does not
outlive the trust in its signer. That it remembers a study says nothing yet about consent.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consilium.clients import policy
from consilium.clients.consent import ConsentBook, State
from consilium.clients.image_store import ImageStore
from consilium.clients.settings import SiteHome, SiteSettings
from consilium.common import sealing
from consilium.common.catalogue import SIGNATURE_DOMAIN, Manifest
from consilium.common.errors import ErrorCode, WireError
from consilium.common.files import write_whole
from consilium.common.identity import signing
from consilium.common.identity.key_files import private_folder
from consilium.common.settings import toml_of
from consilium.common.study import Study
from consilium.common.wire import DescribeRequest, Envelope, PredictRequest

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """A study the site was shown, by whom, and the images of its catalogue that are here."""

    request: DescribeRequest
    study: Study
    manifest: Manifest
    images: ImageStore

    @property
    def signer(self) -> bytes:
        """Public key of the coordinator."""
        return self.request.signer

    def put_all(self, request: PredictRequest) -> None:
        """Keep the pixels that came with a request for images of the catalogue."""
        for name, coded in zip(request.ids, request.pixels, strict=False):
            self.images.put(name, coded)


def admit(request: DescribeRequest, settings: SiteSettings) -> tuple[Study, Manifest]:
    """Decide whether a study may be shown to the site.

    The signature is checked first: nothing else is read of a list that nobody signed.

    Raises
    ------
    WireError
        ``bad-signature``; ``not-consented`` if the site is not named; ``bad-message`` if settings, list and envelope do not
        belong together; ``refused-by-policy`` if the signer is not trusted, or for what the study is.
    """
    signing.verify(request.signer, SIGNATURE_DOMAIN, request.manifest, request.signature)
    policy.require_signer(settings.policy, request.signer)
    policy.require_sealing(settings.policy, request.sealing_key)
    if request.sealing_key:
        sealing.verify_study_key(request.signer, request.catalogue, request.sealing_key, request.sealing_signature)
    if hashlib.sha256(request.manifest).hexdigest() != request.catalogue:
        raise WireError(ErrorCode.BAD_MESSAGE, "the manifest's hash is not the envelope's catalogue")
    manifest = Manifest.from_bytes(request.manifest)
    study = _read_study(request.settings)
    if study.digest != request.study:
        raise WireError(ErrorCode.BAD_MESSAGE, "the settings' digest is not the envelope's study")
    if (study.image.size, study.image.channels) != (manifest.size, manifest.channels):
        raise WireError(ErrorCode.BAD_MESSAGE, "study and catalogue have different canonical forms")
    if settings.name not in study.sites:
        raise WireError(ErrorCode.NOT_CONSENTED, f"{settings.name} is not among the study's sites")
    policy.require_study(settings.policy, study.name, len(manifest.images))
    return study, manifest


class StudyBook:
    """The studies of a site; they survive a restart. Several threads and processes may use the same folder.

    Parameters
    ----------
    home
        Of the site.
    consents
        What was decided about them.
    """

    def __init__(self, home: SiteHome, consents: ConsentBook) -> None:
        self._home: Final = home
        self._consents: Final = consents
        private_folder(home.studies)
        private_folder(home.catalogues)
        self._lock = threading.Lock()
        self._shown: dict[tuple[str, str], Shown] = {}

    def show(self, request: DescribeRequest) -> Shown:
        """Admit a study and remember it, for a person to decide about; see `admit`.

        Raises
        ------
        WireError
            ``not-consented`` if another signer showed the same study before: whoever comes second could have seen it on its
            way. ``refused-by-policy`` if too many studies wait for a decision.
        """
        admit(request, self._home.settings)
        with self._lock:
            try:
                before = self._read(request)
            except WireError:
                self._require_room(request)
            else:
                if before.signer != request.signer:
                    raise WireError(
                        ErrorCode.NOT_CONSENTED,
                        f"shown by {signing.fingerprint(before.signer)} before, now by {signing.fingerprint(request.signer)}",
                    )
            _write(self._home.catalogues / request.catalogue / "manifest.json", request.manifest)
            kept = {
                "study": request.study,
                "catalogue": request.catalogue,
                "settings": request.settings,
                "signature": request.signature.hex(),
                "signer": request.signer.hex(),
                "sealing-key": request.sealing_key.hex(),
                "sealing-signature": request.sealing_signature.hex(),
            }
            _write(self._page(request), json.dumps(kept).encode())
            held = self._shown.get((request.study, request.catalogue))
            if held is not None and held.request != request:
                del self._shown[request.study, request.catalogue]
        return self._open(request)

    def recall(self, envelope: Envelope) -> Shown:
        """Find the study of a request.

        Raises
        ------
        WireError
            ``unknown-study`` if it was never shown; what `admit` raises if it may not be shown any more.
        """
        with self._lock:
            shown = self._shown.get((envelope.study, envelope.catalogue))
        return shown or self._open(self._read(envelope))

    def keep_for_review(self, shown: Shown, request: PredictRequest) -> None:
        """Keep the images of a study that waits for consent, or has it: a person has to see them."""
        shown.images.require_known(request.ids)
        if self._consents.state(shown.request, shown.signer) in (State.REVOKED, State.INVALID):
            return
        if shown.images.size_bytes > self._home.settings.policy.review_mib * 2**20:
            LOG.warning("the images of %s are not kept: policy.review-mib", shown.study.name)
            return
        shown.put_all(request)

    def all(self) -> list[Shown]:
        """Every study that was shown and may still be, in the order of their digests."""
        found = []
        for request in self._pages():
            try:
                found.append(self.recall(request))
            except WireError as error:
                LOG.warning("study %s is passed over: %s", request.study[:12], error)
        return found

    def _pages(self) -> Iterator[DescribeRequest]:
        """Every page that can be read."""
        for page in sorted(self._home.studies.glob("*.json")):
            try:
                kept = json.loads(page.read_bytes())
                yield self._read(Envelope(study=kept["study"], catalogue=kept["catalogue"]))
            except (ValueError, KeyError, TypeError, WireError):
                LOG.warning("%s cannot be read; the study has to be described again", page)

    def _require_room(self, request: DescribeRequest) -> None:
        if self._home.settings.policy.auto_approve:
            return
        waiting = sum(self._consents.state(page, page.signer) is State.WAITING for page in self._pages())
        most = self._home.settings.policy.max_waiting
        if waiting >= most:
            raise WireError(
                ErrorCode.REFUSED_BY_POLICY,
                f"{waiting} studies wait for a decision, policy.max-waiting is {most}: approve or revoke some, then "
                f"{request.study[:12]} can be shown",
            )

    def _open(self, request: DescribeRequest) -> Shown:
        key = (request.study, request.catalogue)
        study, manifest = admit(request, self._home.settings)
        with self._lock:
            if key not in self._shown:
                images = ImageStore(self._home.catalogues / request.catalogue, manifest)
                self._shown[key] = Shown(request, study, manifest, images)
            return self._shown[key]

    def _page(self, envelope: Envelope) -> Path:
        return self._home.studies / f"{envelope.study}-{envelope.catalogue[:12]}.json"

    def _read(self, envelope: Envelope) -> DescribeRequest:
        try:
            kept = json.loads(self._page(envelope).read_bytes())
            return DescribeRequest(
                study=envelope.study,
                catalogue=envelope.catalogue,
                settings=kept["settings"],
                manifest=(self._home.catalogues / envelope.catalogue / "manifest.json").read_bytes(),
                signature=bytes.fromhex(kept["signature"]),
                signer=bytes.fromhex(kept["signer"]),
                sealing_key=bytes.fromhex(kept["sealing-key"]),
                sealing_signature=bytes.fromhex(kept["sealing-signature"]),
            )
        except FileNotFoundError:
            raise WireError(
                ErrorCode.UNKNOWN_STUDY, f"study {envelope.study}, catalogue {envelope.catalogue}"
            ) from None
        except (ValueError, KeyError, TypeError):
            LOG.warning("%s cannot be read; the study has to be described again", self._page(envelope))
            raise WireError(ErrorCode.UNKNOWN_STUDY, "damaged on the disk") from None


def _read_study(text: str) -> Study:
    try:
        return Study.model_validate(toml_of(text))
    except ValueError as error:  # pydantic's own is one, too
        raise WireError(ErrorCode.BAD_MESSAGE, f"the study's settings: {error}") from None


def _write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all; one that holds the same already is left alone."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
