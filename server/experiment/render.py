"""A table of the paper's form as Markdown, HTML or LaTeX."""

import re
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

NONE: Final = "—"


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes
    ----------
    text
        What stands there; `NONE` where nothing was measured.
    paper
        The paper's number, shown beside it in square brackets; empty for none.
    best
        Whether it won its comparison.
    """

    text: str
    paper: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headers, with a caption above and notes below. The first column holds words, the others numbers.

    ``name`` serves as file name and label: letters, digits and hyphens. ``spare`` are headers of columns that a narrow terminal
    may do without, the first to go first; files have every column.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """Give the table in GitHub's Markdown."""

    def cell(one: Cell) -> str:
        text = _markdown(one.text)
        text = f"**{text}**" if one.best else text
        return f"{text} [{_markdown(one.paper)}]" if one.paper else text

    lines = [
        _markdown(table.caption),
        "",
        "| " + " | ".join(map(_markdown, table.columns)) + " |",
        "|---|" + "---:|" * (len(table.columns) - 1),
        *("| " + " | ".join(map(cell, row)) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, *([""] if table.notes else []), *(f"- {_markdown(note)}" for note in table.notes)]) + "\n"


def html(table: Table) -> Markup:
    """Give the table as a fragment of HTML; a style sheet may use the classes ``number``, ``paper`` and ``notes``."""

    def cell(place: int, one: Cell) -> Markup:
        text = Markup("<b>{}</b>" if one.best else "{}").format(_line(one.text))  # noqa: S704 - escapes what it is given - one of the two texts
        paper = Markup(' <span class="paper">[{}]</span>').format(one.paper) if one.paper else Markup("")
        frame = '<td class="number">{}{}</td>' if place else '<th scope="row">{}{}</th>'
        return Markup(frame).format(text, paper)  # noqa: S704 - escapes what it is given

    def line(cells: list[Markup]) -> Markup:
        return Markup("<tr>{}</tr>").format(Markup("").join(cells))

    head = line([Markup('<th scope="col">{}</th>').format(_line(column)) for column in table.columns])
    body = Markup("\n").join(line([cell(place, one) for place, one in enumerate(row)]) for row in table.rows)
    notes = Markup("").join(Markup("<li>{}</li>").format(_line(note)) for note in table.notes)
    return Markup(
        '<figure id="{}">\n<table>\n<caption>{}</caption>\n<thead>{}</thead>\n<tbody>\n{}\n</tbody>\n</table>\n{}</figure>\n'
    ).format(
        table.name, table.caption, head, body, Markup('<ul class="notes">{}</ul>\n').format(notes) if notes else ""
    )


def latex(table: Table) -> str:
    """Give the table as LaTeX; the document needs the package ``booktabs``."""

    def cell(one: Cell) -> str:
        text = _latex(one.text)
        text = rf"\textbf{{{text}}}" if one.best else text
        return rf"{text} {{\footnotesize[{_latex(one.paper)}]}}" if one.paper else text

    lines = [
        r"\begin{table}  % needs \usepackage{booktabs}",
        r"  \centering",
        rf"  \caption{{{_latex(table.caption)}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(map(_latex, table.columns)) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(map(cell, row)) + r" \\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *(rf"  \par\smallskip\footnotesize {_latex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """Text without effect in Markdown, on one line."""
    plain = _line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # behind a line's end, a bracket would be the end's argument
    "]": "{]}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "—": "---",
    **{char: "\\" + char for char in "{}$&#_%"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in _line(text))


def _line(text: str) -> str:
    """Text on one line and without control characters."""
    return "".join(char if char.isprintable() else " " for char in text)
