"""The home folder of a SuperLink: its secrets, a certificate for this machine alone, and the port it had last time."""

import errno
import json
import secrets
import socket
import time
from pathlib import Path
from typing import Final

from consilium.common.errors import MachineError, StateError
from consilium.common.files import write_text
from consilium.common.identity.certificates import ServerCertificate, make_authority, make_server_certificate
from consilium.common.identity.key_files import private_folder, write_private

_PORT_FILE: Final = "port.json"
_PORT_PATIENCE_S: Final = 8.0
_POLL_S: Final = 0.2
_CERTIFICATE_DAYS: Final = 365


def open_home(folder: Path) -> Path:
    """Give the folder, private (mode 0700) and with secrets in it; both are made at the first start."""
    home = private_folder(folder.resolve())
    for path in (superexec_secret(home), control_secret(home)):
        if not path.exists():
            write_private(path, secrets.token_hex(32).encode())
    return home


def control_secret(home: Path) -> Path:
    """Name the file with what lets its reader use the Control interface."""
    return home / "control.secret"


def superexec_secret(home: Path) -> Path:
    """Name the file with what the SuperExec shows to the SuperLink."""
    return home / "superexec.secret"


def own_certificates(home: Path) -> ServerCertificate:
    """Return the certificate for this machine alone, made at the first start."""
    folder = home / "tls"
    found = ServerCertificate(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    if found.certificate.exists():
        return found
    authority = make_authority(folder, "consilium on this machine")
    return make_server_certificate(folder, authority, ["localhost"], ["127.0.0.1"], _CERTIFICATE_DAYS)


def remembered_port(home: Path) -> int:
    """Return the port used last time, 0 at the first start; `StateError` if the file is damaged."""
    path = home / _PORT_FILE
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text())["port"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} does not hold a port; remove it to have another chosen") from error


def remember_port(home: Path, port: int) -> None:
    """Keep the port for the next start: sites have it in their settings."""
    write_text(home / _PORT_FILE, json.dumps({"port": port}))


def wait_for_port(host: str, port: int, home: Path) -> None:
    """Wait for a former SuperLink that is just ending; `MachineError` if the port stays taken."""
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise MachineError(f"{host}:{port} can not be listened on: {error.strerror}") from None
            else:
                return
        if time.monotonic() > deadline:
            raise MachineError(
                f"port {port} is in use by another process: stop that one, or choose another port (the port used last time is "
                f"remembered in {home / _PORT_FILE}; sites have it in their site.toml)"
            )
        time.sleep(_POLL_S)
