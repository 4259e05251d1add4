"""One table: rows of words and numbers, and how a terminal of any width shows them without breaking a word.

It is laid out when it is printed, for the width there is then. Long texts go on in a second line. Where the longest words of all
columns do not fit side by side, columns that the table can spare are left out, and a line below names them. A text may have
lines of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

EDGES: Final = 2
GAP: Final = 2
"""Characters beside the columns: left and right of all, and between two."""


@dataclass(frozen=True)
class Cell:
    """One entry; ``best`` where it won its comparison."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under plain-word headers. The first ``words`` columns hold words, the others numbers.

    ``spare`` are headers of columns that a narrow terminal may do without, the first to go first.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    notes: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = fitting(self, options.max_width)
        yield _drawn(shown, widths(shown, options.max_width))
        if left_out := [column for column in self.columns if column not in shown.columns]:
            yield Text(f"No room here for: {'; '.join(left_out)}.", style="dim")


def fitting(table: Table, width: int) -> Table:
    """Leave out as many spare columns as it takes until no word has to be broken; all of them where that is not enough."""
    for column in table.spare:
        if sum(_least(table)) + _beside(table) <= width:
            break
        table = _without(table, column)
    return table


def widths(table: Table, width: int) -> list[int]:
    """How wide each column is, so that all fit: the widest that can give way does, as far as its longest word.

    Where even the longest words do not fit, the widest columns are cut all the same; what is cut ends in an ellipsis.
    """
    least, held = _least(table), _most(table)
    for floor in (least, [1] * len(least)):
        while sum(held) + _beside(table) > width:
            loose = [place for place in range(len(held)) if held[place] > floor[place]]
            if not loose:
                break
            held[max(loose, key=lambda place: held[place])] -= 1
    return held


def _drawn(table: Table, column_widths: Iterable[int]) -> RichTable:
    drawn = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for place, (column, width) in enumerate(zip(table.columns, column_widths, strict=True)):
        drawn.add_column(
            column,
            justify="right" if place >= table.words else "left",
            overflow="ellipsis",
            vertical="top",
            width=width,
        )
    for row in table.rows:
        if row[0].text in {"all", "ensemble"} and drawn.rows:
            drawn.rows[-1].end_section = True
        drawn.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
    return drawn


def _beside(table: Table) -> int:
    return EDGES + GAP * (len(table.columns) - 1)


def _least(table: Table) -> list[int]:
    """Of each column the longest word; a line of a number is one word, whatever is in it."""
    found = []
    for place, (header, *cells) in enumerate(_texts(table)):
        words = header.split() + (_lines(cells) if place >= table.words else " ".join(cells).split())
        found.append(max(map(cell_len, words), default=0))
    return found


def _most(table: Table) -> list[int]:
    """Of each column the longest line."""
    return [max(map(cell_len, _lines(texts)), default=0) for texts in _texts(table)]


def _lines(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines()]


def _texts(table: Table) -> list[list[str]]:
    """Of each column the header and its cells."""
    return [[header, *(row[place].text for row in table.rows)] for place, header in enumerate(table.columns)]


def _without(table: Table, column: str) -> Table:
    gone = table.columns.index(column)

    def others(entries: tuple[Any, ...]) -> tuple[Any, ...]:
        return entries[:gone] + entries[gone + 1 :]

    words = table.words - (gone < table.words)
    return replace(table, columns=others(table.columns), rows=tuple(map(others, table.rows)), words=words)
