"""Pictures: images with masks drawn over them, for people who read images.

An image travels once a row; masks are outlines over it, in vectors, so that they stay crisp at any size. The solid line
is where a mask is 0.5; inside it is tinted, and a fainter tint reaches to where it is 0.1. Where a site gave no mask, nothing is
drawn over the image: a hatched tile says so, which no one can take for a mask without a target.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from contourpy import LineType, contour_generator
from markupsafe import Markup, escape
from PIL import Image

from consilium.common.errors import DataError
from consilium.common.metrics import dice
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks
from consilium.server.exclusion import Reason
from consilium.server.report.selection import Selection
from consilium.server.report.tables import REASONS
from consilium.server.study_run import StudyRun

ROWS: Final = 8
MAX_TEACHERS: Final = 6
EXAMPLES_A_REASON: Final = 4
IMAGE_PIXELS: Final = 256
OUTLINE_GRID: Final = 128
_UNIT: Final = 8
"""Outline coordinates are whole numbers, this many to a grid point."""
_HALF: Final = TARGET_LEVEL - 0.5
_FAINT: Final = 25.5
ABSTAINED: Final = "abstained"
NO_ANSWER: Final = "no answer"

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One cell: ``drawing`` is SVG, ``name`` whose mask it is, ``note`` what to know of it."""

    drawing: Markup
    name: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One image: the pixels that all its pictures share, why it was chosen, its pictures."""

    shared: Markup
    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Example:
    """One image of the exclusion's examples and its pseudo mask, both as data URIs."""

    image: str
    mask: str
    note: str


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of one decision."""

    title: str
    kept: bool
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Gallery:
    """Rows, whether there is ground truth or a student, how many teachers of all are drawn, and why masks are missing."""

    rows: tuple[Row, ...]
    labelled: bool
    student: bool
    teachers_shown: int
    teachers: int
    absences: tuple[str, ...]


def gallery(run: StudyRun, selection: Selection | None) -> Gallery:
    """Choose images and draw them with every mask there is.

    Test images where there are any: the spread of the ensemble's Dice, and where teachers disagree. Else examples of the
    transferal images.
    """
    collected = _collected(run)
    answers = run.ledger.answers()
    sites = [site for site in run.study.sites if site in answers]
    shown = sites[:MAX_TEACHERS]
    tests = _test_images(run, collected)
    if tests is not None:
        indices, truth = tests
        chosen = _spread(run, shown, indices, truth)
        rows = _rows(
            run, shown, [indices[i] for i, _ in chosen], [why for _, why in chosen], truth[[i for i, _ in chosen]]
        )
    else:
        near = run.watched.indices
        examples = near[np.isin(near, run.catalogue.indices("transferal")) & collected[near]]
        examples = (
            examples[np.unique(np.linspace(0, max(len(examples) - 1, 0), ROWS).round().astype(np.int64))]
            if len(examples)
            else examples
        )
        reasons = selection.reasons if selection else {}
        why = [_decision(reasons.get(int(i))) for i in examples]
        rows = _rows(run, shown, list(examples), why, None)
    student = any(picture.name == "student" for row in rows for picture in row.pictures)
    notes = {picture.note for row in rows for picture in row.pictures}
    absences = tuple(why for why in (ABSTAINED, NO_ANSWER) if why in notes)
    return Gallery(tuple(rows), tests is not None, student, len(shown), len(sites), absences)


def examples(run: StudyRun, selection: Selection) -> tuple[ExampleGroup, ...]:
    """Examples of each reason of exclusion and of kept images, as in figure 1 of the paper."""
    masks = run.pseudo_masks.read()
    groups = []
    reasons = (reason for reason in Reason if reason and reason != Reason.TOO_FEW_MASKS)
    for reason in (*reasons, Reason.KEPT):
        members = np.array(
            [place for place, i in enumerate(selection.indices) if selection.reasons[int(i)] == reason], np.int64
        )
        if not len(members):
            continue
        by = selection.target_pixels if reason == Reason.FEW_TARGET_PIXELS else selection.entropy_bits
        members = members[np.argsort(by[members], kind="stable")]
        members = members[np.unique(np.linspace(0, len(members) - 1, EXAMPLES_A_REASON).round().astype(np.int64))]
        made = tuple(
            Example(
                _data_uri(_shown(run.catalogue.pixels[selection.indices[place]])),
                _data_uri(_shown(masks[selection.indices[place]].max(axis=0)[None]), "PNG"),
                f"N = {selection.target_pixels[place]:,} px, E = {selection.entropy_bits[place]:.2f} bits",
            )
            for place in members
        )
        groups.append(ExampleGroup(_decision(reason), reason == Reason.KEPT, made))
    return tuple(groups)


def outline(mask: Plane, level: float) -> str:
    """The closed lines where a mask passes a level, as SVG path data on a grid of `_UNIT` to a pixel.

    Parameters
    ----------
    mask
        uint8 (H, W).
    level
        0 to 255. What is above it lies inside, by the even-odd rule.
    """
    if mask.max(initial=0) <= level:
        return ""
    padded = np.pad(mask.astype(np.float64), 1)
    lines = contour_generator(z=padded, line_type=LineType.Separate).lines(level)
    parts = []
    for line in lines:
        whole = np.rint((np.asarray(line) - 0.5) * _UNIT).astype(np.int64)
        steps = np.diff(whole, axis=0)
        steps = steps[np.any(steps != 0, axis=1)]
        if len(steps) > 2:
            parts.append(f"M{whole[0, 0]} {whole[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps[:-1]) + "z")
    return "".join(parts)


def _collected(run: StudyRun) -> npt.NDArray[np.bool_]:
    """Which images of the catalogue have a pseudo mask."""
    images, finished = np.arange(len(run.catalogue)), list(run.ledger.finished_chunks())
    collected = np.isin(images // run.study.collect.chunk, finished)
    return collected & ~np.isin(images, list(run.ledger.images_without_mask()))


def _test_images(run: StudyRun, collected: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], Plane] | None:
    if not (run.folder.test_set / "index.csv").is_file() or not len(run.catalogue.indices("test")):
        return None
    indices, truth = run.test_images()
    there = collected[indices]
    return (indices[there], truth[there]) if there.any() else None


def _spread(run: StudyRun, sites: Sequence[str], indices: npt.NDArray[np.int64], truth: Plane) -> list[tuple[int, str]]:
    """Positions among the test images, and why each is shown, best first."""
    ensemble = dice(run.pseudo_masks.read()[indices], truth)
    order = np.argsort(-ensemble, kind="stable")
    named = {0.0: "best", 0.25: "upper quarter", 0.5: "median", 0.75: "lower quarter", 1.0: "worst"}
    chosen: dict[int, str] = {}
    for share, name in named.items():
        chosen.setdefault(int(order[round(share * (len(order) - 1))]), f"Ensemble: {name}")
    if len(sites) > 1:
        place = np.searchsorted(run.watched.indices, indices)
        each = np.ma.stack([_teacher_dice(run, site, place, truth) for site in sites])
        for i in np.argsort(-each.std(axis=0).filled(0.0), kind="stable"):
            if len(chosen) >= ROWS:
                break
            chosen.setdefault(int(i), "Teachers disagree")
    return sorted(chosen.items(), key=lambda held: -ensemble[held[0]])


def _teacher_dice(run: StudyRun, site: str, place: npt.NDArray[np.intp], truth: Plane) -> "np.ma.MaskedArray[Any, Any]":
    """Dice of a teacher on watched images, of the labels it knows; masked where it gave no mask."""
    known = run.participants.known_labels(site)
    held = dice(run.watched.of(site)[place][:, known], truth[:, known])
    return np.ma.masked_array(held, [bool(why) for why in _absences(run, site, run.watched.indices[place])])


def _absences(run: StudyRun, site: str, indices: npt.NDArray[np.int64]) -> list[str]:
    """Why a site has no mask of images; empty where it has one."""
    gone, chunks = run.ledger.abstentions(site), run.ledger.answered_chunks(site)
    return [
        ABSTAINED if i in gone else "" if i // run.study.collect.chunk in chunks else NO_ANSWER
        for i in indices.tolist()
    ]


def _rows(
    run: StudyRun, sites: Sequence[str], indices: Sequence[np.int64], why: Sequence[str], truth: Plane | None
) -> list[Row]:
    chosen = np.array(indices, np.int64)
    if not len(chosen):
        return []
    place = np.searchsorted(run.watched.indices, chosen)
    named: list[tuple[str, str, SoftMasks]] = [(site, "teacher", run.watched.of(site)[place]) for site in sites]
    named.append(("ensemble", "ensemble", run.pseudo_masks.read()[chosen]))
    if (student := _student(run, chosen)) is not None:
        named.append(("student", "student", student))
    absences = {site: _absences(run, site, chosen) for site in sites}
    rows = []
    for row, index in enumerate(chosen):
        shared = _symbol(f"image-{index}", _shown(run.catalogue.pixels[index]))
        pictures = [Picture(_drawing(index, "image", "", None, None), "image")]
        real = None if truth is None else truth[row]
        for name, kind, masks in named:
            if kind == "teacher" and (why_not := absences[name][row]):
                pictures.append(Picture(_absent(f"no mask of {name}: {why_not}", why_not), name, why_not))
                continue
            known = run.participants.known_labels(name) if kind == "teacher" else slice(None)
            note = _note(masks[row][known, ...], None if real is None else real[known, ...])
            pictures.append(Picture(_drawing(index, f"mask of {name}, {note}", kind, masks[row], real), name, note))
        if real is not None:
            held = "lesion-free" if not real.any() else ""
            pictures.append(
                Picture(_drawing(index, "ground truth", "truth", real * np.uint8(255), None), "ground truth", held)
            )
        rows.append(Row(shared, why[row], tuple(pictures)))
    return rows


def _student(run: StudyRun, indices: npt.NDArray[np.int64]) -> SoftMasks | None:
    if not (run.folder.student / "card.json").is_file():
        return None
    try:
        return run.student_masks(indices)
    except DataError:  # being written, or damaged: the report shows what is there
        return None


def _note(mask: SoftMasks, truth: Plane | None) -> str:
    if truth is not None:
        return f"Dice {100 * float(dice(mask[None], truth[None])[0]):.1f}"
    return f"{100 * np.count_nonzero(mask.max(axis=0) >= TARGET_LEVEL) / mask[0].size:.1f} % of the image"


def _decision(reason: Reason | None) -> str:
    if reason is None:
        return "Shared image"
    return f"Left out: {REASONS[reason]}" if reason else "Kept"


def _drawing(index: np.int64, told: str, kind: str, masks: SoftMasks | None, truth: Plane | None) -> Markup:
    """One picture: shared pixels, tinted masks, dashed ground truth."""
    size = None if masks is None else _shrunk(masks[0], OUTLINE_GRID).shape[0]
    side = (size or OUTLINE_GRID) * _UNIT
    parts = [f'<use href="#image-{index}" width="{side}" height="{side}"/>']
    for label, mask in enumerate(() if masks is None else masks):
        small = _shrunk(mask, OUTLINE_GRID)
        colour = f"m {kind} l{label % 4}"
        parts.append(f'<path class="{colour} soft" d="{outline(small, _FAINT)}"/>' if kind != "truth" else "")
        parts.append(f'<path class="{colour} half" d="{outline(small, _HALF)}"/>')
    parts += [
        f'<path class="m real" d="{outline(_shrunk(real * np.uint8(255), OUTLINE_GRID), _HALF)}"/>'
        for real in (() if truth is None else truth)
    ]
    inside = "".join(part for part in parts if 'd=""' not in part)
    return Markup(f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="{escape(told)}">{inside}</svg>')  # noqa: S704 - made here


def _absent(told: str, word: str) -> Markup:
    """A tile in place of a picture: hatched, with the reason written on it."""
    side, step = OUTLINE_GRID, OUTLINE_GRID // 8
    lines = "".join(f"M{x} 0L{x - side} {side}" for x in range(step, 2 * side, step))
    return Markup(  # noqa: S704 - made here
        f'<svg class="absent" viewBox="0 0 {side} {side}" role="img" aria-label="{escape(told)}">'
        f'<rect class="ground" width="{side}" height="{side}"/><path class="hatch" d="{lines}"/>'
        f'<rect class="ground" y="{3 * side // 8}" width="{side}" height="{side // 4}"/>'
        f'<text x="{side // 2}" y="{side // 2}">{escape(word)}</text></svg>'
    )


def _symbol(name: str, image: Image.Image) -> Markup:
    inside = f'<image href="{_data_uri(image)}" width="128" height="128" preserveAspectRatio="none"/>'
    return Markup(f'<symbol id="{name}" viewBox="0 0 128 128">{inside}</symbol>')  # noqa: S704 - made here


def _shown(pixels: Plane) -> Image.Image:
    """Canonical pixels, uint8 (C, H, W), as a picture of a size to show."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.LANCZOS)
    return image


def _shrunk(mask: Plane, limit: int) -> Plane:
    if mask.shape[0] <= limit:
        return np.asarray(mask)
    return np.asarray(Image.fromarray(mask).resize((limit, limit), Image.Resampling.BOX))


def _data_uri(image: Image.Image, form: str = "JPEG") -> str:
    data = io.BytesIO()
    image.save(data, form, **({"quality": 88} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
