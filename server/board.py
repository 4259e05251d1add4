"""Showing progress: live bars in a terminal, one line a step elsewhere; and how much memory a run takes."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from consilium.server.ledger import Stage

STAGE_LABELS: Final = {
    "start": "SuperLink, SuperNodes and gateways start",
    "describe": "sites are told of the study",
    "collect": "soft masks are collected and fused",
    "select": "images without a salient target are excluded",
    "distill": "the student is trained",
    "export": "the student is exported to ONNX",
    "test": "all are scored on the pooled test images",
    "evaluate": "sites evaluate the student",
    "fine-tune": "sites fine-tune the student",
    "report": "the report is written",
}


class Board:
    """Lines of progress; a context manager. Threads may share it."""

    def __init__(self, console: Console) -> None:
        self.console: Final = console
        self._lock: Final = threading.Lock()
        self._tasks: Final[dict[str, TaskID]] = {}
        self._finished: Final[set[str]] = set()
        self._bars: Final = Progress(
            TextColumn("{task.description:<46}"),
            BarColumn(bar_width=22),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def show(self, label: str, done: int, total: int, note: str = "") -> None:
        """Show how far something is; the first call for a label makes its line."""
        with self._lock:
            first = label not in self._tasks
            if first:
                self._tasks[label] = self._bars.add_task(label, total=total, note=note)
            self._bars.update(self._tasks[label], completed=done, total=total, note=note)
            ended = done >= total and label not in self._finished
            if ended:
                self._finished.add(label)
                self._bars.stop_task(self._tasks[label])
            if not self.console.is_terminal and (first or ended):
                self.console.print(f"{label}: {'done' if ended else 'started'}", highlight=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


@contextmanager
def image_progress(console: Console, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many images are done, how fast, and how long it will take; a line at start and end where there is no terminal.

    What the first call tells counts as done before: the speed is that of the images since.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bars.add_task(label, total=total, speed="")
    first: list[tuple[int, float]] = []
    done_now = 0

    def show(done: int) -> None:
        nonlocal done_now
        done_now = done
        if not first:
            first.append((done, time.monotonic()))
            if done:
                console.print(f"going on where it was: {done} of {total} images were done before", highlight=False)
        before, began = first[0]
        speed = (done - before) / max(time.monotonic() - began, 1e-3)
        bars.update(task, completed=done, speed=f"{speed:.0f} images/s" if done > before else "")

    if not console.is_terminal:
        console.print(f"{label}: started, {total} images", highlight=False)
    with bars:
        yield show
    if not console.is_terminal:
        console.print(f"{label}: done, {done_now} images", highlight=False)


@contextmanager
def following(board: Board, ledger: Path, every_s: float = 0.5) -> Iterator[None]:
    """Show the stages of a ledger that another process, or thread, writes."""
    ended = threading.Event()

    def look() -> None:
        with suppress(sqlite3.Error):  # not there yet, or being made
            database = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
            try:
                rows = database.execute("SELECT name, done, total, seconds, finished, note FROM stage ORDER BY rowid")
                for stage in [Stage(*row) for row in rows]:
                    done = stage.total if stage.finished else min(stage.done, stage.total - 1)
                    board.show(STAGE_LABELS.get(stage.name, stage.name), done, stage.total, stage.note)
            finally:
                database.close()

    with _thread("follow the ledger", look, ended, every_s):
        yield
    look()


class Memory:
    """The most memory this process and all it started took together, in MB (proportional set size)."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def look(self) -> None:
        """Measure now."""
        total = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.peak_mb = max(self.peak_mb, total / 2**20)


@contextmanager
def measured_memory(every_s: float = 5.0) -> Iterator[Memory]:
    """Measure memory while the block runs."""
    memory, ended = Memory(), threading.Event()
    with _thread("measure memory", memory.look, ended, every_s):
        yield memory


@contextmanager
def _thread(name: str, look: Callable[[], None], ended: threading.Event, every_s: float) -> Iterator[None]:
    def repeat() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
