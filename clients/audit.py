"""The audit log: one line for every request a site answered or refused.

The file is only ever appended to. Every line holds the SHA-256 of the line before, so a line that is changed or taken out
later is noticed by `verify`; cutting off the end is not, unless the last digest was noted elsewhere.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from consilium.common.errors import StateError

FIRST: Final = "0" * 64
_TAIL_BYTES: Final = 8192  # a line is far shorter


@dataclass(frozen=True)
class Event:
    """What is kept of one request.

    Attributes
    ----------
    study, catalogue
        Digests, as the request named them.
    action
        ``describe``, ``predict``, ``evaluate`` or ``fine-tune``.
    result
        ``answered``, or the code of the refusal.
    masks
        Soft masks that left.
    bytes_out, digest
        Size of the answer, and its `wire.digest_of`; 0 and empty if it was a refusal.
    """

    study: str
    catalogue: str
    action: str
    result: str
    masks: int = 0
    bytes_out: int = 0
    digest: str = ""


class Audit:
    """An audit log that several threads and processes may write to."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._lock = threading.Lock()
        self._counted_bytes = 0
        self._masks = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def record(self, event: Event, allow: Callable[[int], None] | None = None) -> None:
        """Append a line; it is on the disk when this returns.

        Parameters
        ----------
        event
            What happened.
        allow
            Told how many masks ever left before; if it raises, nothing is written. No other line, of any thread or
            process, can come in between.
        """
        with self._lock, os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            if allow is not None:
                allow(self._count())
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - _TAIL_BYTES))
            lines = log.read().split(b"\n")
            whole, torn = (lines[-2] if len(lines) > 1 else b""), lines[-1]
            log.seek(end - len(torn))  # what a crash left of a line goes
            log.truncate()
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                **asdict(event),
                "previous": hashlib.sha256(whole).hexdigest() if whole else FIRST,
            }
            log.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())

    def masks_gone(self) -> int:
        """Count the soft masks that ever left, by the log."""
        with self._lock:
            return self._count()

    def _count(self) -> int:
        """Count the masks of the lines that came since the last count."""
        if self.path.exists():
            with self.path.open("rb") as log:
                log.seek(self._counted_bytes)
                for line in log:
                    if line.endswith(b"\n"):
                        self._masks += int(_parse(line, self.path)["masks"])
                        self._counted_bytes += len(line)
        return self._masks


def verify(path: Path) -> int:
    """Check the chain of an audit log and return its number of lines; `StateError` names the first line that breaks it."""
    previous, count = FIRST, 0
    with path.open("rb") as log:
        for count, line in enumerate(log, 1):
            if _parse(line, path).get("previous") != previous:
                raise StateError(f"{path}, line {count}: it or the line before was changed or taken out")
            previous = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    return count


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(line)
        int(fields["masks"])
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{path} is not a whole audit log: a line cannot be read; restore it from a backup") from None
    return dict(fields)
