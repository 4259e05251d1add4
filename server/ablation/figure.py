"""The ladder as a picture: each step's fused masks and student, beside the teachers and what sharing more would give."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Final

import matplotlib
from markupsafe import Markup

from consilium.server.ablation.rows import POOLED, Kind, Row
from consilium.server.ablation.targets import best_teacher
from consilium.server.report.figures import COLOURS, SETTINGS, new_axes, svg

PALETTE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ink": "#17212b",
        "grid": "#d5dbe1",
        "kept": "#0f8088",
        "out": "#c9783a",
        "mark": "#a3123f",
        "teacher": "#8795a1",
        "ensemble": "#c9783a",
        "student": "#0f8088",
    }
)
"""Colours of a picture that stands alone; those of the page's light theme."""


def ladder(rows: Sequence[Row], steps: Sequence[str]) -> Markup:
    """Draw one scenario: a line a step, from the first at the top.

    Dots are means over the seeds; small ones are each seed's. The line through a student is the mean of its seeds' intervals.
    """
    lines = {"best teacher": list(best_teacher(rows).values())} | {
        name: [row.dice_mean for row in rows if (row.kind, row.part) == (kind, POOLED)]
        for name, kind in (
            ("FedAvg", Kind.FEDAVG),
            ("all labels", Kind.POOLED_DATA),
            ("true masks", Kind.TRUE_MASKS),
        )
    }
    styles = dict(zip(lines, ("-", ":", "--", "-."), strict=True))
    told = []
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_axes(7.2, 1.4 + 0.34 * len(steps))
        for name, values in lines.items():
            if values:
                axes.axvline(fmean(values), color=COLOURS["teacher"], linewidth=1.6, linestyle=styles[name], label=name)
                told.append(f"{name} {fmean(values):.1f}")
        for kind, colour in ((Kind.ENSEMBLE, "ensemble"), (Kind.STUDENT, "student")):
            for at, step in enumerate(steps):
                held = [row for row in rows if (row.kind, row.step, row.part) == (kind, step, POOLED)]
                if not held:
                    continue
                place = at + (0.14 if kind is Kind.STUDENT else -0.14)
                mean = fmean(row.dice_mean for row in held)
                if kind is Kind.STUDENT:
                    ends = (fmean(row.dice_low for row in held), fmean(row.dice_high for row in held))
                    axes.plot(ends, (place, place), color=COLOURS[colour], linewidth=1.4, alpha=0.8)
                    told.append(f"{step} {mean:.1f}")
                axes.scatter([row.dice_mean for row in held], [place] * len(held), 9, color=COLOURS[colour], alpha=0.5,
                             linewidths=0)  # fmt: skip
                axes.scatter([mean], [place], 46, color=COLOURS[colour], linewidths=0)
        for words, colour in (("fused masks", "ensemble"), ("student", "student")):
            axes.scatter([], [], 46, color=COLOURS[colour], linewidths=0, label=words)
        axes.set_yticks(range(len(steps)), steps)
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="Dice on the pooled test (%); line: 95 % interval, mean of the seeds'")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.3, fontsize=9,
                    handlelength=2.2, columnspacing=1.2, labelcolor=COLOURS["ink"])  # fmt: skip
        return svg(figure, "Dice of each step's student: " + ", ".join(told))


def standalone(drawn: Markup) -> str:
    """Give a chart of a page as a file of its own: with colours, on white."""
    text = re.sub(r"var\(--([a-z]+)\)", lambda found: PALETTE[found.group(1)], str(drawn))
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="background:#fff"'
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + text.replace("<svg", head, 1) + "\n"
