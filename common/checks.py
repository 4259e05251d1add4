"""What a doctor looks at on either side: this machine, a certificate, the way to a SuperLink.

A check gives a `Finding`, whatever happens: it never raises, and changes nothing.
"""

import json
import os
import platform
import shutil
import socket
import ssl
import stat
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import httpx

from consilium.common.errors import ConsiliumError, StateError
from consilium.common.identity.certificates import CertificateFacts, certificate_facts

FLOWER: Final = "1.41."
"""The releases of Flower this package works with."""
AHEAD_S: Final = 5.0
BEHIND_S: Final = 300.0
"""Flower's SuperLink refuses a SuperNode whose clock is further ahead, or behind, than this."""
SOON_DAYS: Final = 30
_TIMEOUT_S: Final = 5.0
_NOTABLE_S: Final = 2.0
_GIB: Final = 2**30
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Parameters
    ----------
    what
        Was looked at.
    status
        ``note`` is worth knowing, and nothing is wrong yet.
    said
        What was found.
    advice
        What to do; empty if nothing.
    """

    what: str
    status: Status
    said: str
    advice: str = ""


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(finding.status != "wrong" for finding in findings)


def report(findings: Sequence[Finding], *, as_json: bool = False) -> str:
    """Write findings as lines for people, or as JSON: ``{"well": ..., "findings": [{what, status, said, advice}]}``."""
    if as_json:
        return json.dumps({"well": is_well(findings), "findings": [asdict(finding) for finding in findings]}, indent=2)
    width = max((len(finding.what) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status.upper() if finding.status == 'wrong' else finding.status:<5}  ")
        lines[-1] += f"{finding.what:<{width}}  {finding.said}"
        if finding.advice:
            lines.append(f"{'':<5}  {'':<{width}}  -> {finding.advice}")
    wrong = sum(finding.status == "wrong" for finding in findings)
    lines.append(f"{wrong} of {len(findings)} are wrong" if wrong else f"all {len(findings)} are well")
    return "\n".join(lines)


def attempt(what: str, check: Callable[[], Finding], advice: str = "") -> Finding:
    """Make a check that may fail: what it raises is what is wrong."""
    try:
        return check()
    except ConsiliumError as error:
        return Finding(what, "wrong", " ".join(str(error).split()), advice)
    except Exception as error:  # a doctor that dies of what it finds helps nobody
        return Finding(what, "wrong", f"{type(error).__name__}: {' '.join(str(error).split())}"[:600], advice)


def versions() -> Finding:
    """Of this package, Flower, torch and Python."""
    what = "versions"
    try:
        held = {name: version(name) for name in ("consilium", "flwr", "torch")}
    except PackageNotFoundError as error:
        return Finding(
            what, "wrong", f"{error.name} is not installed", "install this package again, with its constraints.txt"
        )
    said = f"{', '.join(f'{name} {number}' for name, number in held.items())}, Python {platform.python_version()}"
    if not held["flwr"].startswith(FLOWER):
        return Finding(what, "wrong", said, f"install flwr {FLOWER}x, on this side as on the other")
    return Finding(what, "ok", said)


def disk_space(folder: Path, least_gib: float = 2.0) -> Finding:
    """Free bytes where the folder lies."""
    free = shutil.disk_usage(_existing(folder)).free / _GIB
    said = f"{free:.1f} GiB free at {folder}"
    if free < least_gib:
        return Finding("disk", "wrong", said, f"make room: at least {least_gib:g} GiB; a full disk stops a study")
    return Finding("disk", "ok", said)


def gpu(device: str = "auto") -> Finding:
    """Whether there is one, and whether the settings' device can be had."""
    import torch

    if not torch.cuda.is_available():
        if device == "cuda":
            return Finding(
                "GPU",
                "wrong",
                "none that torch can use, and the settings say cuda",
                "install the driver and a CUDA build of torch, or set device to auto or cpu",
            )
        return Finding("GPU", "ok", "none that torch can use: everything is computed on the CPU")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    unused = ", not used: the settings say cpu" if device == "cpu" else ""
    return Finding("GPU", "ok", ", ".join(names) + unused)


def private_file(what: str, path: Path) -> Finding:
    """Whether a private key is there, and readable by its owner alone."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(what, "wrong", f"{path}: {error.strerror}", "restore it from a backup, or make it anew")
    if mode & 0o077:
        return Finding(what, "wrong", f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    if not os.access(path, os.R_OK):
        return Finding(what, "wrong", f"{path} can not be read by this user", "run this as the user who owns it")
    return Finding(what, "ok", f"{path}, for its owner alone")


def certificate(what: str, facts: CertificateFacts, now: datetime, renewal: str) -> Finding:
    """Whether a certificate is valid now; ``renewal`` says how to get another one."""
    said = f"{facts.subject}: valid from {facts.begins:%Y-%m-%d} to {facts.ends:%Y-%m-%d}"
    if now < facts.begins:
        return Finding(what, "wrong", f"{said}; that is still to come", "check this machine's clock")
    if not facts.is_valid(now):
        return Finding(what, "wrong", f"{said}; that is past", renewal)
    left = facts.days_left(now)
    if left < SOON_DAYS:
        return Finding(what, "note", f"{said}; {left} days are left", renewal)
    return Finding(what, "ok", f"{said}, {left} days")


def name_resolves(host: str) -> Finding:
    """Whether this machine can look a name up."""
    if _proxy(host):
        return Finding("DNS", "ok", f"{host} is left to the proxy {_proxy(host)}")
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        return Finding("DNS", "wrong", f"{host}: {error}", "check the name's spelling, and this machine's name server")
    return Finding("DNS", "ok", f"{host} is {', '.join(found)}")


def port_opens(host: str, port: int) -> Finding:
    """Whether a TCP connection can be made."""
    if _proxy(host):
        return Finding("port", "ok", f"{host}:{port} is reached through the proxy {_proxy(host)}")
    try:
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(
            "port",
            "wrong",
            f"{host}:{port}: {reason}",
            "look whether this machine has a network, ask whether the coordinator runs, and have the firewall let out TCP to "
            "that host and port",
        )
    return Finding("port", "ok", f"{host}:{port} takes connections")


def port_is_free(host: str, port: int) -> Finding:
    """Whether this machine can listen on a port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                "port",
                "wrong",
                f"{host}:{port}: {error.strerror}",
                "stop what listens there, or choose another superlink.port",
            )
    return Finding("port", "ok", f"{host}:{port} is free")


