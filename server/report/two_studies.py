"""A study and the one that followed it, side by side: what each step gave every site, and all of them together."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from consilium.server.report.table import Cell, Table
from consilium.server.report.tables import Metrics, at_least_as_good, best_teacher, in_small, score_cells

_NOTE: Final = (
    "A site's row, on its own labelled test images: its teacher, then each study's student, fine-tuned with the site's labels. "
    "The last rows, on the pooled test images: the best single teacher, then what each study made. Mean ± standard deviation "
    "over images; bold: the best of a row."
)


def two_studies(first: Metrics, second: Metrics) -> Group:
    """The table, and in words at how many sites the second study's student beats the teacher that the site began with."""
    table, told = two_studies_table(first, second), _verdict(first, second)
    return Group(Text(""), table, *in_small(table.notes), *([Text(""), Text(told)] if told else []))


def two_studies_table(first: Metrics, second: Metrics) -> Table:
    """Rows for every site of both studies, for the ensemble and for the student."""
    rows = []
    for site, entry in first["sites"].items():
        after = second["sites"].get(site, {})
        scores = (entry["teacher"]["local_dice"], _fine_tuned(entry), _fine_tuned(after))
        rows.append((Cell(site), *score_cells(scores)))
    best = best_teacher(first)
    for name, what in (("ensemble", "all sites together"), ("student", "student")):
        teacher = first["sites"][best.name]["teacher"]["pooled_dice"] if best else None
        scores = (teacher, first[name]["pooled_dice"], second[name]["pooled_dice"])
        if any(scores):
            rows.append((Cell(what), *score_cells(scores)))
    columns = ("", "Teacher", "First study", "Second study")
    return Table("Both studies: Dice in percent", columns, tuple(rows), 1, (_NOTE,))


def _fine_tuned(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    held = entry.get("fine_tuned")
    return held["local_dice"] if held else None


def _verdict(first: Metrics, second: Metrics) -> str:
    ahead = at_least_as_good(
        (entry["teacher"]["local_dice"], _fine_tuned(second["sites"].get(site, {})))
        for site, entry in first["sites"].items()
    )
    if not ahead:
        return ""
    return (
        f"Fine-tuned with a site's own labels, the second study's student equals or beats the teacher that the site began with "
        f"at {ahead}."
    )
