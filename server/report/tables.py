"""Numbers as rows: the one place that words, rounds and compares what ``metrics.json`` holds.

The terminal and the page show the same `Table`; neither formats a number itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from consilium.server.board import STAGE_LABELS
from consilium.server.report.table import Cell, Table

Metrics = Mapping[str, Any]

NONE: Final = "—"
DICE_NOTE: Final = (
    "Dice in percent, mean ± standard deviation over images; 100 is a perfect outline. "
    "Bold: the best of a site's row at home, and of the pooled column."
)
HOME_NOTE: Final = "At home: on the site's own labelled test images, scored at the site, which returns only the score."
POOLED_NOTE: Final = (
    "Pooled: labelled test images the coordinator holds. All are scored on the same ones; no student trains on them."
)
TUNED_NOTE: Final = (
    "Fine-tuned: that site's teacher is the student of a former study, trained on with the site's own labels."
)
LABEL_NOTE: Final = (
    "A dash: the site's teacher does not know the label. Dice elsewhere is the mean over the labels that are known, so "
    "compare teachers of different labels here only."
)
AGREEMENT_NOTE: Final = (
    "Soft Dice of a site's mask and another site's, median over the other sites, mean over images. A site below half of the "
    "median site stands apart: a broken teacher, another meaning of the label, or masks that are made up."
)
FUSION_NOTE: Final = (
    "Weight in the mean, of the largest. Validation: the site's own labelled images that its teacher was not trained on, as the "
    "site reports it. Silent in: shared images of which its mask was left out: it sees no target there and enough others do, or "
    "is unlike all the others."
)
REASONS: Final = {
    "few-target-pixels": "too few target pixels",
    "high-entropy": "gray-level entropy too high",
    "few-target-pixels+high-entropy": "both: too few target pixels, entropy too high",
    "no-consensus": "too few sites see a target",
    "few-target-pixels+no-consensus": "both: too few target pixels, too few sites see a target",
    "too-few-masks": "too few sites gave a mask",
    "far-set": "of a set that the sites agree little about",
}
_STAGES: Final = {
    "data": "images are read, packed and signed",
    "teachers": "sites train their teachers",
    "adopt": "sites take their fine-tuned students for teachers",
    **STAGE_LABELS,
}


@dataclass(frozen=True)
class Rival:
    """One of those scored on the pooled test images: ``kind`` is teacher, ensemble or student."""

    name: str
    kind: str
    mean: float
    std: float
    n: int


def plain(text: object, limit: int = 60) -> str:
    """Text that came from elsewhere, without control characters and not longer than ``limit``."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def dice_text(score: Mapping[str, Any] | None) -> str:
    """``mean ± std`` in percent, or a dash where nothing was measured."""
    return f"{score['mean']:.1f} ± {score['std']:.1f}" if score and score["n"] else NONE


def stack_text(told: Mapping[str, Any]) -> str:
    """On how many labelled images a stack was fitted, from its facts; the fewest, where labels differ."""
    images = min(label["images"] for label in told["labels"].values())
    stood_in = f" and, for {told['by_mean']:,} images, replaced by the weighted mean" if told["by_mean"] else ""
    return f"fitted on {images:,} labelled images of the coordinator{stood_in}"


