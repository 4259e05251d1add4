"""Showing how far an experiment is: bars in a terminal, a line a cell everywhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

INSTANT_S: Final = 0.5
"""A cell that took less, in seconds, was there already and says nothing about the time the others need."""


class Display:
    """A context manager.

    Parameters
    ----------
    console
        Where.
    cells
        How many there are.
    """

    def __init__(self, console: Console, cells: int) -> None:
        self.console: Final = console
        self._cells: Final = cells
        self._done = 0
        self._took: Final[list[float]] = []
        self._bars: Final = Progress(
            TextColumn("{task.description:<44.44}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._all: Final = self._bars.add_task("cells", total=cells, note="")
        self._now: Final = self._bars.add_task("", total=1, note="")
        self._what = ""

    def tell(self, what: str, done: int, total: int) -> None:
        """Show what is being done."""
        if what != self._what:
            self._what = what
            self._bars.reset(self._now, description=what, total=total)
        self._bars.update(self._now, completed=done, total=total)

    @contextmanager
    def cell(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a cell; call what it gives with what was found at its end."""
        began = time.monotonic()
        self._bars.update(self._all, note=self._left())

        def finish(found: str) -> None:
            took = time.monotonic() - began
            self._done += 1
            if took >= INSTANT_S:
                self._took.append(took)
            place = f"[{self._done}/{self._cells}]"
            self.console.print(f"{place} {name}: {found or 'done'}", markup=False, highlight=False, soft_wrap=True)
            self._bars.update(self._all, completed=self._done, note=self._left())

        yield finish

    def _left(self) -> str:
        """The time the other cells will need, were they like those of this run so far."""
        if not self._took or self._done == self._cells:
            return ""
        seconds = sum(self._took) / len(self._took) * (self._cells - self._done)
        hours, minutes = divmod(max(1, round(seconds / 60)), 60)
        return f"{hours} h {minutes:02d} min left" if hours else f"{minutes} min left"

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
