"""A contact sheet: a data set on one picture, masks outlined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import contourpy
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError

MOST: Final = 48
_COLUMNS: Final = 8
_TILE: Final = (236, 178)
_CAPTION: Final = 36
_GAP: Final = 14
_MARGIN: Final = 36
_FINER: Final = 3  # outlines are drawn larger and then shrunk, so that they are smooth
_BACK: Final = (17, 20, 24)
_TILE_BACK: Final = (30, 34, 40)
_INK: Final = (232, 235, 238)
_FAINT: Final = (150, 158, 166)
_OUTLINE: Final = (255, 196, 46)
_FAULT: Final = (255, 110, 96)


@dataclass(frozen=True)
class _Row:
    title: str
    cases: tuple[Case, ...]


def choose(cases: Sequence[Case], most: int = MOST) -> dict[str, list[Case]]:
    """Choose images for the sheet, by kind: equally many of each kind as far as there are, evenly spaced in their order.

    Kinds come in order of appearance; the empty kind is one, too.
    """
    held: dict[str, list[Case]] = {}
    for case in cases:
        held.setdefault(case.kind, []).append(case)
    counts = dict.fromkeys(held, 0)
    left = min(most, len(cases))
    while left:
        for kind in [kind for kind, members in held.items() if counts[kind] < len(members)][:left]:
            counts[kind] += 1
            left -= 1
    return {
        kind: [members[i] for i in np.linspace(0, len(members) - 1, counts[kind]).round().astype(int)]
        for kind, members in held.items()
        if counts[kind]
    }


def draw(cases: Sequence[Case], title: str, subtitle: str = "", most: int = MOST) -> Image.Image:
    """Draw the sheet.

    Parameters
    ----------
    cases
        Of a data set; up to ``most`` are chosen, see `choose`.
    title, subtitle
        Above it.

    Returns
    -------
    An RGB picture, about 2000 pixels wide. A case that cannot be read gets a tile that says so.
    """
    chosen = choose(cases, most)
    totals = {kind: sum(case.kind == kind for case in cases) for kind in chosen}
    rows = _rows(chosen, totals)
    width = 2 * _MARGIN + _COLUMNS * _TILE[0] + (_COLUMNS - 1) * _GAP
    head = _MARGIN + 78
    row_height = _TILE[1] + _CAPTION + _GAP
    height = head + sum((44 if row.title else 0) + row_height for row in rows) + _MARGIN - _GAP
    sheet = Image.new("RGB", (width, height), _BACK)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 6), title, _INK, _font(34))
    pen.text((_MARGIN, _MARGIN + 38), subtitle, _FAINT, _font(18))
    y = head
    for row in rows:
        if row.title:
            pen.text((_MARGIN, y + 8), row.title, _INK, _font(21))
            y += 44
        for place, case in enumerate(row.cases):
            _tile(sheet, pen, case, _MARGIN + place * (_TILE[0] + _GAP), y)
        y += row_height
    return sheet


def _rows(chosen: Mapping[str, Sequence[Case]], totals: Mapping[str, int]) -> list[_Row]:
    """Lay tiles out: kinds under headings of their own where there are few, else one behind the other."""
    if len(chosen) <= 6:
        parts = [(f"{kind or 'no kind'}   {totals[kind]:,}", held) for kind, held in chosen.items()]
        if len(parts) == 1:
            parts = [("", parts[0][1])]
    else:
        parts = [("", [case for held in chosen.values() for case in held])]
    return [
        _Row(title if first == 0 else "", tuple(held[first : first + _COLUMNS]))
        for title, held in parts
        for first in range(0, len(held), _COLUMNS)
    ]


def _tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, case: Case, x: int, y: int) -> None:
    width, height = _TILE
    pen.rectangle((x, y, x + width - 1, y + height - 1), _TILE_BACK)
    name = PurePath(case.source).name
    try:
        picture = case.load_image()
        mask = case.load_mask() if case.load_mask is not None else None
        if mask is not None and mask.shape != (picture.height, picture.width):
            raise DataError(f"mask of {mask.shape[1]} x {mask.shape[0]}")
    except DataError:
        pen.text((x + 12, y + height // 2 - 10), "cannot be read", _FAULT, _font(16))
        pen.text((x, y + height + 5), _fitted(name, width, _font(14)), _FAULT, _font(14))
        return
    drawn = _outlined(picture, mask)
    sheet.paste(drawn, (x + (width - drawn.width) // 2, y + (height - drawn.height) // 2))
    pen.text((x, y + height + 4), _fitted(name, width, _font(14)), _INK, _font(14))
    told = f"{picture.width} x {picture.height}"
    if mask is not None:
        told += f"  ·  {100 * mask.mean():.1f} %" if mask.any() else "  ·  empty mask"
    pen.text((x, y + height + 20), told, _FAINT, _font(13))


def _outlined(picture: Image.Image, mask: npt.NDArray[np.bool_] | None) -> Image.Image:
    """Fit a picture into a tile, with the outline of its mask."""
    scale = min(_TILE[0] / picture.width, _TILE[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if mask is None or not mask.any():
        return small
    large = small.resize((size[0] * _FINER, size[1] * _FINER), Image.Resampling.BICUBIC)
    draw_outline(ImageDraw.Draw(large), mask, large.size, _OUTLINE, _FINER)
    return large.resize(size, Image.Resampling.LANCZOS)


def draw_outline(
    pen: ImageDraw.ImageDraw,
    mask: npt.NDArray[np.bool_],
    size: tuple[int, int],
    colour: tuple[int, int, int],
    finer: int,
) -> None:
    """Draw a mask's outline.

    Parameters
    ----------
    pen
        Of the picture.
    mask
        bool (H, W).
    size
        Width and height of the picture, which the mask fills.
    colour
        RGB.
    finer
        How many times larger the picture is than it will be shown.
    """
    width, height = size
    padded = np.pad(mask.astype(np.float32), 1)  # so that an outline closes at the picture's edge
    for line in contourpy.contour_generator(z=padded).lines(0.5):
        points = (np.asarray(line) - 0.5) * np.array((width / mask.shape[1], height / mask.shape[0]))
        points = points.clip(finer / 2, np.array((width, height)) - 1 - finer / 2)
        pen.line([(float(px), float(py)) for px, py in points], colour, round(1.7 * finer), "curve")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a name from its front, where names of one set are alike, to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("… " + text) > width:
        text = text[1:]
    return "… " + text
