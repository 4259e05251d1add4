"""Charts as inline SVG, drawn by matplotlib without pyplot.

Colours are style-sheet variables of the page, so that one chart suits light, dark and paper; text stays text.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from consilium.server.report.tables import Rival

COLOURS: Final = {
    "ink": "#010101",
    "grid": "#020202",
    "kept": "#030303",
    "out": "#040404",
    "mark": "#050505",
    "teacher": "#060606",
    "ensemble": "#070707",
    "student": "#080808",
}
"""Stand-ins, replaced by the page's variables of the same name."""

SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "consilium",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


_DEPTH: Final = ("teacher", "ensemble", "prediction", "student")
"""What is drawn first lies below."""


def entropy_histogram(
    bits: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_], beta: float | None, *, most_bits: float | None = None
) -> Markup:
    """How gray-level entropy is spread over the pseudo masks (figure 3 of the paper).

    Parameters
    ----------
    bits
        (n,), in [0, 8].
    kept
        (n,), whether the student trains on the image.
    beta
        The threshold in bits; None where it does not apply.
    most_bits
        Right end of the axis, for charts that are to be compared; found from the values where None.
    """
    top = most_bits or max(float(bits.max(initial=0.0)), beta or 0.0, 1.0) * 1.05
    edges = np.arange(0.0, top + 0.125, 0.125)
    threshold = None if beta is None else (beta, f"beta = {beta:g}")
    title = "Gray-level entropy of the pseudo masks"
    return _histogram(bits, kept, edges, threshold, (title, "entropy (bits)"))


def target_histogram(pixels: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_], least: float) -> Markup:
    """How many target pixels the pseudo masks have, on a logarithmic axis.

    Parameters
    ----------
    pixels
        (n,), at least 0. Masks without any are drawn at 1.
    kept
        (n,), whether the student trains on the image.
    least
        The threshold in pixels, alpha scaled to the study's image size.
    """
    high = max(int(pixels.max(initial=1)), int(least), 10)
    edges = np.geomspace(1.0, high * 1.1, 41)
    threshold = (least, f"alpha = {least:.4g} px") if least >= 1 else None
    words = ("Target pixels of the pseudo masks", "target pixels (left-most bar: up to one)")
    return _histogram(np.maximum(pixels, 1), kept, edges, threshold, words, logarithmic=True)


def loss_curve(curve: Sequence[tuple[int, float]]) -> Markup:
    """The student's training loss by step; ``curve`` holds (step, loss)."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_axes(5.4, 2.7)
        steps, losses = zip(*curve, strict=True)
        axes.plot(steps, losses, color=COLOURS["student"], linewidth=1.8)
        axes.set(xlabel="training step", ylabel="loss", ylim=(0, None), xlim=(0, None))
        told = f"Training loss of the student: from {losses[0]:.3f} to {losses[-1]:.3f} in {steps[-1]} steps"
        return svg(figure, told)


def dice_bars(rivals: Sequence[Rival]) -> Markup:
    """Pooled Dice of each teacher, the ensemble and the student, with the standard deviation over images."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_axes(5.8, 0.7 + 0.3 * len(rivals))
        place = np.arange(len(rivals))
        axes.barh(place, [one.mean for one in rivals], height=0.66, color=[COLOURS[one.kind] for one in rivals])
        for at, one in enumerate(rivals):
            ends = (max(0.0, one.mean - one.std), min(100.0, one.mean + one.std))
            axes.plot(ends, (at, at), color=COLOURS["ink"], linewidth=1.0, alpha=0.7)
            axes.text(102, at, f"{one.mean:.1f}", va="center", fontweight="bold", color=COLOURS["ink"])
        labels = [one.name if one.kind != "teacher" else f"teacher {one.name}" for one in rivals]
        axes.set_yticks(place, labels)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 100), xlabel="Dice (%); line: standard deviation over images")
        told = "Dice on the pooled test images: " + ", ".join(
            f"{label} {one.mean:.1f}" for label, one in zip(labels, rivals, strict=True)
        )
        return svg(figure, told)


