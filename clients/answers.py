"""The soft masks a site gave, kept: whoever asks about an image again, in the same study, gets the same bytes.

So a study can be resumed at no further cost, and nobody learns more by asking twice: not from a teacher that was trained on, nor
from a policy that changed, nor from an average over a GPU's small differences.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from consilium.common.identity.key_files import private_folder

_AT_A_TIME: Final = 500  # SQLite's bound on the values of a statement is 999 in old builds


class Answers:
    """The masks given in one study, coded, by image id; several threads and processes may use the same file."""

    def __init__(self, path: Path) -> None:
        private_folder(path.parent)
        self._path: Final = path
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS mask (id TEXT PRIMARY KEY, coded BLOB NOT NULL) STRICT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one use: a connection is of one thread."""
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=60.0)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # what a power cut takes is computed, and counted, again
            yield database

    def find(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Those of the images that were answered, with their masks."""
        found: dict[str, bytes] = {}
        with self._open() as database:
            for at in range(0, len(ids), _AT_A_TIME):
                part = ids[at : at + _AT_A_TIME]
                marks = ",".join("?" * len(part))
                found |= dict(database.execute(f"SELECT id, coded FROM mask WHERE id IN ({marks})", part))  # noqa: S608 - question marks
        return found

    def keep(self, masks: Mapping[str, bytes]) -> None:
        """Keep masks that leave; of an image that has one already, the first stays."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR IGNORE INTO mask VALUES (?, ?)", masks.items())
            database.execute("COMMIT")
