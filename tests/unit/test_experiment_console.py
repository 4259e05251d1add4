"""An experiment's tables in a terminal: no word is broken or cut, and a deviation stands below its mean."""

import io
import re

import pytest
from rich.console import Console

from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Row
from consilium.server.ablation.tables import BASELINES, ladder_table, sites_table, targets_table
from consilium.server.ablation.targets import Target
from consilium.server.experiment.page import console_table
from consilium.server.experiment.render import Cell, Table

NETWORKS = ("U-Net", "AttU-Net", "SDU-Net", "Panoptic-FPN")
STEPS = ("paper", "strong-augmentation")


def scores(count: int, mark: str = "") -> tuple[Cell, ...]:
    """Each with its own mean and deviation, the last the best."""
    return tuple(
        Cell(f"{61 + place}.25 ± {21 + place}.75{mark}", f"{41 + place}.50 ± {31 + place}.05", place + 1 == count)
        for place in range(count)
    )


def students() -> Table:
    """In the form of table 2, with several seeds and the paper's numbers: the widest there is."""
    rows = (
        (Cell("XXX Breast Lesion-2"), *scores(4, " (s 2.83) †"), Cell("105.66", "106.66")),
        (Cell("baheya (phantoms)*"), *scores(4, " (s 2.83, 2 seeds)"), Cell("")),
    )
    return Table(
        "students",
        "Dice on busi (n = 1,234) of students",
        ("Transferal data set", *NETWORKS, "KTC"),
        rows,
        ("† Told.",),
    )


def teachers() -> Table:
    """In the form of table 6, with both kinds of students."""
    columns = ("Test data set", *NETWORKS, "student DeepLabv3+", "student DeepLabv3+*")
    return Table("teachers", "Dice", columns, ((Cell("busi-test (phantoms) (n = 12)"), *scores(4), *scores(2, " †")),))


def row(kind: Kind, part: str, *, step: str = "", model: str = "", seed: int = 0) -> Row:
    ends = (67.2, 57.1, 77.3)
    return Row("even", seed, step, kind, model, part, 44, 30, *ends, "", -2.44, -11.2, 7.9, 1234, 900, 1.0)


def results() -> list[Row]:
    sites = ("alpha", "charlie")
    rows = [row(Kind.TEACHER, part, model=site) for site in sites for part in (site, POOLED, UNLABELLED)]
    for part in (*sites, POOLED):
        rows += [row(kind, part) for kind in BASELINES]
        rows += [row(Kind.STUDENT, part, step=step) for step in STEPS]
    return rows + [row(Kind.ENSEMBLE, part, step=step) for step in STEPS for part in (POOLED, UNLABELLED)]


def held_to() -> Table:
    found = [
        Target("at least as good as the best single teacher, with every seed", "-5.15 (-5.15, -1.22, -3.78)", False),
        Target("no site loses more than 1 point", "alpha +1.05, bravo -2.33, charlie -1.20, delta +0.48", True),
        Target("60% of the way from the best teacher", "nothing to compare", None),
    ]
    return targets_table(found, "consensus")


TABLES = {
    "students": students,
    "teachers": teachers,
    "ladder": lambda: ladder_table(results(), STEPS),
    "sites": lambda: sites_table(results(), "paper"),
    "targets": held_to,
}


def shown(table: Table, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(table))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_no_word_is_broken_or_cut(name: str, width: int) -> None:
    table = TABLES[name]()
    text = shown(table, width)
    left_out = re.findall(r"No room here for: (.*)\.", text)
    gone = [table.columns.index(column) for column in left_out[0].split("; ")] if left_out else []
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert bool(gone) == ((name, width) == ("ladder", 80))
    words = set(text.split())
    for entries in (table.columns, *([cell.text for cell in line] for line in table.rows)):
        for place, entry in enumerate(entries):
            whole = entry.replace("(n = ", "(n=").replace("Panoptic-FPN", "Panoptic- FPN").split()
            assert place in gone or set(whole) <= words, entry


@pytest.mark.parametrize("width", [80, 120])
def test_deviations_seeds_and_the_papers_numbers_stand_below_their_means(width: int) -> None:
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown(students(), width).splitlines()]
    first = next(index for index, line in enumerate(lines) if "61.25" in line)
    assert lines[first : first + 6] == [
        ["XXX Breast Lesion-2", "61.25", "62.25", "63.25", "64.25", "105.66"],
        ["± 21.75", "± 22.75", "± 23.75", "± 24.75", "[106.66]"],
        ["(s 2.83)"] * 4,
        ["†"] * 4,
        ["[41.50", "[42.50", "[43.50", "[44.50"],
        ["± 31.05]", "± 32.05]", "± 33.05]", "± 34.05]"],
    ]


def test_what_a_narrow_terminal_leaves_out_is_named_and_the_notes_are_told() -> None:
    text = shown(TABLES["ladder"](), 80)
    assert "No room here for: Kept." in text
    assert "Worst site: the student less the site's own teacher" in text
    assert "Kept" in shown(TABLES["ladder"](), 120).split("Fused: the teachers' masks")[0]


def test_the_sites_of_a_target_stand_one_below_the_other() -> None:
    assert re.search(r"alpha \+1\.05,.*met\s*\n.*bravo -2\.33,\s*\n\s*charlie -1\.20,\s*\n", shown(held_to(), 80))
