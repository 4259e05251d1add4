"""DDTI: thyroid ultrasound (Pedraza et al., Proc. SPIE 9287:92870W, 2015), in both layouts it is found in.

As published, ``CASE_1.jpg``, ``CASE_2.jpg``, ... with ``CASE.xml``, whose marks hold an image's number and outlines as JSON;
or as pictures of one nodule, ``image/10.PNG`` with ``mask/10.PNG``.
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import found, refuse_missing
from consilium.common.errors import DataError
from consilium.common.images import image_files, is_shown, natural, open_image, union

Outline = tuple[tuple[float, float], ...]

_POINTS: Final = re.compile(r'"points"\s*:\s*(\[[^\]]*\])')
_LEAST_POINTS: Final = 3
_FARTHEST: Final = 100_000.0  # pixels; beyond it a coordinate is nonsense, and no drawing library means it either


def cases(folder: Path) -> list[Case]:
    """List the images, in natural order.

    Parameters
    ----------
    folder
        Holds the XML files and images as published, or ``image/`` and ``mask/``.

    Returns
    -------
    As published: grouped by case, ``kind`` is the TI-RADS score, and an image nobody outlined a nodule in has no mask.
    From ``image/`` and ``mask/``: all have masks, and neither group nor kind is known.

    Raises
    ------
    DataError
        If it is neither layout, a mask is missing, or an XML file is damaged.
    """
    if (folder / "image").is_dir() and (folder / "mask").is_dir():
        return _from_masks(folder)
    return _from_outlines(folder)


def _from_masks(folder: Path) -> list[Case]:
    files = image_files(folder / "image")
    masks = {path.stem: path for path in image_files(folder / "mask")}
    bare = [path.name for path in files if path.stem not in masks]
    refuse_missing(folder, "every image has a mask of its name under mask/", bare, len(files))
    return [Case(str(path), partial(open_image, path), partial(union, [masks[path.stem]])) for path in files]


def _from_outlines(folder: Path) -> list[Case]:
    pictures = [path for path in folder.glob("*_*.jpg") if is_shown(path)]
    tables = [path for path in folder.glob("*.xml") if is_shown(path)]
    if not pictures or not tables:
        raise DataError(
            f"{folder}: DDTI is CASE.xml and CASE_1.jpg as published, or image/ and mask/; found {found(folder)}"
        )
    outlines: dict[str, list[Outline]] = {}
    scores: dict[str, str] = {}
    for table in tables:
        record = _parse(table)
        scores[table.stem] = record.score
        for number, text in record.marks:
            outlines.setdefault(f"{table.stem}_{number}", []).extend(_outlines(text, table))
    listed = []
    for path in sorted(pictures, key=lambda path: natural(path.name)):
        case = path.stem.partition("_")[0]
        drawn = outlines.get(path.stem)
        listed.append(
            Case(
                source=str(path),
                load_image=partial(open_image, path),
                load_mask=partial(_fill, path, drawn) if drawn else None,
                group=case,
                kind=scores.get(case, ""),
            )
        )
    return listed


class _Record:
    """What is taken of an XML file: the score, and image number and outlines of every mark. Age and sex are not."""

    def __init__(self) -> None:
        self.score = ""
        self.marks: list[tuple[str, str]] = []
        self._mark: dict[str, str] = {}
        self._text: list[str] = []

    def start(self, name: str, _: object) -> None:
        """Note that an element begins."""
        self._text.clear()
        if name == "mark":
            self._mark = {}

    def text(self, text: str) -> None:
        """Keep a piece of an element's text."""
        self._text.append(text)

    def end(self, name: str) -> None:
        """Take what an element held."""
        text = "".join(self._text).strip()
        self._text.clear()
        if name == "tirads":
            self.score = text
        elif name in ("image", "svg"):
            self._mark[name] = text
        elif name == "mark" and self._mark.get("image"):
            self.marks.append((self._mark["image"], self._mark.get("svg", "")))


def _parse(path: Path) -> _Record:
    """Read an XML file; one that declares a document type, and with it entities, is refused."""
    record = _Record()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = record.start, record.end
    parser.CharacterDataHandler = record.text

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: XML of DDTI declares no document type; this file does, and is not read")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, OSError) as error:
        raise DataError(f"{path}: cannot be read as XML ({error}); repair it or take it out") from None
    return record


def _outlines(text: str, path: Path) -> list[Outline]:
    """Read a mark's outlines. Two published files break off within the JSON, behind the last outline: so these are sought."""
    arrays = _POINTS.findall(text)
    try:
        outlines = [tuple((float(point["x"]), float(point["y"])) for point in json.loads(array)) for array in arrays]
    except (ValueError, TypeError, KeyError):
        outlines = []
    whole = len(outlines) == text.count('"points"')
    if not whole or not all(abs(value) < _FARTHEST for line in outlines for point in line for value in point):
        raise DataError(f"{path}: an outline must be a JSON list of points with x and y in pixels; got {text[:60]!r}")
    return [line for line in outlines if len(line) >= _LEAST_POINTS]


def _fill(path: Path, outlines: Sequence[Outline]) -> npt.NDArray[np.bool_]:
    """Draw outlines, and what is within, as a mask of the size of the image: bool (H, W)."""
    mask = Image.new("1", open_image(path).size)
    draw = ImageDraw.Draw(mask)
    for line in outlines:
        draw.polygon(line, fill=1, outline=1)
    return np.asarray(mask, np.bool_)