def reliability(predictors: Sequence[Mapping[str, Any]]) -> Markup:
    """What was said against what was so, by bins of probability.

    Parameters
    ----------
    predictors
        Each with ``kind``, ``name`` and ``calibration``, of which ``bins`` have ``probability`` and ``target`` in [0, 1] and
        ``pixels``. A bin's dot grows with the logarithm of its pixels.
    """
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_axes(5.4, 4.2)
        axes.plot((0, 1), (0, 1), color=COLOURS["ink"], linewidth=1.0, linestyle="--", alpha=0.6)
        seen: set[str] = set()
        for one in sorted(predictors, key=lambda one: _DEPTH.index(one["kind"])):
            bins = one["calibration"]["bins"]
            said, so = [[held[key] for held in bins] for key in ("probability", "target")]
            words = {"teacher": "each teacher", "prediction": one["name"]}.get(one["kind"], one["kind"])
            colour = COLOURS["student" if one["kind"] == "prediction" else one["kind"]]
            axes.plot(said, so, color=colour, linewidth=1.0 if one["kind"] == "teacher" else 2.0,
                      label=None if words in seen else words)  # fmt: skip
            axes.scatter(said, so, [4 + 5 * np.log10(held["pixels"]) for held in bins], color=colour, linewidths=0)
            seen.add(words)
        axes.set(
            xlabel="probability in the soft mask", ylabel="part that is target", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, fontsize=9,
                    handlelength=1.4, columnspacing=1.4, labelcolor=COLOURS["ink"])  # fmt: skip
        told = "Reliability; expected calibration error: " + ", ".join(
            f"{one['name']} {one['calibration']['ece']:.4f}" for one in predictors
        )
        return svg(figure, told)


def paired_dice(teacher: Sequence[float], student: Sequence[float], name: str) -> Markup:
    """Dice of each test image, the teacher's across and the student's up; both (n,) in percent."""
    theirs, own = np.array(teacher), np.array(student)
    better, worse = own > theirs, own < theirs
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_axes(5.4, 4.2)
        axes.plot((0, 100), (0, 100), color=COLOURS["ink"], linewidth=1.0, linestyle="--", alpha=0.6)
        for which, colour, words in ((better, "kept", "student better"), (worse, "out", f"{name} better")):
            axes.scatter(theirs[which], own[which], 22, color=COLOURS[colour], alpha=0.75, linewidths=0,
                         label=f"{words} ({int(which.sum()):,})")  # fmt: skip
        same = ~better & ~worse
        axes.scatter(theirs[same], own[same], 22, color=COLOURS["teacher"], linewidths=0)
        axes.set(xlabel=f"Dice of {name} (%)", ylabel="Dice of the student (%)", xlim=(-2, 102), ylim=(-2, 102))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0, fontsize=9,
                    handlelength=1.0, columnspacing=1.4, labelcolor=COLOURS["ink"])  # fmt: skip
        told = f"Dice of each test image: the student is better on {int(better.sum())}, {name} on {int(worse.sum())}"
        return svg(figure, told)


def _histogram(
    values: npt.NDArray[np.generic],
    kept: npt.NDArray[np.bool_],
    edges: npt.NDArray[np.float64],
    threshold: tuple[float, str] | None,
    words: tuple[str, str],
    *,
    logarithmic: bool = False,
) -> Markup:
    with matplotlib.rc_context(SETTINGS):
        figure, axes = new_axes(5.4, 2.7)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.hist(
            [values[kept], values[~kept]],
            bins=edges.tolist(),
            stacked=True,
            color=[COLOURS["kept"], COLOURS["out"]],
            label=[f"kept ({int(kept.sum()):,})", f"left out ({int((~kept).sum()):,})"],
        )
        if threshold:
            axes.axvline(threshold[0], color=COLOURS["mark"], linewidth=1.6, linestyle="--", label=threshold[1])
        axes.set(xlabel=words[1], ylabel="images", xlim=(edges[0], edges[-1]))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, fontsize=9,
                    handlelength=1.4, columnspacing=1.4, labelcolor=COLOURS["ink"])  # fmt: skip
        told = f"{words[0]}: {int(kept.sum())} images kept, {int((~kept).sum())} left out"
        return svg(figure, told + (f"; threshold {threshold[1]}" if threshold else ""))


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)
    axes.grid(color=COLOURS["grid"], linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_color(COLOURS["grid"])
    axes.tick_params(which="both", color=COLOURS["grid"], labelcolor=COLOURS["ink"])
    axes.xaxis.label.set_color(COLOURS["ink"])
    axes.yaxis.label.set_color(COLOURS["ink"])
    return figure, axes


def svg(figure: Figure, told: str) -> Markup:
    """Render without anything that changes from run to run, or points out of the page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)  # these repeat from chart to chart
    drawn = re.sub(r"font: ([^;\"]*?)([0-9.]+px)[^;\"]*", r"font: \1\2 system-ui, sans-serif", drawn)
    for name, stand_in in COLOURS.items():
        drawn = drawn.replace(stand_in, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', drawn)
    head = f'<svg class="chart" role="img" aria-label="{escape(told)}" {box.group() if box else ""}>'
    body = re.sub(r"\n\s*", "\n", drawn[drawn.index(">") + 1 :])
    return Markup(head + body)  # noqa: S704 - drawn by matplotlib, which escapes every word
