"""The evaluation as tables: what ``metrics.json`` holds below ``evaluation``, worded and rounded."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from consilium.common.evaluation.summary import SIZES
from consilium.server.report.table import Cell, Table
from consilium.server.report.tables import NONE, plain

Summary = Mapping[str, Any]

READING: Final = (
    "In percent, but for what is in pixels. In square brackets: 95 % bootstrap interval of the mean, resampling whole groups of "
    "images that belong together. Bold: the best of its column."
)
AREA: Final = (
    "Area: drawn too large (+) or too small (-), mean. Found: the mask touches the lesion, or has IoU above 0.5."
)
DISTANCES: Final = (
    "HD95, ASSD: distance between the outlines, 95th percentile and mean. NSD: part of both outlines that is within 2 or 5 "
    "pixels of the other. Pixels, not millimetres. Missed: nothing was drawn; this counts with the image's diagonal as "
    "distance, and with 0 in all else, and is never left out."
)
STRETCHED: Final = "At the study's size images are stretched to a square, and distances with them."
SURENESS: Final = (
    "Calibration error (ECE) and Brier score: from 0, which is perfect, to 1; over all pixels of all images, most of which "
    "are sure background."
)
TEST: Final = (
    "Differences of Dice in points, and on how many images the student is better. p: Wilcoxon's signed-rank test, paired and "
    "two-sided; Holm: corrected for as many tests as there are rows."
)
WITHOUT_LESION: Final = (
    "No Dice and no outline can be told of an image without a lesion; the table of Dice counts it 100 where nothing was "
    "drawn, else 0."
)


def evaluation_tables(summary: Summary) -> list[Table]:
    """All tables of an evaluation, grid by grid and label by label."""
    tables: list[Table] = []
    for block in summary["grids"]:
        tables += [_overlap(block), _outline(block), _strata(block)]
        tables += [_comparisons(block)] if block["comparisons"] else []
        tables += [_without_lesion(block)] if block["images"] > block["lesion_images"] else []
    if summary["grids"]:
        tables[-1] = _with_note(tables[-1], _grid_note(summary))
    return tables


def evaluation_verdict(summary: Summary) -> list[str]:
    """What it comes to, in sentences."""
    said = []
    for block in summary["grids"]:
        rival = best_teacher(block)
        student = next((one for one in block["predictors"] if one["kind"] == "student"), None)
        if student is None or rival is None or student["measures"]["dice"]["mean"] is None:
            continue
        test = next(one for one in block["comparisons"] if one["teacher"] == rival["name"])
        where = f"{_of_label(summary, block)}{_grid_words(block)}"
        said.append(
            f"{where[0].upper()}{where[1:]}, the student's Dice is {_interval(student['measures']['dice'])}. Against the best "
            f"single teacher ({rival['name']}) it is better on {test['wins']} and worse on {test['losses']} of "
            f"{test['images']} images; median difference {test['median_difference']:+.1f} points, {_p_text(test['p_holm'])}."
        )
        if student["worst_site"]:
            worst = next(one for one in student["sites"] if one["site"] == student["worst_site"])
            said.append(f"Its worst site is {worst['site']}, with Dice {worst['mean']:.1f} on {worst['n']} lesions.")
    return said


def best_teacher(block: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The teacher with the highest mean Dice of a grid and label."""
    teachers = [one for one in block["predictors"] if one["kind"] == "teacher" and one["measures"]["dice"]["n"]]
    return max(teachers, key=lambda one: one["measures"]["dice"]["mean"], default=None)


def console_evaluation(summary: Summary) -> Group:
    """All tables for a terminal, readable at 100 columns."""
    tables = evaluation_tables(summary)
    parts: list[Any] = []
    for table in tables:
        parts += [Text(""), table]
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    said = evaluation_verdict(summary)
    return Group(*parts, *(Text(note, style="dim") for note in notes), *([Text("")] if said else []), *map(Text, said))


def _overlap(block: Mapping[str, Any]) -> Table:
    columns = ("", "Dice [95 %]", "IoU", "Precision", "Recall", "Area", "Found", "Found, IoU > 0.5")
    names = ("dice", "iou", "precision", "recall", "area_error", "found", "found_iou50")
    rows = tuple((Cell(_name(one)), *_cells(block, one, names, intervals=("dice",))) for one in block["predictors"])
    return Table(f"Overlap, {_title(block)}", columns, rows, notes=(READING, AREA))


def _outline(block: Mapping[str, Any]) -> Table:
    columns = ("", "HD95, px [95 %]", "ASSD, px", "NSD, 2 px [95 %]", "NSD, 5 px", "Missed")
    names, wide = ("hd95_px", "assd_px", "nsd_2px", "nsd_5px"), ("hd95_px", "nsd_2px")
    rows = tuple(
        (
            Cell(_name(one)),
            *_cells(block, one, names, intervals=wide),
            Cell(f"{one['missed']} of {block['lesion_images']}"),
        )
        for one in block["predictors"]
    )
    notes = (DISTANCES, STRETCHED) if block["grid"] == "canonical" else (DISTANCES,)
    return Table(f"Outline, {_title(block)}", columns, rows, notes=notes)


def _cells(
    block: Mapping[str, Any], one: Mapping[str, Any], names: tuple[str, ...], intervals: tuple[str, ...]
) -> list[Cell]:
    held = one["measures"]
    return [
        Cell(
            _interval(held[name]) if name in intervals else _mean(held[name], signed=name == "area_error"),
            name != "area_error" and held[name]["n"] > 0 and _rounded(held[name]) == _best(block, name),
        )
        for name in names
    ]


