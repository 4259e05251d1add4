"""What the machine writes over an image: calipers and text."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.datasets.phantoms.anatomy import Body
from consilium.common.datasets.phantoms.hospitals import Scanner

# 3 x 5 dots a letter, rows from the top; enough for a side, a clock position and a distance.
_LETTERS: Final = {
    "R": "110101110101101", "L": "100100100100111", "T": "111010010010010", "B": "110101110101110",
    "1": "010110010010111", "2": "111001111100111", "3": "111001111001111", "5": "111100111001111",
    "7": "111001010010010", "9": "111101111001111", ":": "000010000010000", " ": "000000000000000",
}  # fmt: skip


def overlay(rng: np.random.Generator, scanner: Scanner, targets: Sequence[Body], size: int) -> npt.NDArray[np.uint8]:
    """What the machine writes over the image, 0 where nothing: ``(size, size)``, uint8."""
    drawn = np.zeros((size, size), np.uint8)
    has_calipers, has_text = rng.random() < scanner.caliper_share, rng.random() < scanner.text_share
    if has_calipers and targets:
        body = targets[int(rng.integers(len(targets)))]
        _draw_calipers(drawn, body, size)
    if has_text:
        words = ("RT 3:7", "LT 9:1", "LT 5", "RT 2", "B 12")
        _draw_text(drawn, words[int(rng.integers(len(words)))], rng.uniform(0.05, 0.6), rng.uniform(0.8, 0.92))
    return drawn


def _draw_calipers(overlay: npt.NDArray[np.uint8], body: Body, size: int) -> None:
    """Crosses at both ends of the two axes, with dotted lines between."""
    stretch = math.sqrt(body.aspect)
    cos, sin = math.cos(body.tilt), math.sin(body.tilt)
    arm, pen = max(1, round(0.015 * size)), max(1, round(size / 192))
    for along_x, along_y, reach in ((cos, sin, body.radius * stretch), (-sin, cos, body.radius / stretch)):
        dots = max(2, round(2 * reach / 0.028))
        for part in np.linspace(-1.0, 1.0, dots + 1):
            column = round((body.x + part * reach * along_x) * size)
            row = round((body.y + part * reach * along_y) * size)
            _dot(overlay, row, column, pen, 200)
            if abs(part) == 1.0:
                for step in range(-arm, arm + 1):
                    _dot(overlay, row + step, column, pen, 255)
                    _dot(overlay, row, column + step, pen, 255)


def _draw_text(overlay: npt.NDArray[np.uint8], text: str, x: float, y: float) -> None:
    size = len(overlay)
    pen = max(1, round(size / 96))
    for place, letter in enumerate(text):
        for dot, ink in enumerate(_LETTERS[letter]):
            if ink == "1":
                row, column = round(y * size) + pen * (dot // 3), round(x * size) + pen * (4 * place + dot % 3)
                _dot(overlay, row, column, pen, 235)


def _dot(overlay: npt.NDArray[np.uint8], row: int, column: int, pen: int, gray: int) -> None:
    overlay[max(row, 0) : max(row + pen, 0), max(column, 0) : max(column + pen, 0)] = gray