def bytes_text(count: float | None) -> str:
    """Bytes for people, in powers of a thousand."""
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds_text(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rivals(metrics: Metrics) -> list[Rival]:
    """All that were scored on the pooled test images: teachers in the study's order, ensemble, student."""
    scores = [(site, "teacher", held["teacher"]["pooled_dice"]) for site, held in metrics["sites"].items()]
    scores += [("ensemble", "ensemble", metrics["ensemble"]["pooled_dice"])]
    scores += [("student", "student", metrics["student"]["pooled_dice"])]
    return [
        Rival(name, kind, score["mean"], score["std"], score["n"])
        for name, kind, score in scores
        if score and score["n"]
    ]


def best_teacher(metrics: Metrics) -> Rival | None:
    """The single teacher with the highest pooled Dice, of those that know every label: only they compare to the student."""
    by_label = {site: entry["teacher"]["pooled_dice_by_label"] for site, entry in metrics["sites"].items()}
    whole = {site for site, scores in by_label.items() if scores is None or set(scores) == set(metrics["labels"])}
    return max(
        (one for one in rivals(metrics) if one.kind == "teacher" and one.name in whole),
        key=lambda one: one.mean,
        default=None,
    )


def against(mean: float, reference: Rival) -> str:
    """How far a mean is above or below a rival's, in points of percent, as the rounded numbers shown differ."""
    points = round(round(mean, 1) - round(reference.mean, 1), 1)
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if points else "level with"


def dice_table(metrics: Metrics) -> Table:
    """Who is how good, where."""
    held = rivals(metrics)
    top = max((round(one.mean, 1) for one in held), default=None)

    def pooled(score: Mapping[str, Any] | None) -> Cell:
        return Cell(dice_text(score), bool(score and score["n"] and round(score["mean"], 1) == top))

    rows = [_site_row(site, entry, pooled(entry["teacher"]["pooled_dice"])) for site, entry in metrics["sites"].items()]
    student, empty = metrics["student"], Cell(NONE)
    if held:
        fused = pooled(metrics["ensemble"]["pooled_dice"])
        rows.append((Cell("ensemble"), Cell("all teachers together"), empty, fused, empty, empty))
        network = Cell(plain(student["network"], 24))
        rows.append((Cell("student"), network, empty, pooled(student["pooled_dice"]), empty, empty))
    columns = (
        "Site",
        "Network",
        "Its teacher, at home",
        "Pooled test images",
        "Student, at home",
        "Student fine-tuned, at home",
    )
    pooled_note = f"{POOLED_NOTE} Here {held[0].n}." if held else "No pooled test images were scored in this study."
    tuned = any(entry["teacher"]["fine_tuned_student"] for entry in metrics["sites"].values())
    notes = (DICE_NOTE, HOME_NOTE, pooled_note, *([TUNED_NOTE] if tuned else []))
    return Table("How good: Dice in percent", columns, tuple(rows), 2, notes)


def _site_row(site: str, entry: Mapping[str, Any], pooled: Cell) -> tuple[Cell, ...]:
    home = (
        entry["teacher"]["local_dice"],
        entry["student"]["local_dice"],
        entry["fine_tuned"]["local_dice"] if entry["fine_tuned"] else None,
    )
    teacher, student, tuned = score_cells(home, "offline" if entry.get("offline") else NONE)
    network = plain(entry["network"], 24) if entry["network"] else NONE
    if entry["teacher"]["fine_tuned_student"]:
        network += ", fine-tuned"
    return (Cell(site), Cell(network), teacher, pooled, student, tuned)


def score_cells(scores: Sequence[Mapping[str, Any] | None], missing: str = NONE) -> list[Cell]:
    """Scores of one row, the best of several marked; ``missing`` stands where there is none."""
    measured = [round(score["mean"], 1) for score in scores if score and score["n"]]
    top = max(measured) if len(measured) > 1 else None
    return [
        Cell(
            missing if score is None else dice_text(score),
            bool(score and score["n"] and round(score["mean"], 1) == top),
        )
        for score in scores
    ]


def at_least_as_good(pairs: Iterable[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]) -> str:
    """At how many sites a second score equals or beats the first, as the rounded numbers shown do; empty where none has both."""
    known = [(one["mean"], other["mean"]) for one, other in pairs if one and other and one["n"] and other["n"]]
    ahead = sum(round(other, 1) >= round(one, 1) for one, other in known)
    return f"{ahead} of {len(known)} sites" if known else ""


def label_table(metrics: Metrics) -> Table | None:
    """Who is how good at which label; None in a study of one label, and before anyone was scored."""
    held = [(site, entry["teacher"]["pooled_dice_by_label"]) for site, entry in metrics["sites"].items()]
    held += [(name, metrics[name]["pooled_dice_by_label"]) for name in ("ensemble", "student")]
    scored = {name: by_label for name, by_label in held if by_label}
    labels = list(
        dict.fromkeys(label for by_label in scored.values() for label in metrics["labels"] if label in by_label)
    )
    if not labels:
        return None
    top = {
        label: max(round(by_label[label]["mean"], 1) for by_label in scored.values() if label in by_label)
        for label in labels
    }

    def cell(score: Mapping[str, Any] | None, label: str) -> Cell:
        return Cell(dice_text(score), bool(score and round(score["mean"], 1) == top[label]))

    rows = tuple(
        (Cell(name), *(cell(by_label.get(label), label) for label in labels)) for name, by_label in scored.items()
    )
    return Table("How good at which label: Dice in percent, pooled test images", ("", *labels), rows, 1, (LABEL_NOTE,))


def agreement_table(metrics: Metrics) -> Table | None:
    """Whose masks are like the others'; None before two sites answered the same images."""
    held = {site: entry["agreement"] for site, entry in metrics["sites"].items() if entry["agreement"]}
    rows = tuple(
        (
            Cell(site),
            Cell("stands apart: look at it" if one["stands_apart"] else ""),
            Cell(f"{one['mean']:.0f} %"),
            Cell(f"{one['n']:,}"),
        )
        for site, one in held.items()
    )
    columns = ("Site", "", "Agreement with the other sites", "Images")
    return Table("Agreement between the sites' soft masks", columns, rows, 2, (AGREEMENT_NOTE,)) if rows else None


def fusion_table(metrics: Metrics) -> Table | None:
    """How much each site counted, and why; None where every site simply counts as one, and none reports a validation."""
    held = {site: entry["fusion"] for site, entry in metrics["sites"].items()}
    told = [one for one in held.values() if one["validation"]]
    fusion = metrics["fusion"]
    if not told and fusion["gate"] == "none" and fusion["outliers"] == "heard" and not fusion["weights"]:
        return None
    weights = [one["weight"] for one in held.values() if one["weight"] is not None]
    rows = tuple(
        (
            Cell(site),
            Cell(NONE if one["weight"] is None else f"{100 * one['weight'] / max(weights):.0f} %"),
            *_validation_cells(one["validation"]),
            Cell(NONE if one["silent"] is None else f"{one['silent']:,}"),
        )
        for site, one in held.items()
    )
    columns = ("Site", "Weight", "Dice at validation", "Images", "Misses", "False alarms", "Temperature", "Silent in")
    return Table("How much each site counts", columns, rows, 1, (FUSION_NOTE,))


def _validation_cells(told: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    if told is None:
        return (Cell(NONE),) * 5
    counts = (f"{told[key]:,}" for key in ("images", "misses", "false-alarms"))
    return (Cell(f"{told['dice-mean']:.1f}"), *map(Cell, counts), Cell(f"{told['temperature']:.2f}"))


def traffic_table(metrics: Metrics) -> Table:
    """What each site did, and what it sent and received."""
    entries = metrics["sites"]

    def row(
        name: str, answered: int, images: Mapping[str, Any], moved: tuple[float, float, float | None]
    ) -> tuple[Cell, ...]:
        own = [NONE if images[key] is None else f"{images[key]:,}" for key in ("train", "test")]
        return tuple(map(Cell, (name, f"{answered:,}", *own, *(bytes_text(count) for count in moved))))

    rows = [
        row(
            site,
            entry["images"]["answered"],
            entry["images"],
            (entry["bytes_sent"], entry["bytes_received"], entry["bytes_per_mask"]),
        )
        for site, entry in entries.items()
    ]
    masks = sum(entry["images"]["answered"] for entry in entries.values())
    weight = sum((entry["bytes_per_mask"] or 0) * entry["images"]["answered"] for entry in entries.values())
    sent, received = (sum(entry[key] for entry in entries.values()) for key in ("bytes_sent", "bytes_received"))
    total = row("all", masks, {"train": None, "test": None}, (sent, received, weight / masks if masks else None))
    columns = (
        "Site",
        "Shared images answered",
        "Own images, training",
        "Own images, test",
        "Sent by the site",
        "Received by the site",
        "Each soft mask",
    )
    return Table("What moved: soft masks out, shared images and student in", columns, (*rows, total))


def images_table(metrics: Metrics) -> Table:
    """Which shared images the student learned from."""
    images = metrics["images"]
    total = images["transferal"]
    rows = [("shared, unlabelled images", total)]
    if images["kept"] is not None:
        rows.append(("kept for the student's training", images["kept"]))
        rows += [(f"left out: {REASONS.get(key, key)}", count) for key, count in images["excluded"].items()]
        if metrics["exclusion"]["rule"] != "paper":
            rows.append(("the paper's rule would have kept", images["by_paper"]["kept"]))
    cells = tuple(
        (Cell(label), Cell(f"{count:,}"), Cell(f"{100 * count / total:.0f} %" if total else NONE))
        for label, count in rows
    )
    return Table("Shared images", ("", "Images", "Share"), cells)


def collections_table(metrics: Metrics) -> Table | None:
    """Which images of each transferal set the student learned from; None where the sets have no names."""
    held = metrics["images"]["collections"]
    if not held:
        return None
    reasons = [key for key in REASONS if any(key in entry["excluded"] for entry in held.values())]
    rows = []
    for name, entry in held.items():
        total, kept = entry["catalogue"], entry["kept"]
        share = f"{100 * kept / total:.0f} %" if kept is not None and total else NONE
        numbers = (total, kept, *(entry["excluded"].get(key, 0) for key in reasons))
        texts = [NONE if number is None else f"{number:,}" for number in numbers]
        rows.append(tuple(map(Cell, (name or "(without a name)", *texts[:2], share, *texts[2:]))))
    left_out = (f"Left out: {REASONS[key]}" for key in reasons)
    return Table("By transferal set", ("Transferal set", "Images", "Kept", "Share", *left_out), tuple(rows))


def seconds_table(metrics: Metrics) -> Table:
    """Where the time went."""
    rows = tuple((Cell(_STAGES.get(key, key)), Cell(seconds_text(value))) for key, value in metrics["seconds"].items())
    total = seconds_text(sum(metrics["seconds"].values()))
    return Table("Time", ("Stage", "Took"), (*rows, (Cell("all"), Cell(total))))


def verdict(metrics: Metrics) -> list[str]:
    """What it comes to, in sentences."""
    best, student, ensemble = (
        best_teacher(metrics),
        metrics["student"]["pooled_dice"],
        metrics["ensemble"]["pooled_dice"],
    )
    said = []
    if best and student and student["n"]:
        said.append(
            f"On the pooled test images the student has Dice {student['mean']:.1f}, {against(student['mean'], best)} "
            f"the best single teacher ({best.name}, {best.mean:.1f})."
        )
    if best and ensemble and ensemble["n"]:
        said.append(
            f"The ensemble, all teachers together, has {ensemble['mean']:.1f}, {against(ensemble['mean'], best)} "
            "that teacher."
        )
    at_home = {
        "At home, the student": [entry["student"] for entry in metrics["sites"].values()],
        "Fine-tuned with a site's own labels, it": [entry["fine_tuned"] for entry in metrics["sites"].values()],
    }
    teachers = [entry["teacher"] for entry in metrics["sites"].values()]
    for what, models in at_home.items():
        pairs = [
            (teacher["local_dice"], model["local_dice"])
            for teacher, model in zip(teachers, models, strict=True)
            if model
        ]
        if ahead := at_least_as_good(pairs):
            said.append(f"{what} equals or beats the site's own teacher at {ahead}.")
    said += [
        f"{site}'s soft masks are unlike all others' (agreement {entry['agreement']['mean']:.0f} %): look at it before the "
        "student is used."
        for site, entry in metrics["sites"].items()
        if entry["agreement"] and entry["agreement"]["stands_apart"]
    ]
    return said


def console_table(metrics: Metrics) -> Group:
    """All tables for a terminal, readable at 100 columns.

    Parameters
    ----------
    metrics
        What ``metrics.json`` holds.
    """
    dice = dice_table(metrics)
    parts: list[Table | Text] = [Text(""), dice, *in_small(dice.notes), Text("")]
    parts += [Text(sentence) for sentence in verdict(metrics)]
    if by_label := label_table(metrics):
        parts += [Text(""), by_label, *in_small(by_label.notes)]
    if fused := fusion_table(metrics):
        parts += [Text(""), fused, *in_small(fused.notes)]
    if agreed := agreement_table(metrics):
        parts += [Text(""), agreed, *in_small(agreed.notes)]
    parts += [Text(""), traffic_table(metrics)]
    images = images_table(metrics)
    parts += [Text(""), images]
    if (collections := collections_table(metrics)) is not None:
        parts += [Text(""), collections]
    parts += [Text(""), seconds_table(metrics)]
    if metrics["images"]["kept"] is None:
        parts.append(Text("This study is not finished: no image was selected yet."))
    parts += _events(metrics["events"])
    return Group(*parts)


def _events(events: Iterable[Mapping[str, str]]) -> list[Table | Text]:
    told = list(dict.fromkeys(f"{event['site'] or 'server'}, {event['stage']}: {event['text']}" for event in events))
    if not told:
        return []
    more = [Text(f"and {len(told) - 8} more; see the report", style="dim")] if len(told) > 8 else []
    return [Text(""), Text("Worth knowing", style="bold"), *(Text(plain(line, 400)) for line in told[:8]), *more]


def in_small(notes: Iterable[str]) -> list[Text]:
    """Notes below a table, as a terminal shows them."""
    return [Text(note, style="dim") for note in notes]
