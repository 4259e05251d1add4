"""A federation's folder: certificates, signing key, and what is known of every site. Files only; nothing runs here.

::

    FOLDER/
      federation.toml       as given; `renew` reads names and address from it again
      authority.pem         the certificate authority; sites are given it
      signing.pem           Ed25519: signs catalogues (consilium catalogue build --key)
      signing.pub           its public half, in hex: the sites' trusted-signers
      tls/                  the authority's key, the SuperLink's certificate and key; former ones under tls/former/
      sites/NAME.json       invitation, node key and when they run out
      kits/NAME.tar.gz      to be sent to the site; deleted once it has joined
      superlink/  log/      of the running coordinator

What is known of a site is in `site_records`. Dates are compared with a clock that the caller gives.
"""

import hmac
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Final

from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.files import write_whole
from consilium.common.identity.certificates import (
    Authority,
    CertificateFacts,
    ServerCertificate,
    certificate_facts,
    is_key_of,
    issued_by,
    make_server_certificate,
)
from consilium.common.identity.key_files import private_folder
from consilium.common.identity.signing import fingerprint
from consilium.common.joining import JoinRequest, KitFacts, invitation_tag
from consilium.common.locks import alone
from consilium.common.settings import load
from consilium.server.federation_settings import FederationSettings
from consilium.server.kit import kit_files, pack
from consilium.server.site_records import SiteRecord, load_record, save_record


@dataclass(frozen=True)
class Accepted:
    """What `Federation.accept` did."""

    record: SiteRecord
    is_new: bool


