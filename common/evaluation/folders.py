"""Masks of a folder, by the name of their image."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError
from consilium.common.evaluation.rows import Part, Sample, measure_all, to_csv
from consilium.common.evaluation.summary import summarise
from consilium.common.images import image_files

Truths = Mapping[str, Callable[[], npt.NDArray[np.bool_]]]
"""By the name of an image, what gives its true mask bool (H, W) at the image's own size. Nothing is read before it is asked."""

THRESHOLD: Final = 127
"""A pixel of a true mask is target above this level."""


def name_of(source: str) -> str:
    """The name by which an image and its masks find each other: its file's, without ending and without ``_mask...``."""
    return PurePosixPath(source.replace("\\", "/")).stem.partition("_mask")[0]


def mask_files(folder: Path) -> dict[str, list[Path]]:
    """Find the mask files of each image of a folder and its sub-folders.

    Where some files are called ``a_mask.png``, ``a_mask_1.png`` and so on, the others are taken for the images they belong to.

    Raises
    ------
    DataError
        If there is none, or two sub-folders hold masks of the same name: nobody could tell whose they are.
    """
    files = image_files(folder)
    masks = [path for path in files if "_mask" in path.stem] or files
    found: dict[str, list[Path]] = {}
    for path in masks:
        found.setdefault(name_of(path.name), []).append(path)
    for name, paths in found.items():
        if len({path.parent for path in paths}) > 1:
            raise DataError(
                f"{folder}: masks are matched by file name, and {name} is in more than one sub-folder "
                f"({paths[0].parent.name}, {paths[-1].parent.name}). Evaluate the sub-folders one by one."
            )
    return found


def truths_of_folder(folder: Path) -> dict[str, Callable[[], npt.NDArray[np.bool_]]]:
    """True masks of a folder: the union of an image's mask files, target above `THRESHOLD` in gray."""

    def load(paths: list[Path]) -> npt.NDArray[np.bool_]:
        masks = [read_gray(path) > THRESHOLD for path in paths]
        if len({mask.shape for mask in masks}) > 1:
            raise DataError(f"{paths[0]}: the masks of one image have one size; those of this image have not")
        return np.asarray(np.logical_or.reduce(masks), np.bool_)

    return {name: partial(load, paths) for name, paths in mask_files(folder).items()}


def truths_of_cases(cases: Iterable[Case]) -> dict[str, Callable[[], npt.NDArray[np.bool_]]]:
    """True masks of a data set's cases; those without a mask are left out."""
    found: dict[str, Callable[[], npt.NDArray[np.bool_]]] = {}
    for case in cases:
        if case.load_mask is None:
            continue
        if (name := name_of(case.source)) in found:
            raise DataError(f"{case.source}: masks are matched by file name, and {name} occurs more than once")
        found[name] = case.load_mask
    return found


@dataclass(frozen=True)
class Match:
    """Which names two folders have in common, in natural order, and which only one of them has."""

    both: tuple[str, ...]
    only_predictions: tuple[str, ...]
    only_truth: tuple[str, ...]


def match(predictions: Iterable[str], truths: Iterable[str]) -> Match:
    """Find what can be compared; `DataError` if nothing can."""
    first, second = dict.fromkeys(predictions), dict.fromkeys(truths)
    both = tuple(name for name in first if name in second)
    if not both:
        raise DataError(
            "predictions and true masks are matched by file name without its ending; none match. Predictions are called "
            f"{_some(first)}, true masks {_some(second)}. Rename one side."
        )
    return Match(
        both,
        tuple(name for name in first if name not in second),
        tuple(name for name in second if name not in first),
    )


@dataclass(frozen=True)
class FoldersEvaluated:
    """Two folders compared: the summary, the table as CSV, what did not match, and which images have no group in the table."""

    summary: dict[str, Any]
    table: str
    match: Match
    without_group: tuple[str, ...]


def evaluate(
    predictions: Path,
    truth: Path,
    groups: Mapping[str, str],
    watched: Callable[[tuple[str, ...]], Iterable[str]] = tuple,
    seed: int = 0,
) -> FoldersEvaluated:
    """Evaluate a folder of masks against a folder of true masks.

    Parameters
    ----------
    predictions, truth
        Folders of mask files, matched by file name; see `mask_files`. The predictions are soft or binary, one an image.
    groups
        The patient, or group of near duplicates, of images, by name; of those not in it, each is a group of its own.
    watched
        Gives the names back one by one, for a progress bar.
    seed
        Draws the intervals' resamples.

    Raises
    ------
    DataError
        If nothing matches, a file cannot be read, or masks look like 0 and 1; see `pairs`.
    """
    found, truths = mask_files(predictions), truths_of_folder(truth)
    matched = match(found, truths)
    part = Part("prediction", predictions.resolve().name, "native")
    measure_all(part, ("mask",), pairs(found, truths, watched(matched.both), groups))
    summary = summarise([part], np.random.default_rng(seed))
    summary["unmatched"] = {"predictions": list(matched.only_predictions), "truth": list(matched.only_truth)}
    without = tuple(name for name in matched.both if name not in groups) if groups else ()
    return FoldersEvaluated(summary, to_csv([part]), matched, without)


def pairs(
    predictions: Mapping[str, list[Path]], truths: Truths, names: Iterable[str], groups: Mapping[str, str]
) -> Iterator[tuple[Sample, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Read what is compared, one image at a time, each as one label.

    Raises
    ------
    DataError
        If an image has more than one prediction, a file cannot be read, or all masks of one side hold no other levels than
        0 and 1: such files look black, and would count as empty.
    """
    brightest: dict[str, int] = {"predictions": 0, "true masks": 0}
    for name in names:
        files = predictions[name]
        if len(files) > 1:
            raise DataError(f"{name}: an image has one prediction; got {', '.join(path.name for path in files)}")
        mask, truth = read_gray(files[0]), truths[name]()
        brightest["predictions"] = max(brightest["predictions"], int(mask.max()))
        brightest["true masks"] = max(brightest["true masks"], 2 * int(truth.any()))
        yield Sample(name, group=groups.get(name, "")), mask[None], truth[None]
    if brightest["predictions"] == 1:
        raise DataError("masks are 0 to 255 (soft) or 0 and 255; these predictions hold only 0 and 1. Multiply by 255.")
    if not brightest["true masks"]:
        raise DataError("none of the true masks has a pixel above 127. Masks are 0 and 255; are these 0 and 1?")


def read_groups(table: Path) -> dict[str, str]:
    """Read which patient or group of near duplicates each image is of.

    Parameters
    ----------
    table
        CSV with a header; the first column is the image's file name or path, the second one its group.
    """
    try:
        with table.open(newline="", encoding="utf-8") as rows:
            held = [row for row in csv.reader(rows) if row][1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table ({error})") from None
    if not held or any(len(row) < 2 for row in held):
        raise DataError(f"{table}: a table of groups is a CSV with a header and two columns, image and group")
    return {name_of(row[0]): row[1] for row in held}


def read_gray(path: Path) -> npt.NDArray[np.uint8]:
    """Read a mask file at its own size, in gray: uint8 (H, W). Every colour mode is welcome; alpha is ignored."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
                raise ValueError(f"mode {upright.mode}; a mask has 8 bits or one")
            return np.asarray(upright.convert("RGB").convert("L"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a mask ({error}); export it again, or take it out") from None


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
