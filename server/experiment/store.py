"""A store of what was computed: every artefact in a folder named by a digest of what decides it.

The folder of an artefact is its workplace, too: a training keeps its checkpoints there and goes on from them.
``facts.json``, written last and at once, says what decided the artefact and makes it whole; what is whole is never
computed again. Experiments may share a store, also while they run: each artefact is made by one process, others wait.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from consilium.common.files import write_text

FACTS_NAME: Final = "facts.json"

Tell = Callable[[str, int, int], None]
"""Told what is being done, and how much of it is: ``tell("unet learns lesion-1", 40, 200)``."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Artefact:
    """Something computed: where, its name, and the seconds it took (of the process that finished it)."""

    folder: Path
    digest: str
    seconds: float


class Store:
    """A folder of artefacts.

    Parameters
    ----------
    root
        The folder; made where it is not there.
    tell
        Told how far a stage is.
    """

    def __init__(self, root: Path, tell: Tell = silent) -> None:
        self.root: Final = root.resolve()
        self.tell = tell

    def keep(self, kind: str, facts: Mapping[str, Any], make: Callable[[Path], None]) -> Artefact:
        """Give an artefact, computing it if it is not there.

        Parameters
        ----------
        kind
            Its folder's parent: ``model``, ``masks``, ...
        facts
            All that decides it, JSON-able; the release of this package is added.
        make
            Leaves it in the folder given. May find there what an interrupted call left behind.
        """
        told = {"kind": kind, "release": version("consilium"), **facts}
        digest = digest_of(told)
        folder = self.root / kind / digest[:24]
        if not (folder / FACTS_NAME).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not (folder / FACTS_NAME).is_file():  # else another process made it while this one waited
                    began = time.monotonic()
                    make(folder)
                    done = {"facts": told, "seconds": round(time.monotonic() - began, 3)}
                    write_text(folder / FACTS_NAME, json.dumps(done, indent=1, sort_keys=True) + "\n")
        held = json.loads((folder / FACTS_NAME).read_text("utf-8"))
        return Artefact(folder, digest, float(held["seconds"]))


def digest_of(facts: Any) -> str:
    """SHA-256, in hex, of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
