"""The run folder's keys: the study's own, which opens sealed answers, and the sites', which signed them."""

import json
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilium.common import sealing
from consilium.common.errors import ErrorCode, StateError, WireError
from consilium.common.files import write_text
from consilium.common.identity.signing import fingerprint
from consilium.common.wire import PredictReply
from consilium.server.run_folder import RunFolder


def offer_key(run: RunFolder, catalogue: str, signing: Ed25519PrivateKey) -> bytes:
    """Make the study's key if there is none, and sign its public half for a catalogue; gives the public half.

    ``sealing.pem`` stays here, mode 0600; ``sealing.json`` is what the sites are shown.
    """
    private = (
        sealing.load_study_key(run.sealing_key) if run.sealing_key.exists() else sealing.make_study_key(run.sealing_key)
    )
    public = private.public_key().public_bytes_raw()
    offer = {
        "catalogue": catalogue,
        "key": public.hex(),
        "signature": sealing.sign_study_key(signing, catalogue, public).hex(),
    }
    write_text(run.sealing_offer, json.dumps(offer, indent=2) + "\n")
    return public


class Seals:
    """The keys of a run folder; without a study key, answers come in clear.

    Attributes
    ----------
    key, signature
        The study's public key and the coordinator's signature of it, as the sites are shown them; empty without one.
    table
        The file of the sites' keys.
    """

    def __init__(self, run: RunFolder, catalogue: str) -> None:
        self.table: Final = run.site_keys
        self._private: Final = sealing.load_study_key(run.sealing_key) if run.sealing_key.exists() else None
        self.key = self.signature = b""
        if self._private is None:
            return
        try:
            offer = json.loads(run.sealing_offer.read_text("utf-8"))
            self.key, self.signature = bytes.fromhex(offer["key"]), bytes.fromhex(offer["signature"])
            whole = (offer["catalogue"], self.key) == (catalogue, self._private.public_key().public_bytes_raw())
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise StateError(
                f"{run.sealing_offer} does not offer the key in {run.sealing_key} for this catalogue; write it anew with "
                f"`consilium catalogue seal {run.root} --key KEY`"
            )

    def pin(self, site: str, key: bytes) -> None:
        """Keep a site's key at its first answer; from then on, and where ``site_keys.json`` had it before, no other is taken.

        Raises
        ------
        WireError
            ``bad-seal`` if the site shows another key than before, or none.
        """
        if self._private is None:
            return
        held = self._pinned()
        if site not in held and len(key) == sealing.KEY_BYTES:
            write_text(self.table, json.dumps(held | {site: key.hex()}, indent=2, sort_keys=True) + "\n")
        elif held.get(site) != key.hex():
            known = fingerprint(bytes.fromhex(held[site])) if site in held else "none yet"
            raise WireError(ErrorCode.BAD_SEAL, f"it shows the key {fingerprint(key)}, known is {known}: {self.table}")

    def known(self, site: str) -> bytes | None:
        """A site's public key, if it was kept."""
        held = self._pinned().get(site)
        return None if held is None else bytes.fromhex(held)

    def open(self, site: str, reply: PredictReply) -> list[bytes]:
        """Open a site's answer; gives the masks as they would come in clear.

        Raises
        ------
        WireError
            ``bad-seal`` if it is not sealed to this study by this site.
        """
        if self._private is None and not reply.key:
            return reply.masks
        if self._private is None or not reply.key:
            raise WireError(ErrorCode.BAD_SEAL, "in clear" if self._private else "sealed, but this study has no key")
        held = self._pinned()
        if site not in held:
            raise WireError(ErrorCode.BAD_SEAL, "its key is not known")
        subject = sealing.about(reply.study, reply.catalogue, reply.site, reply.ids, reply.abstained)
        sealed = sealing.Sealed(reply.key, reply.masks, reply.signature)
        return sealing.unseal(sealed, self._private, bytes.fromhex(held[site]), subject)

    def _pinned(self) -> dict[str, str]:
        """Sites' public keys, in hex, by name."""
        if not self.table.exists():
            return {}
        try:
            return {
                str(site): bytes.fromhex(key).hex() for site, key in json.loads(self.table.read_text("utf-8")).items()
            }
        except (ValueError, TypeError, AttributeError):
            raise StateError(f"{self.table} is no table of sites and keys in hex; restore it, or delete it") from None
