"""``consilium doctor``: is all well on the coordinator's side."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from consilium.common import checks
from consilium.common.checks import Finding, attempt
from consilium.common.errors import MachineError, StateError
from consilium.common.identity.certificates import issued_by
from consilium.common.identity.signing import load_signing_key, public_key_of
from consilium.server.control import RegisteredNode
from consilium.server.coordinator import attach
from consilium.server.federation import Federation, open_federation, signer_fingerprint, utc_now
from consilium.server.site_records import SiteRecord


def examine(folder: Path | None, clock: Callable[[], datetime] = utc_now) -> list[Finding]:
    """Look at this machine and, where a federation's folder is given, at that federation."""
    machine = [checks.versions(), checks.disk_space(folder or Path.cwd()), attempt("GPU", checks.gpu)]
    if folder is None:
        return machine
    try:
        federation = open_federation(folder)
        sites = federation.records()
    except Exception as error:  # whatever is wrong with the folder is the finding
        return [*machine, Finding("folder", "wrong", " ".join(str(error).split()), "restore the folder from a backup")]
    return [*machine, *_keys(federation, clock()), *_network(federation, sites, clock)]


def _keys(federation: Federation, now: datetime) -> Iterator[Finding]:
    tls, again = federation.certificates, "provision the federation anew, with --force; every site joins again"
    renew = f"consilium federation renew {federation.folder}"
    yield attempt("authority", lambda: checks.certificate("authority", federation.authority_facts(), now, again))
    key = federation.folder / "tls" / "authority.key"
    if key.exists():
        yield checks.private_file("authority's key", key)
    else:
        yield Finding(
            "authority's key", "note", "is not here", f"put it back to {key} for `consilium federation renew`"
        )
    yield attempt("certificate", lambda: checks.certificate("certificate", federation.server_facts(), now, renew))
    yield attempt("certificate's names", lambda: _names(federation, renew))
    yield checks.private_file("certificate's key", tls.key)
    yield _pair(federation, renew)
    yield checks.private_file("signing key", federation.signing_key)
    yield attempt("signing key pair", lambda: _signer(federation))


def _names(federation: Federation, renew: str) -> Finding:
    what, tls = "certificate's names", federation.certificates
    if not issued_by(tls.certificate.read_bytes(), tls.authority.read_bytes()):
        return Finding(what, "wrong", f"{tls.certificate} is of another authority than {tls.authority}", renew)
    names, wanted = federation.server_facts().names, federation.settings.superlink.certified
    missing = [name for name in (*wanted[0], *wanted[1]) if name not in names]
    if missing:
        return Finding(what, "wrong", f"federation.toml names {', '.join(missing)}, the certificate does not", renew)
    return Finding(what, "ok", ", ".join(names))


def _pair(federation: Federation, renew: str) -> Finding:
    what, tls = "certificate's key pair", federation.certificates
    if not federation.has_server_key():
        return Finding(what, "wrong", f"{tls.key.name} is not of {tls.certificate.name}", renew)
    return Finding(what, "ok", f"{tls.key.name} is of {tls.certificate.name}")


def _signer(federation: Federation) -> Finding:
    if public_key_of(load_signing_key(federation.signing_key)).hex() != federation.signer:
        return Finding("signing key pair", "wrong", "signing.pub is not of signing.pem", "restore both from a backup")
    return Finding("signing key pair", "ok", signer_fingerprint(federation))


def _network(federation: Federation, sites: list[SiteRecord], clock: Callable[[], datetime]) -> Iterator[Finding]:
    superlink = federation.settings.superlink
    yield checks.name_resolves(checks.split_address(superlink.address)[0])
    try:
        with attach(federation) as control:
            nodes = control.nodes()
            local = control.address
    except (MachineError, StateError) as error:
        yield checks.port_is_free(superlink.host, superlink.listening_port)
        yield Finding("coordinator", "note", "does not run here", f"consilium coordinator start {federation.folder}")
        if isinstance(error, StateError):
            yield Finding("coordinator", "wrong", str(error), "see the message")
        yield from _sites(federation, sites, (), clock())
        return
    yield Finding("coordinator", "ok", f"runs, at {local}")
    yield from checks.secure_connection(local, federation.certificates.authority.read_bytes(), clock)
    yield from _sites(federation, sites, nodes, clock(), runs=True)


def _sites(
    federation: Federation,
    sites: list[SiteRecord],
    nodes: tuple[RegisteredNode, ...],
    now: datetime,
    *,
    runs: bool = False,
) -> Iterator[Finding]:
    online = {node.name for node in nodes if node.online}
    for site in sites:
        what, state = f"site {site.name}", site.state(now)
        renew = f"consilium federation renew {federation.folder} {site.name}"
        if site.revoked is not None:
            yield Finding(what, "ok", state)
        elif site.key and not site.takes_part(now):
            yield Finding(what, "wrong", f"its key ran out on {site.key_until:%Y-%m-%d}", renew)
        elif not site.key and not site.is_invited(now):
            yield Finding(what, "wrong", f"its invitation ran out on {site.invited_until:%Y-%m-%d}", renew)
        elif not site.key:
            yield Finding(
                what, "note", f"invited until {site.invited_until:%Y-%m-%d}; it has not joined", "send it its kit"
            )
        elif site.key_until is not None and (site.key_until - now).days < checks.SOON_DAYS:
            yield Finding(what, "note", f"its key runs out on {site.key_until:%Y-%m-%d}", renew)
        elif runs and site.name not in online:
            yield Finding(what, "note", f"{state}, not connected", "there: consilium-site doctor SITE.toml")
        else:
            yield Finding(what, "ok", state + ", connected" * runs)
