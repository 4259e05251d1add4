"""A table in a terminal of any width: no word is broken, and what is left out is named."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from consilium.server.report.table import EDGES, GAP, Cell, Table, fitting, widths

SITES = Table(
    "Sites",
    ("Site", "Told", "Images answered", "Sent"),
    (
        (Cell("north"), Cell("not consented"), Cell("4 of 40"), Cell("12.5 MB")),
        (Cell("east"), Cell("done"), Cell("40 of 40"), Cell("1 kB")),
    ),
    words=2,
    spare=("Sent", "Told"),
)
WORDS = st.text("abc", min_size=1, max_size=9)
TEXTS = st.lists(WORDS, min_size=1, max_size=5).map(" ".join)


def shown(table: Table, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = draw(st.lists(TEXTS, min_size=1, max_size=5, unique=True))
    rows = draw(st.lists(st.tuples(*[TEXTS.map(Cell) for _ in columns]), max_size=4))
    return Table("", tuple(columns), tuple(rows), draw(st.integers(0, len(columns))))


def test_columns_are_as_wide_as_their_texts_where_there_is_room() -> None:
    """5 + 13 + 15 + 7 letters, 3 gaps of 2, and 2 at the edges: 48."""
    assert widths(SITES, 48) == widths(SITES, 200) == [5, 13, 15, 7]
    assert fitting(SITES, 200) == SITES


def test_the_widest_give_way_as_far_as_their_longest_word_and_numbers_stay_whole() -> None:
    """The words "not consented" go down to 9, "Images answered" to the 8 of "answered" and of "40 of 40"."""
    assert widths(SITES, 45) == [5, 12, 13, 7]
    assert widths(SITES, 37) == [5, 9, 8, 7]
    assert fitting(SITES, 37) == SITES


def test_columns_that_can_be_spared_are_left_out_in_their_order_and_named() -> None:
    assert fitting(SITES, 36).columns == ("Site", "Told", "Images answered")
    assert fitting(SITES, 27).columns == ("Site", "Images answered")
    text = shown(SITES, 27)
    assert "No room here for: Told; Sent." in " ".join(text.split())
    assert "40 of 40" in text
    assert "…" not in text


def test_what_cannot_fit_at_all_ends_in_an_ellipsis() -> None:
    text = shown(Table("", ("Site",), ((Cell("a-hospital-of-a-very-long-name"),),)), 20)
    assert "a-hospital-of-a-v…" in text
    assert max(map(len, text.splitlines())) <= 20


@given(tables(), st.integers(10, 120))
def test_no_word_is_broken_wherever_the_longest_words_fit_and_nothing_is_wider_than_the_terminal(
    table: Table, width: int
) -> None:
    """The law: each column is between its longest word (a number: its whole text) and its longest text."""
    held = widths(table, width)
    texts = [[column, *(row[i].text for row in table.rows)] for i, column in enumerate(table.columns)]
    least = [
        max(map(len, [*each[0].split(), *(each[1:] if i >= table.words else " ".join(each[1:]).split())]))
        for i, each in enumerate(texts)
    ]
    beside = EDGES + GAP * (len(held) - 1)
    if sum(least) + beside <= width:
        assert all(low <= wide <= max(map(len, each)) for low, wide, each in zip(least, held, texts, strict=True))
    if len(held) + beside <= width:
        assert sum(held) + beside <= width
        assert max(map(len, shown(table, width).splitlines()), default=0) <= width