def _strata(block: Mapping[str, Any]) -> Table:
    sites = any(one["worst_site"] for one in block["predictors"])
    columns = ("", *(("Worst site",) if sites else ()), *(f"Dice, {name}" for name in SIZES), "ECE", "Brier")
    rows = []
    for one in block["predictors"]:
        worst = next((site for site in one["sites"] if site["site"] == one["worst_site"]), None)
        cells = [Cell(f"{worst['mean']:.1f} {plain(worst['site'], 16)}" if worst else NONE)] if sites else []
        cells += [Cell(_mean(third)) for third in one["sizes"]]
        cells += [Cell(f"{one['calibration'][name]:.4f}") for name in ("ece", "brier")]
        rows.append((Cell(_name(one)), *cells))
    return Table(
        f"Where it fails, and how sure it is, {_title(block)}", columns, tuple(rows), notes=(_sizes(block), SURENESS)
    )


def _sizes(block: Mapping[str, Any]) -> str:
    told = (
        f"{one['third']} {one['from']:,} to {one['to']:,} px ({one['images']:,})"
        for one in block["size_thirds_px"]
        if one["images"]
    )
    return f"Lesions by size {_grid_words(block)}, in thirds: {', '.join(told) or 'none'}."


def _comparisons(block: Mapping[str, Any]) -> Table:
    columns = (
        "Student less",
        "Median",
        "Mean [95 %]",
        "Better, same, worse",
        "p",
        "p, Holm",
    )
    rows = tuple(
        (
            Cell(plain(one["teacher"], 24)),
            Cell(_signed(one["median_difference"])),
            Cell(_interval(one["mean_difference"], signed=True)),
            Cell(f"{one['wins']} / {one['ties']} / {one['losses']}"),
            Cell(_p_text(one["p"]).removeprefix("p = ").removeprefix("p ")),
            Cell(_p_text(one["p_holm"]).removeprefix("p = ").removeprefix("p ")),
        )
        for one in block["comparisons"]
    )
    return Table(
        f"The student against each teacher, Dice image by image, {_title(block)}", columns, rows, notes=(TEST,)
    )


def _without_lesion(block: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            Cell(_name(one)),
            Cell(f"{one['without_lesion']['left_empty']} of {one['without_lesion']['images']}"),
            Cell(f"{100 * one['without_lesion']['left_empty'] / one['without_lesion']['images']:.1f}"),
            Cell(_mean(one["without_lesion"]["false_positive_px"])),
        )
        for one in block["predictors"]
    )
    columns = ("", "Rightly left empty", "Specificity, % of images", "Drawn by mistake, px an image")
    return Table(f"Images without a lesion, {_title(block)}", columns, rows, notes=(WITHOUT_LESION,))


def _grid_note(summary: Summary) -> str:
    grids = {block["grid"] for block in summary["grids"]}
    unmatched = summary["unmatched"]["predictions"]
    if "native" not in grids:
        return (
            "Measured at the study's size only, to which images are stretched; `consilium evaluate RUN TRUTH` adds each "
            "image's own size."
        )
    if "canonical" in grids and unmatched:
        return (
            f"Own size: {len(unmatched)} test images without a true mask there were left out of it: "
            f"{', '.join(plain(name) for name in unmatched[:12])}{', ...' if len(unmatched) > 12 else ''}."
        )
    return "Own size: soft masks were brought to the size of the true masks."


def _with_note(table: Table, note: str) -> Table:
    return Table(table.title, table.columns, table.rows, table.words, (*table.notes, note))


def _title(block: Mapping[str, Any]) -> str:
    lesions = (
        f"{block['lesion_images']:,} images with a lesion" if block["lesion_images"] != 1 else "1 image with a lesion"
    )
    label = f"label {block['label']}, " if block["label"] not in {"lesion", "mask"} else ""
    return f"{label}{_grid_words(block)}: {lesions}"


def _grid_words(block: Mapping[str, Any]) -> str:
    if block["grid"] == "native":
        return "at each image's own size"
    return f"at {block['size'][0]} x {block['size'][1]} pixels"


def _of_label(summary: Summary, block: Mapping[str, Any]) -> str:
    several = len({one["label"] for one in summary["grids"]}) > 1
    return f"for {block['label']}, " if several else ""


def _name(one: Mapping[str, Any]) -> str:
    return plain(one["name"], 24)


def _best(block: Mapping[str, Any], name: str) -> float | None:
    """The best mean as it is shown; None where there is none to compare with."""
    means = [_rounded(one["measures"][name]) for one in block["predictors"]]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return None
    return min(known) if name in {"hd95_px", "assd_px"} else max(known)


def _rounded(score: Mapping[str, Any]) -> float | None:
    return None if score["mean"] is None else round(score["mean"], 1)


def _mean(score: Mapping[str, Any], *, signed: bool = False) -> str:
    if score["mean"] is None:
        return NONE
    return _signed(score["mean"]) if signed else f"{score['mean']:,.1f}"


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.1f}"


def _interval(score: Mapping[str, Any], *, signed: bool = False) -> str:
    if score["mean"] is None:
        return NONE
    kind = "+.1f" if signed else ".1f"
    return f"{score['mean']:{kind}} [{score['low']:{kind}}, {score['high']:{kind}}]"


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