class Federation:
    """A provisioned federation; made by `provision.provision`, opened by `open_federation`.

    Parameters
    ----------
    folder
        Of the federation.
    settings
        Its ``federation.toml``.
    """

    def __init__(self, folder: Path, settings: FederationSettings) -> None:
        self.folder: Final = folder
        self.settings: Final = settings

    @property
    def certificates(self) -> ServerCertificate:
        """For the SuperLink."""
        return ServerCertificate(
            self.folder / "authority.pem", self.folder / "tls" / "server.pem", self.folder / "tls" / "server.key"
        )

    @property
    def signing_key(self) -> Path:
        """Private key of the coordinator's signatures."""
        return self.folder / "signing.pem"

    @property
    def signer(self) -> str:
        """Public key of the coordinator's signatures, in hex."""
        try:
            return (self.folder / "signing.pub").read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise StateError(f"{self.folder / 'signing.pub'} can not be read: {error}; restore the folder") from None

    @property
    def superlink_home(self) -> Path:
        """Home folder of the SuperLink."""
        return self.folder / "superlink"

    def kit(self, name: str) -> Path:
        """Where a site's kit lies."""
        return self.folder / "kits" / f"{name}.tar.gz"

    def authority_facts(self) -> CertificateFacts:
        """The certificate authority's certificate; `StateError` if it is missing or damaged."""
        return _facts(self.certificates.authority)

    def server_facts(self) -> CertificateFacts:
        """The SuperLink's certificate; `StateError` if it is missing or damaged."""
        return _facts(self.certificates.certificate)

    def require_valid_certificates(self, now: datetime) -> None:
        """Refuse to go on with a certificate that has run out, is not valid yet, is of another authority, or lacks its key.

        Raises
        ------
        StateError
            With what to do.
        """
        authority, server = self.authority_facts(), self.server_facts()
        if not authority.is_valid(now):
            raise StateError(
                f"the certificate authority is valid from {authority.begins:%Y-%m-%d} to {authority.ends:%Y-%m-%d}; it is "
                f"{now:%Y-%m-%d}: check the clock, or provision the federation anew and let every site join again"
            )
        if not server.is_valid(now):
            raise StateError(
                f"the SuperLink's certificate is valid from {server.begins:%Y-%m-%d} to {server.ends:%Y-%m-%d}; it is "
                f"{now:%Y-%m-%d}: run `consilium federation renew {self.folder}`"
            )
        tls = self.certificates
        if not issued_by(tls.certificate.read_bytes(), tls.authority.read_bytes()):
            raise StateError(
                f"{tls.certificate} is not of this federation's authority: run `consilium federation renew {self.folder}`"
            )
        if not self.has_server_key():
            raise StateError(
                f"{tls.key} is missing, or is not the key of {tls.certificate}, as a renewal that was killed leaves them: run "
                f"`consilium federation renew {self.folder}`"
            )

    def has_server_key(self) -> bool:
        """Whether the SuperLink's key is there, and is the certificate's."""
        tls = self.certificates
        try:
            return is_key_of(tls.key.read_bytes(), tls.certificate.read_bytes())
        except OSError:
            return False

    def records(self) -> list[SiteRecord]:
        """Every site, by name."""
        return [load_record(path) for path in sorted((self.folder / "sites").glob("*.json"))]

    def record(self, name: str) -> SiteRecord:
        """One site; `SettingsError` names those there are."""
        path = self._record_path(name)
        if not path.is_file():
            known = ", ".join(record.name for record in self.records()) or "none yet"
            raise SettingsError(f"{name!r} is no site of {self.folder}; there are: {known}")
        return load_record(path)

    def add(self, name: str, labels: Sequence[str], now: datetime) -> Path:
        """Invite a site, or one that was revoked again; returns its kit.

        Raises
        ------
        StateError
            If it is invited or has joined already.
        SettingsError
            If the name can not be a site's.
        """
        try:
            record = SiteRecord(name=name, labels=tuple(labels) or self.settings.labels)
        except ValueError:
            raise SettingsError(
                f"a site's name, and a label, has small letters, digits and '-', at most 63; got {name!r}, {', '.join(labels)!r}"
            ) from None
        if self._record_path(name).exists():
            held = self.record(name)
            if held.revoked is None:
                raise StateError(
                    f"{name} is {held.state(now)} already; for a new kit run `consilium federation renew {self.folder} {name}`"
                )
            record = record.model_copy(update={"former_keys": held.former_keys})
        return self._invite(record, now)

    def renew_site(self, name: str, now: datetime) -> Path:
        """Make a new kit for a site, with which it joins with a new key; the present key is taken until then.

        Raises
        ------
        StateError
            If it is revoked.
        """
        record = self.record(name)
        if record.revoked is not None:
            raise StateError(
                f"{name} is {record.state(now)}; to invite it again run `consilium federation add {self.folder} {name}`"
            )
        return self._invite(record, now)

    def certify(self, folder: Path) -> None:
        """Make a key and a certificate for the SuperLink in ``folder``; `renew_server` also puts them in use."""
        authority = Authority(self.folder / "authority.pem", self.folder / "tls" / "authority.key")
        dns_names, addresses = self.settings.superlink.certified
        make_server_certificate(folder, authority, dns_names, addresses, self.settings.superlink.certificate_days)

    def renew_server(self, now: datetime) -> CertificateFacts:
        """Make a new key and certificate for the SuperLink, for the names in ``federation.toml``; the former are kept.

        A coordinator that runs takes it up within seconds, and the sites notice nothing: their trust is in the authority.
        """
        authority = self.authority_facts()
        if not authority.is_valid(now):
            raise StateError(
                f"the certificate authority ended on {authority.ends:%Y-%m-%d}: provision the federation anew with --force "
                "and let every site join again"
            )
        tls, making = self.folder / "tls", self.folder / "tls" / "new"
        shutil.rmtree(making, ignore_errors=True)
        self.certify(making)
        former = private_folder(tls / "former" / f"{now:%Y%m%dT%H%M%SZ}-{token_hex(2)}")
        for name in ("server.key", "server.pem"):
            if (tls / name).exists():
                shutil.copy2(tls / name, former / name)
        for name in ("server.key", "server.pem"):  # killed between the two: `require_valid_certificates` tells it
            (making / name).replace(tls / name)
        making.rmdir()
        return self.server_facts()

    def accept(self, request: JoinRequest, now: datetime) -> Accepted:
        """Take a site's key, from a join file that `read_join` has checked.

        Returns
        -------
        Accepted
            ``is_new`` is False if the same key was accepted before.

        Raises
        ------
        SettingsError
            If there is no such site.
        DataError
            If the join file was not made with this federation's authority and the site's present invitation.
        StateError
            If the site is revoked, its invitation ran out, or the key was used before.
        """
        record = self.record(request.name)
        authority = self.authority_facts().fingerprint
        if request.authority != authority:
            raise DataError(
                f"{request.name} joins the federation with authority {request.authority}; this one's is {authority}: it used "
                "the kit of another federation"
            )
        if record.revoked is not None:
            raise StateError(f"{record.name} is {record.state(now)}; invite it again first")
        if record.key == request.public_key and not record.invitation:
            return Accepted(record, is_new=False)
        if not record.invitation:
            raise StateError(
                f"{record.name} has joined with another key and no new kit is out; to let it change its key run "
                f"`consilium federation renew {self.folder} {record.name}`"
            )
        if not record.is_invited(now):
            raise StateError(
                f"the invitation of {record.name} ran out on {record.invited_until:%Y-%m-%d}; run "
                f"`consilium federation renew {self.folder} {record.name}` and send it the new kit"
            )
        if not hmac.compare_digest(request.invitation_tag, invitation_tag(record.invitation, request.statement)):
            raise DataError(
                f"{record.name}: the join file was not made with the kit that is out now; let the site join with the newest "
                "kit, and ask who sent this one"
            )
        self._require_fresh_key(request, record)
        former = record.former_keys + ((record.key_fingerprint,) if record.key else ())
        accepted = record.model_copy(
            update={
                "key": request.public_key,
                "key_until": now + timedelta(days=self.settings.key_days),
                "invitation": "",
                "invited_until": None,
                "former_keys": former,
            }
        )
        self._write(accepted)
        self.kit(record.name).unlink(missing_ok=True)
        return Accepted(accepted, is_new=True)

    def revoke(self, name: str, now: datetime) -> SiteRecord:
        """Let a site in no more; its key never comes back, and a kit that is out is void. Safe to repeat."""
        record = self.record(name)
        if record.revoked is not None:
            return record
        former = record.former_keys + ((record.key_fingerprint,) if record.key else ())
        revoked = SiteRecord(name=record.name, labels=record.labels, revoked=now, former_keys=former)
        self._write(revoked)
        self.kit(name).unlink(missing_ok=True)
        return revoked

    def require_sites(self, names: Sequence[str], now: datetime) -> None:
        """Refuse a study with sites that can not take part; `SettingsError` names all of them."""
        known = {record.name: record for record in self.records()}
        absent = [
            f"{name} ({known[name].state(now) if name in known else 'unknown here'})"
            for name in names
            if name not in known or not known[name].takes_part(now)
        ]
        if absent:
            raise SettingsError(
                f"sites of the study that have not joined {self.folder}: {', '.join(absent)}; see `consilium federation show "
                f"{self.folder}`"
            )

    def _require_fresh_key(self, request: JoinRequest, record: SiteRecord) -> None:
        holders = {other.key_fingerprint: other.name for other in self.records() if other.key}
        holders |= {key: other.name for other in self.records() for key in other.former_keys}
        holder = holders.get(request.key_fingerprint)
        if holder is not None:
            raise StateError(
                f"the key that {record.name} sent is or was the key of {holder}; every site, and every renewal, has a new one: "
                "let it run `consilium-site join KIT --folder FOLDER --new-key`"
            )

    def _invite(self, record: SiteRecord, now: datetime) -> Path:
        authority = self.authority_facts()
        if not authority.is_valid(now):
            self.require_valid_certificates(now)
        until = (now + timedelta(days=self.settings.invitation_days)).replace(microsecond=0)
        invited = record.model_copy(update={"invitation": token_hex(32), "invited_until": until, "revoked": None})
        facts = KitFacts(
            federation=self.settings.name,
            site=record.name,
            superlink=self.settings.superlink.address,
            authority=authority.fingerprint,
            signer=self.signer,
            invitation=invited.invitation,
            expires=until,
        )
        packed = pack(kit_files(facts, record.labels, self.certificates.authority.read_bytes()), int(now.timestamp()))
        self._write(invited)
        private_folder(self.folder / "kits")
        write_whole(self.kit(record.name), packed, 0o600)
        return self.kit(record.name)

    def _record_path(self, name: str) -> Path:
        return self.folder / "sites" / f"{name}.json"

    def _write(self, record: SiteRecord) -> None:
        save_record(self._record_path(record.name), record)


def open_federation(folder: Path) -> Federation:
    """Open what `provision.provision` made; `StateError` if it is something else."""
    folder = folder.resolve()
    if not (folder / "federation.toml").is_file() or not (folder / "authority.pem").is_file():
        raise StateError(
            f"{folder} is no federation's folder: federation.toml or authority.pem is missing; make one with "
            "`consilium provision FEDERATION.toml --out FOLDER`"
        )
    return Federation(folder, load(FederationSettings, folder / "federation.toml"))


def in_use(folder: Path) -> AbstractContextManager[None]:
    """Keep the folder for one coordinator; `StateError` if one runs on it."""
    return alone(folder / "lock", f"a coordinator runs on {folder}; stop it first")


def signer_fingerprint(federation: Federation) -> str:
    """Of the coordinator's signing key, for people to compare."""
    return fingerprint(bytes.fromhex(federation.signer))


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def _facts(path: Path) -> CertificateFacts:
    try:
        return certificate_facts(path.read_bytes(), str(path))
    except OSError as error:
        raise StateError(f"{path} can not be read: {error}; restore it from a backup") from None