def secure_connection(address: str, authority_pem: bytes, clock: Callable[[], datetime]) -> list[Finding]:
    """Whether a server proves who it is to those who trust the authority, and to no one else; and whether the clocks agree.

    Parameters
    ----------
    address
        ``host:port``.
    authority_pem
        The certificate authority, PEM.
    clock
        The time here, with a time zone.

    Returns
    -------
    list
        TLS with our authority, TLS with others, the certificate, the clock; only the first if that fails.
    """
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        ours.load_verify_locations(cadata=authority_pem.decode("ascii"))
        server = _ask(address, ours)
    except (httpx.HTTPError, OSError, ValueError) as error:
        return [_tls_fault(address, error)]
    findings = [Finding("TLS", "ok", f"{address} proves who it is to those who trust our authority")]
    try:
        _ask(address, ssl.create_default_context())
    except (httpx.HTTPError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            findings.append(Finding("TLS, others", "ok", "it is not trusted by this machine's own list of authorities"))
        else:
            findings.append(Finding("TLS, others", "note", f"could not be tried: {error}"))
    else:
        findings.append(
            Finding(
                "TLS, others",
                "wrong",
                "this machine trusts the server without our authority, too",
                "take the federation's authority out of the machine's own list of authorities: it is for this connection alone",
            )
        )
    if server.certificate is not None:
        renewal = "the coordinator renews it: consilium federation renew FOLDER"
        findings.append(certificate("certificate", server.certificate, clock(), renewal))
    return [*findings, clocks_agree(server.date, clock())]


def clocks_agree(there: datetime | None, here: datetime) -> Finding:
    """Compare two clocks; the other's is given in whole seconds, rounded down."""
    if there is None:
        return Finding("clock", "note", "the server gives no date to compare with")
    ahead = (here - there).total_seconds()
    ahead = max(0.0, ahead - 1.0) if ahead > 0 else ahead  # the fraction of a second that a Date header leaves out
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if not -BEHIND_S < ahead < AHEAD_S:
        return Finding(
            "clock",
            "wrong",
            f"{said}: a SuperNode is refused",
            "set this machine's clock, best by NTP (timedatectl set-ntp true)",
        )
    if abs(ahead) > _NOTABLE_S:
        return Finding("clock", "note", said, "set this machine's clock, best by NTP (timedatectl set-ntp true)")
    return Finding("clock", "ok", "agrees with the server's")


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host may be in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class _Server:
    """What an HTTPS server said of itself."""

    date: datetime | None
    certificate: CertificateFacts | None


def _ask(address: str, trust: ssl.SSLContext) -> _Server:
    """Ask for a page nobody has, on the way that Flower takes: through a proxy where the environment names one."""
    host = split_address(address)[0]
    with (
        httpx.Client(verify=trust, timeout=_TIMEOUT_S, trust_env=host not in _LOOPBACK) as client,
        client.stream("GET", f"https://{address}/consilium-doctor") as answer,
    ):
        tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
        der = tls.getpeercert(True) if tls is not None else None
        facts = certificate_facts(ssl.DER_cert_to_PEM_cert(der).encode(), address) if der else None
        date = answer.headers.get("date")
    return _Server(parsedate_to_datetime(date) if date else None, facts)


def _tls_fault(address: str, error: Exception) -> Finding:
    text = " ".join(str(error).split()) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return Finding("TLS", "wrong", f"{address}: {text}", "ask whether the coordinator runs there, with TLS")
    presented = _presented(address)
    if "expired" in text or "not yet valid" in text:
        advice = (
            "check this machine's clock; else the coordinator renews the certificate: consilium federation renew FOLDER"
        )
    elif "mismatch" in text.lower():
        advice = (
            "the certificate is for other names: connect by one of them, or have the coordinator add this one and renew"
        )
    else:
        advice = (
            "another server answers, or a proxy opens TLS on the way: have it let this connection pass unopened; or the "
            "federation was made anew: ask the coordinator for a new kit"
        )
    return Finding("TLS", "wrong", f"{address}: {text.partition('] ')[2] or text}{presented}", advice)


def _presented(address: str) -> str:
    """Say what certificate a server shows, whoever made it."""
    host, port = split_address(address)
    try:
        facts = certificate_facts(ssl.get_server_certificate((host, port), timeout=_TIMEOUT_S).encode(), address)
    except (OSError, ValueError, StateError):
        return ""
    return f"; it shows a certificate of {', '.join(facts.names) or facts.subject}, issued by {facts.issuer or 'nobody named'}"


def _proxy(host: str) -> str:
    """The proxy through which HTTPS to this host goes; empty if none."""
    if host in _LOOPBACK or urllib.request.proxy_bypass(host):
        return ""
    return urllib.request.getproxies().get("https", "")


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
