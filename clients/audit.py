"""The audit log: one line for every request a site answered or refused.

The file is only ever appended to. Every line holds the SHA-256 of the line before, so a line that is changed or taken out
later is noticed by `verify`; cutting off the end is not, unless the last digest was noted elsewhere.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from consilium.common.errors import StateError

ANSWERED: Final = "answered"
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
    masks, repeats
        Soft masks that left: for the first time in this study, and again.
    abstained
        Images of the request that were not answered.
    student
        Digest of the student that was sent; empty where none was.
    bytes_out, digest
        Size of the answer, and its `wire.digest_of`; 0 and empty if it was a refusal.
    """

    study: str
    catalogue: str
    action: str
    result: str
    masks: int = 0
    repeats: int = 0
    abstained: int = 0
    student: str = ""
    bytes_out: int = 0
    digest: str = ""


class Audit:
    """An audit log that several threads and processes may write to."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._lock = threading.Lock()
        self._counted_bytes = 0
        self._masks = 0
        self._students: dict[str, set[str]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator["OpenAudit"]:
        """Hold the log: until the end of the block no other thread or process can write a line."""
        with self._lock, os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            self._count(log)
            yield OpenAudit(log, self._masks, self._students)

    def record(self, event: Event) -> None:
        """Append a line; it is on the disk when this returns."""
        with self.held() as log:
            log.append(event)

    def masks_gone(self) -> int:
        """Count the soft masks that ever left, repeats not counted, by the log."""
        with self.held() as log:
            return log.masks_gone

    def _count(self, log: BinaryIO) -> None:
        """Count what the lines tell that came since the last count."""
        log.seek(self._counted_bytes)
        for line in log:
            if line.endswith(b"\n"):
                fields = _parse(line, self.path)
                self._masks += int(fields["masks"])
                if fields.get("student") and fields["result"] == ANSWERED:
                    self._students.setdefault(fields["study"], set()).add(fields["student"])
                self._counted_bytes += len(line)


@dataclass(frozen=True)
class OpenAudit:
    """A log that is held; see `Audit.held`.

    Attributes
    ----------
    masks_gone
        Soft masks that ever left, repeats not counted.
    students
        Digests of the students that were evaluated or fine-tuned, by study.
    """

    log: BinaryIO
    masks_gone: int
    students: Mapping[str, set[str]]

    def append(self, event: Event) -> None:
        """Append a line; it is on the disk when this returns."""
        end = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, end - _TAIL_BYTES))
        lines = self.log.read().split(b"\n")
        whole, torn = (lines[-2] if len(lines) > 1 else b""), lines[-1]
        self.log.seek(end - len(torn))  # what a crash left of a line goes
        self.log.truncate()
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **asdict(event),
            "previous": hashlib.sha256(whole).hexdigest() if whole else FIRST,
        }
        self.log.write(_dump(line) + b"\n")
        self.log.flush()
        os.fsync(self.log.fileno())


def verify(path: Path) -> int:
    """Check the chain of an audit log and return its number of lines; `StateError` names the first line that breaks it."""
    return sum(1 for _ in checked(path))


def checked(path: Path) -> Iterator[dict[str, Any]]:
    """Give the lines of an audit log in order, each checked against the one before; see `verify`.

    A last line without its end is what a crash left: it counted for nothing, and is passed over.
    """
    previous = FIRST
    with path.open("rb") as log:
        for number, line in enumerate(log, 1):
            if not line.endswith(b"\n"):
                return
            fields = _parse(line, path, number)
            if fields.get("previous") != previous:
                raise StateError(f"{path}, line {number}: it or the line before was changed or taken out")
            previous = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
            yield fields


def what_left(path: Path) -> dict[str, Any]:
    """Tell what left a site, by its log.

    Returns
    -------
    dict
        ``lines``, ``last`` (digest of the last line: noted elsewhere, it shows whether the end was cut off later) and
        ``studies``: by digest, when it was first and last asked for, masks, repeats, abstentions, metrics (answers with Dice),
        students, bytes, and refusals by code.

    Raises
    ------
    StateError
        If the chain is broken.
    """
    studies: dict[str, dict[str, Any]] = {}
    count, last = 0, FIRST
    for fields in checked(path):
        count, last = count + 1, hashlib.sha256(_dump(fields)).hexdigest()
        told = studies.setdefault(
            fields["study"],
            {"first": fields["time"], "last": "", "masks": 0, "repeats": 0, "abstained": 0, "metrics": 0, "bytes": 0}
            | {"students": set(), "refusals": {}},
        )
        told["last"] = fields["time"]
        told["bytes"] += fields["bytes_out"]
        for key in ("masks", "repeats", "abstained"):
            told[key] += fields.get(key, 0)
        if fields["result"] != ANSWERED:
            told["refusals"][fields["result"]] = told["refusals"].get(fields["result"], 0) + 1
        elif fields["action"] in ("evaluate", "fine-tune"):
            told["metrics"] += 1
            told["students"].add(fields.get("student", ""))
    for told in studies.values():
        told["students"] = len(told["students"])
    return {"lines": count, "last": last, "studies": studies}


def _dump(fields: Mapping[str, Any]) -> bytes:
    """A line as it stands in the log, without its end."""
    return json.dumps(fields, separators=(",", ":")).encode()


def _parse(line: bytes, path: Path, number: int = 0) -> dict[str, Any]:
    try:
        fields = dict(json.loads(line))
        if not all(isinstance(fields[key], int) for key in ("masks", "bytes_out")):
            raise TypeError
        if not all(isinstance(fields[key], str) for key in ("time", "study", "action", "result")):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        where = f", line {number}" if number else ""
        raise StateError(f"{path}{where}: this is no line of an audit log; restore the log from a backup") from None
    return fields
