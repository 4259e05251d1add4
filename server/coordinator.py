"""The coordinator at work: a SuperLink that lets in the sites of a federation's folder, and nobody else."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from consilium.common.errors import MachineError, SettingsError, StateError
from consilium.common.identity.certificates import ServerCertificate
from consilium.server import superlink_home
from consilium.server.control import Control, RegisteredNode
from consilium.server.federation import Federation, in_use
from consilium.server.site_records import SiteRecord
from consilium.server.superlink import SuperLink

LOG: Final = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 1.0
_RENEW_SOON_DAYS: Final = 30

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Changes:
    """What makes a SuperLink's register agree with a federation's folder.

    Parameters
    ----------
    leave
        Nodes whose keys are to be taken off.
    enter
        Sites whose keys are to be registered, after that.
    """

    leave: tuple[RegisteredNode, ...]
    enter: tuple[SiteRecord, ...]


def changes(records: Sequence[SiteRecord], nodes: Sequence[RegisteredNode], now: datetime) -> Changes:
    """Compare what should be registered with what is.

    Registered, in the end, are exactly the sites that take part at ``now``, each with its present key.
    """
    wanted = {record.name: record for record in records if record.takes_part(now)}
    wrong = tuple(node for node in nodes if node.name not in wanted or wanted[node.name].key_pem != node.public_key)
    right = {node.name for node in nodes} - {node.name for node in wrong}
    return Changes(wrong, tuple(record for name, record in wanted.items() if name not in right))


def serve(federation: Federation, ending: threading.Event, tell: Tell, clock: Callable[[], datetime]) -> None:
    """Run the SuperLink until ``ending`` is set.

    Sites accepted, renewed or revoked meanwhile, and a renewed certificate, are taken up within seconds.

    Parameters
    ----------
    federation
        Whose sites are let in.
    ending
        Set by a signal.
    tell
        Is given a line for each thing a person would want to know.
    clock
        The time, with a time zone.

    Raises
    ------
    StateError
        If a certificate is not valid, or a coordinator runs already.
    MachineError
        If the SuperLink can not be started, or does not stay up.
    """
    federation.require_valid_certificates(clock())
    superlink = federation.settings.superlink
    with (
        in_use(federation.folder),
        SuperLink.start(
            federation.superlink_home,
            host=superlink.host,
            port=superlink.listening_port,
            certificates=federation.certificates,
            log_folder=federation.folder / "log",
        ) as link,
    ):
        listening = f"{superlink.host}:{link.port}"
        tell(f"{federation.settings.name}: the SuperLink listens on {listening}; sites connect to {superlink.address}")
        watch = _Watch(federation, link, tell)
        watch.look(clock())
        tell(watch.summary(clock()))
        while not ending.wait(LOOK_EVERY_S):
            watch.keep_up(clock())
            watch.look(clock())
        link.retire()
    tell(f"{federation.settings.name}: the coordinator has stopped")


@contextmanager
def attach(federation: Federation) -> Iterator[Control]:
    """Speak to the SuperLink of the coordinator that runs on this folder, in another process of this machine.

    Raises
    ------
    MachineError
        If none runs.
    """
    home, start = federation.superlink_home, f"Start it with `consilium coordinator start {federation.folder}`"
    port = superlink_home.remembered_port(home)
    if not port or not superlink_home.control_secret(home).exists():
        raise MachineError(f"no SuperLink was ever started on {home}; start the coordinator first. {start}")
    with closing(Control(home, port, federation.certificates.authority)) as control:
        try:
            answers = control.answers()
        except MachineError as error:
            raise MachineError(f"{error} {start}") from None
        if not answers:
            raise MachineError(f"nothing answers on {control.address}; is the coordinator running? {start}")
        yield control


class _Watch:
    """Keeps the SuperLink up, with certificate and register as the folder has them, and tells who comes and goes."""

    def __init__(self, federation: Federation, link: SuperLink, tell: Tell) -> None:
        self._federation = federation
        self._link = link
        self._tell = tell
        self._online: set[str] = set()
        self._pair = _content(federation.certificates)
        self._is_whole = True
        self._damage = ""

    def keep_up(self, now: datetime) -> None:
        """Start again what ended, and the SuperLink when there is a new certificate.

        While the key in the folder is not the certificate's it goes on with those it has read, and is not started again.
        """
        pair = _content(self._federation.certificates)
        if pair != self._pair:
            self._pair = pair
            self._is_whole = self._federation.has_server_key()
            try:
                self._federation.require_valid_certificates(now)
            except StateError as error:
                LOG.warning("%s", error)
            else:
                self._link.restart()
                self._tell(
                    f"the new certificate is in use, valid until {self._federation.server_facts().ends:%Y-%m-%d}"
                )
        if self._is_whole:
            self._link.revive()

    def look(self, now: datetime) -> None:
        """Compare once; a SuperLink that is just being revived, or a record that is damaged, waits for the next time."""
        try:
            nodes = self._link.control.nodes()
            todo = changes(self._federation.records(), nodes, now)
            for node in todo.leave:
                self._link.control.unregister(node.node_id)
                self._tell(f"{node.name} is let in no more")
            for record in todo.enter:
                self._link.control.register(record.key_pem, record.name)
                self._tell(
                    f"{record.name} may connect, until {record.key_until:%Y-%m-%d}; key {record.key_fingerprint}"
                )
            self._tell_who(self._link.control.nodes() if todo.leave or todo.enter else nodes)
            self._damage = ""
        except (StateError, SettingsError, MachineError) as error:
            if str(error) != self._damage:
                LOG.warning("%s", error)
            self._damage = str(error)

    def summary(self, now: datetime) -> str:
        """One line: how many sites there are, how long the certificate is good."""
        records = self._federation.records()
        joined = sum(record.takes_part(now) for record in records)
        server = self._federation.server_facts()
        soon = f"; RENEW IT: consilium federation renew {self._federation.folder}"
        return (
            f"{joined} of {len(records)} sites have joined; the certificate is valid until {server.ends:%Y-%m-%d}"
            + soon * (server.days_left(now) < _RENEW_SOON_DAYS)
        )

    def _tell_who(self, nodes: Sequence[RegisteredNode]) -> None:
        online = {node.name for node in nodes if node.online}
        for name in sorted(online - self._online):
            self._tell(f"{name} is connected ({len(online)} of {len(nodes)})")
        for name in sorted(self._online - online):
            self._tell(f"{name} is not connected any more ({len(online)} of {len(nodes)})")
        self._online = online


def _content(certificates: ServerCertificate) -> tuple[bytes, ...]:
    """Of certificate and key; what can not be read counts as empty."""
    return tuple(_read(path) for path in (certificates.certificate, certificates.key))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
