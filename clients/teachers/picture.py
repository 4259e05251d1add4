"""Ten of a site's own images with the outlines of truth and teacher. It shows patients: it stays at the site."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from consilium.common.datasets.contact_sheet import draw_outline
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks

SHOWN: Final = 10
_COLUMNS: Final = 5
_TILE: Final = 320
_CAPTION: Final = 30
_GAP: Final = 12
_HEAD: Final = 84
_FINER: Final = 3
_BACK: Final = (17, 20, 24)
_INK: Final = (232, 235, 238)
_FAINT: Final = (150, 158, 166)
_TRUTH: Final = (255, 196, 46)
_TEACHER: Final = (74, 168, 255)


def choose(dice: npt.NDArray[np.float64]) -> list[int]:
    """Choose up to ten images: from the worst Dice to the best, evenly."""
    order = np.argsort(dice, kind="stable")
    return [int(order[i]) for i in np.unique(np.linspace(0, len(order) - 1, SHOWN).round().astype(int))]


def draw(
    images: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    masks: SoftMasks,
    captions: Sequence[str],
    title: str,
) -> Image.Image:
    """Draw images, uint8 (n, C, H, W), with outlines of truth (n, K, H, W), 0 or 1, and of soft masks of the same shape."""
    rows = -(-len(images) // _COLUMNS)
    width = _COLUMNS * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEAD + rows * (_TILE + _CAPTION + _GAP)), _BACK)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 10), title, _INK, ImageFont.load_default(26))
    pen.text((_GAP, 48), "truth", _TRUTH, ImageFont.load_default(20))
    pen.text((_GAP + 70, 48), "teacher, above one half", _TEACHER, ImageFont.load_default(20))
    for i, (image, real, mask, caption) in enumerate(zip(images, truth, masks, captions, strict=True)):
        x, y = _GAP + i % _COLUMNS * (_TILE + _GAP), _HEAD + i // _COLUMNS * (_TILE + _CAPTION + _GAP)
        sheet.paste(_tile(image, real > 0, mask >= TARGET_LEVEL), (x, y))
        pen.text((x, y + _TILE + 5), caption, _FAINT, ImageFont.load_default(16))
    return sheet


def _tile(image: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> Image.Image:
    flat = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0]))
    large = flat.convert("RGB").resize((_TILE * _FINER, _TILE * _FINER), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(large)
    for plane, colour in [*((one, _TRUTH) for one in truth), *((one, _TEACHER) for one in mask)]:
        draw_outline(pen, plane, large.size, colour, _FINER)
    return large.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
