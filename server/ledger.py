"""The ledger: what is done, in SQLite, so that a study killed at any time goes on where it was.

Facts are written once they are safe on disk: a chunk counts as finished after its pseudo masks were flushed. The ledger is
also where anyone may look while a study runs; readers never block the writer (write-ahead log).
"""

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from consilium.common.errors import (
    AnswerFileError,
    ConsentError,
    ConsiliumError,
    MachineError,
    StateError,
    StudyError,
    WaitingError,
)
from consilium.server.agreement import WHOLE, Agreement

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS stage (
    name TEXT PRIMARY KEY, done INTEGER NOT NULL, total INTEGER NOT NULL, seconds REAL NOT NULL, finished INTEGER NOT NULL,
    note TEXT NOT NULL DEFAULT '') STRICT;
CREATE TABLE IF NOT EXISTS site (name TEXT PRIMARY KEY, card TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS traffic (
    site TEXT NOT NULL, action TEXT NOT NULL, sent INTEGER NOT NULL, received INTEGER NOT NULL, messages INTEGER NOT NULL,
    PRIMARY KEY (site, action)) STRICT;
CREATE TABLE IF NOT EXISTS answer (
    site TEXT NOT NULL, chunk INTEGER NOT NULL, images INTEGER NOT NULL, mask_bytes INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (site, chunk)) STRICT;
CREATE TABLE IF NOT EXISTS chunk (number INTEGER PRIMARY KEY, images INTEGER NOT NULL, sites INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS abstention (site TEXT NOT NULL, image INTEGER NOT NULL, PRIMARY KEY (site, image)) STRICT;
CREATE TABLE IF NOT EXISTS without_mask (image INTEGER PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS by_mean (image INTEGER PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS opinion (
    image INTEGER PRIMARY KEY, answered INTEGER NOT NULL, seen INTEGER NOT NULL, consensus INTEGER NOT NULL,
    agreement REAL) STRICT;
CREATE TABLE IF NOT EXISTS silence (
    site TEXT NOT NULL, chunk INTEGER NOT NULL, images INTEGER NOT NULL, PRIMARY KEY (site, chunk)) STRICT;
CREATE TABLE IF NOT EXISTS ask (
    site TEXT NOT NULL, chunk INTEGER NOT NULL, times INTEGER NOT NULL, asked_at REAL NOT NULL, answered_at REAL,
    PRIMARY KEY (site, chunk)) STRICT;
CREATE TABLE IF NOT EXISTS held (
    site TEXT NOT NULL, chunk INTEGER NOT NULL, reply BLOB NOT NULL, PRIMARY KEY (site, chunk)) STRICT;
CREATE TABLE IF NOT EXISTS agreement (
    site TEXT NOT NULL, chunk INTEGER NOT NULL, images INTEGER NOT NULL, total INTEGER NOT NULL,
    PRIMARY KEY (site, chunk)) STRICT;
CREATE TABLE IF NOT EXISTS seen (site TEXT PRIMARY KEY, at REAL NOT NULL, connected INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS result (site TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (site, kind)) STRICT;
CREATE TABLE IF NOT EXISTS event (at REAL NOT NULL, site TEXT NOT NULL, stage TEXT NOT NULL, text TEXT NOT NULL) STRICT;
"""


AWAITED: Final[dict[str, type[WaitingError]]] = {"awaited": ConsentError, "awaited-answer": AnswerFileError}
"""Kinds of results that say what a study waits for."""
NOT_CONSENTED: Final = "takes no part: not consented"


@dataclass(frozen=True)
class Stage:
    """How far a stage is: ``done`` of ``total`` steps, after ``seconds`` of work."""

    name: str
    done: int
    total: int
    seconds: float
    finished: bool
    note: str


@dataclass(frozen=True)
class Event:
    """Something worth telling: which site (or none), in which stage, what."""

    at: float
    site: str
    stage: str
    text: str


@dataclass(frozen=True)
class Opinion:
    """What stands behind the pseudo mask of one image; of several labels, the one that most sites see.

    Attributes
    ----------
    answered, seen
        How many sites gave a mask, and how many of them see a target.
    consensus
        Whether these are the quorum that the study's gate asks for.
    agreement
        Mean soft Dice, in [0, 1], between the sites that were folded in; None where they are fewer than two.
    """

    answered: int
    seen: int
    consensus: bool
    agreement: float | None


class Ledger:
    """One study's ledger. Open it with `Ledger.open`; every method is one transaction."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database: Final = database
        self._path: Final = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open, or start, the ledger at ``path``.

        Raises
        ------
        StateError
            If the file is no ledger or is damaged.
        MachineError
            If it cannot be read or written now: a full disk, a folder that may not be written.
        """
        try:
            database = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise _in_words(path, error) from None
        return cls(database, path)

    def check(self) -> None:
        """Read the whole file; `StateError` if its pages or indices are damaged."""
        [found, *_] = self._run("PRAGMA quick_check(1)")
        if found != ("ok",):
            raise _damaged(self._path, " ".join(str(found[0]).split()))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def bind(self, **facts: str) -> None:
        """Tie the ledger to a study; `StateError` if it is tied to another."""
        for key, value in facts.items():
            self._run("INSERT OR IGNORE INTO study VALUES (?, ?)", (key, value))
            held = self._scalar("SELECT value FROM study WHERE key = ?", (key,))
            if held != value:
                raise StateError(
                    f"this run folder belongs to another study: its {key} is {held}, the one given has {value}. "
                    "Give the settings and catalogue it was started with, or another run folder."
                )

    # --- stages

    def advance(self, name: str, done: int, total: int, seconds: float, note: str = "") -> None:
        """Record how far a stage is; ``seconds`` is its work so far, over all starts."""
        self._run(
            "INSERT INTO stage VALUES (?, ?, ?, ?, 0, ?) ON CONFLICT (name) DO UPDATE SET "
            "done = excluded.done, total = excluded.total, seconds = excluded.seconds, note = excluded.note",
            (name, done, total, seconds, note),
        )

    def finish(self, name: str, seconds: float) -> None:
        """Record that a stage is finished."""
        self._run(
            "INSERT INTO stage VALUES (?, 1, 1, ?, 1, '') ON CONFLICT (name) DO UPDATE SET "
            "done = total, seconds = excluded.seconds, finished = 1, note = ''",
            (name, seconds),
        )

    def remark(self, name: str, note: str) -> None:
        """Note beside a stage what it waits for."""
        self._run("UPDATE stage SET note = ? WHERE name = ?", (note, name))

    def reopen(self, name: str) -> None:
        """Make a stage run again."""
        self._run("DELETE FROM stage WHERE name = ?", (name,))

    def stage(self, name: str) -> Stage | None:
        """How far a stage is; None if it never started."""
        return next((stage for stage in self.stages() if stage.name == name), None)

    def stages(self) -> list[Stage]:
        """All stages, in the order of their start."""
        rows = self._run("SELECT name, done, total, seconds, finished, note FROM stage ORDER BY rowid")
        return [Stage(name, done, total, seconds, bool(end), note) for name, done, total, seconds, end, note in rows]

    # --- collecting

    def asked(self, site: str, chunk: int) -> None:
        """Record that a site is asked for a chunk, now."""
        self._run(
            "INSERT INTO ask VALUES (?, ?, 1, ?, NULL) ON CONFLICT (site, chunk) DO UPDATE SET "
            "times = times + 1, asked_at = excluded.asked_at",
            (site, chunk, time.time()),
        )

    def answered(
        self,
        site: str,
        chunk: int,
        images: int,
        mask_bytes: int,
        seconds: float,
        reply: bytes = b"",
        abstained: Sequence[int] = (),
    ) -> None:
        """Record a site's answer to a chunk, and hold it until the chunk is finished, so that nobody asks for it again.

        ``images`` are those it gave masks of, ``abstained`` those it does not answer, by position in the catalogue.
        """
        with self.together():
            self._run_many("INSERT OR IGNORE INTO abstention VALUES (?, ?)", [(site, image) for image in abstained])
            self._run(
                "INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?)", (site, chunk, images, mask_bytes, seconds)
            )
            self._run("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", (site, chunk, reply))
            self._run("UPDATE ask SET answered_at = ? WHERE site = ? AND chunk = ?", (time.time(), site, chunk))

    def held(self, chunk: int) -> dict[str, bytes]:
        """Answers to a chunk that is not finished, by site."""
        return dict(self._run("SELECT site, reply FROM held WHERE chunk = ? ORDER BY site", (chunk,)))

    def held_chunks(self, site: str) -> set[int]:
        """Chunks that are not finished and that a site answered."""
        return {chunk for (chunk,) in self._run("SELECT chunk FROM held WHERE site = ?", (site,))}

    def forget(self, site: str, chunk: int, images: Sequence[int]) -> None:
        """Let go of an answer that cannot be used, as if it had never come: the site is asked again.

        ``images`` are the chunk's, by position in the catalogue.
        """
        with self.together():
            for table in ("answer", "held"):
                self._run(f"DELETE FROM {table} WHERE site = ? AND chunk = ?", (site, chunk))  # noqa: S608 - ours
            self._run_many("DELETE FROM abstention WHERE site = ? AND image = ?", [(site, image) for image in images])
            self._run("UPDATE ask SET answered_at = NULL WHERE site = ? AND chunk = ?", (site, chunk))

    def asked_again(self) -> list[tuple[str, int]]:
        """Chunks that a site was asked for after its answer had been recorded; there should be none."""
        return list(self._run("SELECT site, chunk FROM ask WHERE asked_at > answered_at"))

    def chunk_finished(
        self, number: int, images: int, sites: int, agreement: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        """Record that a chunk's pseudo masks are safe on disk, and how far its sites agree; held answers are let go."""
        with self.together():
            self._run("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", (number, images, sites))
            self._run_many(
                "INSERT OR REPLACE INTO agreement VALUES (?, ?, ?, ?)",
                [(site, number, *counted) for site, counted in (agreement or {}).items()],
            )
            self._run("DELETE FROM held WHERE chunk = ?", (number,))

    def agreement(self) -> dict[str, Agreement]:
        """How far each site's masks are those of the others."""
        rows = self._run("SELECT site, SUM(total), SUM(images) FROM agreement GROUP BY site ORDER BY site")
        return {site: Agreement(100 * total / (WHOLE * images), images) for site, total, images in rows}

    def finished_chunks(self) -> dict[int, int]:
        """How many sites each finished chunk was fused from, by its number."""
        return dict(self._run("SELECT number, sites FROM chunk"))

    def answers(self) -> dict[str, tuple[int, int, float]]:
        """Per site: images of finished chunks it answered, bytes of their masks, seconds its teacher took."""
        rows = self._run(
            "SELECT site, SUM(answer.images), SUM(mask_bytes), SUM(seconds) FROM answer "
            "JOIN chunk ON chunk.number = answer.chunk GROUP BY site"
        )
        return {site: (images, size, seconds) for site, images, size, seconds in rows}

    def answered_images(self) -> dict[str, int]:
        """Per site: images it answered, those of chunks that are still open included."""
        return dict(self._run("SELECT site, SUM(images) FROM answer GROUP BY site"))

    def answered_chunks(self, site: str) -> set[int]:
        """Finished chunks that a site answered."""
        rows = self._run("SELECT chunk FROM answer JOIN chunk ON chunk.number = answer.chunk WHERE site = ?", (site,))
        return {chunk for (chunk,) in rows}

    def abstentions(self, site: str) -> set[int]:
        """Images, by position in the catalogue, that a site does not answer."""
        return {image for (image,) in self._run("SELECT image FROM abstention WHERE site = ?", (site,))}

    def without_mask(self, images: Sequence[int]) -> None:
        """Record images that have no pseudo mask, as too few sites gave a mask of some label."""
        self._run_many("INSERT OR IGNORE INTO without_mask VALUES (?)", [(image,) for image in images])

    def images_without_mask(self) -> set[int]:
        """Images that have no pseudo mask, by position in the catalogue."""
        return {image for (image,) in self._run("SELECT image FROM without_mask")}

    def by_mean(self, images: Sequence[int]) -> None:
        """Record images that the mean made, in place of a stack that lacked a site's mask."""
        self._run_many("INSERT OR IGNORE INTO by_mean VALUES (?)", [(image,) for image in images])

    def images_by_mean(self) -> set[int]:
        """Images that the mean made in place of a stack, by position in the catalogue."""
        return {image for (image,) in self._run("SELECT image FROM by_mean")}

    def opinions(self, chunk: int, first: int, held: Sequence[Opinion], silent: Mapping[str, int]) -> None:
        """Record what stands behind each image from position ``first`` on, and of how many the gate left a site out."""
        with self.together():
            self._run_many(
                "INSERT OR REPLACE INTO opinion VALUES (?, ?, ?, ?, ?)",
                [(first + i, one.answered, one.seen, int(one.consensus), one.agreement) for i, one in enumerate(held)],
            )
            self._run_many(
                "INSERT OR REPLACE INTO silence VALUES (?, ?, ?)", [(site, chunk, n) for site, n in silent.items()]
            )

    def opinion(self) -> dict[int, Opinion]:
        """What stands behind each image, by position in the catalogue."""
        rows = self._run("SELECT image, answered, seen, consensus, agreement FROM opinion")
        return {image: Opinion(answered, seen, bool(met), agreed) for image, answered, seen, met, agreed in rows}

    def silent(self) -> dict[str, int]:
        """Per site: of how many images of finished chunks the gate left its mask out."""
        rows = self._run(
            "SELECT site, SUM(silence.images) FROM silence JOIN chunk ON chunk.number = silence.chunk GROUP BY site"
        )
        return dict(rows)

    # --- sites

    def site_described(self, site: str, card: str) -> None:
        """Keep what a site said of itself, as JSON."""
        self._run("INSERT OR REPLACE INTO site VALUES (?, ?)", (site, card))

    def sites(self) -> dict[str, str]:
        """What each site said of itself."""
        return dict(self._run("SELECT name, card FROM site"))

    def consented(self, stage: str, site: str) -> None:
        """Record that a site takes part: it has consented."""
        if site in self.without_consent():
            self.tell(stage, "takes part: consented", site)
        self.keep_result(site, "consent", "true")

    def not_consented(self, stage: str, site: str) -> None:
        """Record that a site takes no part for want of consent, which is no fault of anybody's."""
        self.keep_result(site, "consent", "false")
        self.tell(stage, NOT_CONSENTED, site)

    def without_consent(self) -> set[str]:
        """Sites that have not consented, as far as they were asked."""
        return {site for site, held in self.results("consent").items() if held == "false"}

    def saw(self, connected: Collection[str], absent: Collection[str]) -> None:
        """Record who is connected now, and who is not; of these, when they were seen last stays."""
        now = time.time()
        with self.together():
            self._run_many("INSERT OR REPLACE INTO seen VALUES (?, ?, 1)", [(site, now) for site in connected])
            self._run_many("UPDATE seen SET connected = 0 WHERE site = ?", [(site,) for site in absent])

    def seen(self) -> dict[str, tuple[float, bool]]:
        """When each site was connected last, in seconds since 1970, and whether it was when anyone looked last."""
        rows = self._run("SELECT site, at, connected FROM seen")
        return {site: (at, bool(connected)) for site, at, connected in rows}

    def moved(self, site: str, action: str, sent: int, received: int) -> None:
        """Count bytes from and to a site: ``sent`` by the site, ``received`` by it."""
        self._run(
            "INSERT INTO traffic VALUES (?, ?, ?, ?, 1) ON CONFLICT (site, action) DO UPDATE SET "
            "sent = sent + excluded.sent, received = received + excluded.received, messages = messages + 1",
            (site, action, sent, received),
        )

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes sent and received by each site."""
        rows = self._run("SELECT site, SUM(sent), SUM(received) FROM traffic GROUP BY site")
        return {site: (sent, received) for site, sent, received in rows}

    def keep_result(self, site: str, kind: str, value: str) -> None:
        """Keep a result, as JSON: ``site`` is empty for the coordinator's own."""
        self._run("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (site, kind, value))

    def results(self, kind: str) -> dict[str, str]:
        """Results of a kind, by site."""
        return dict(self._run("SELECT site, value FROM result WHERE kind = ?", (kind,)))

    def awaits(self, waiting: WaitingError) -> None:
        """Record what the study waits for."""
        kind = next(kind for kind, awaited in AWAITED.items() if isinstance(waiting, awaited))
        self.keep_result("", kind, str(waiting))

    # --- events

    def tell(self, stage: str, text: str, site: str = "") -> None:
        """Note something the report and whoever watches should know."""
        self._run("INSERT INTO event VALUES (?, ?, ?, ?)", (time.time(), site, stage, text))

    def events(self) -> list[Event]:
        """All that was noted, in order."""
        return [Event(*row) for row in self._run("SELECT at, site, stage, text FROM event ORDER BY rowid")]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make several writes one transaction."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def _scalar(self, query: str, values: Sequence[str]) -> str:
        return str(self._run(query, values)[0][0])

    def _run(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _in_words(self._path, error) from None

    def _run_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        try:
            self._database.executemany(query, rows)
        except sqlite3.DatabaseError as error:
            raise _in_words(self._path, error) from None


def _in_words(path: Path, error: sqlite3.DatabaseError) -> ConsiliumError:
    """Tell a full or busy disk from a damaged file."""
    if isinstance(error, sqlite3.OperationalError):
        return MachineError(
            f"{path} could not be read or written ({error}): is the disk full, or the folder not yours to write? Mend that, then "
            "start the study again: it goes on where it was"
        )
    return _damaged(path, str(error))


def _damaged(path: Path, told: str) -> StateError:
    return StateError(
        f"{path} is damaged ({told}); move it away, with {path.name}-wal and -shm if they are there, and the study asks the "
        "sites again"
    )


def stop_of(path: Path) -> StudyError | None:
    """What stopped the study of a ledger: a `WaitingError` where it waits for people; None if nothing did."""
    ledger = Ledger.open(path)
    try:
        failure, *awaited = (ledger.results(kind).get("", "") for kind in ("failure", *AWAITED))
    finally:
        ledger.close()
    if failure:
        return StudyError(failure)
    return next((kind(told) for kind, told in zip(AWAITED.values(), awaited, strict=True) if told), None)
