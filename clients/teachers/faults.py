"""What is wrong with a teacher's settings, told from its answers to labelled images. Pure: arrays in, findings out.

Only mistakes of use are looked for: masks that lie wrongly, show the background, come from another channel, or numbers that
mean something else than is said. A mistake is named when the masks fit much better without it: in the mean Dice of the
images that show the target, by `GAIN`, in three images of four, and also by `GAIN` over a mask that is everywhere, which
any large target fits somewhat.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

import numpy as np
import numpy.typing as npt

from consilium.clients.teachers.fitted import Numbers, upright
from consilium.clients.teachers.settings import ForeignSettings, Orientation
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks

GAIN: Final = 0.15
ENOUGH: Final = 3
"""Images with the target, without which nothing is told from masks."""

_MOST_OF_THEM: Final = 0.75
_HOPELESS: Final = 0.1
_LEAST_SHIFT: Final = 0.02  # of the height and width
_SIGMOID_OF_ONE: Final = 0.7311

Masks = npt.NDArray[np.bool_]
Dice = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes
    ----------
    name
        Of a closed list, for cards and tests.
    seen, remedy
        What was seen, and what to change; for people.
    """

    name: str
    seen: str
    remedy: str


@dataclass(frozen=True)
class Values:
    """What kind of numbers a teacher answers with."""

    low: float
    high: float
    whole: bool
    channels: int

    def joined(self, other: "Values") -> "Values":
        """Those of two answers together."""
        return Values(
            min(self.low, other.low),
            max(self.high, other.high),
            self.whole and other.whole,
            max(self.channels, other.channels),
        )


def values_of(raw: Numbers) -> Values:
    """Look at the numbers of an answer (n, channels, h, w); NaN is left to who reads them."""
    return Values(float(raw.min()), float(raw.max()), bool(np.array_equal(raw, np.rint(raw))), raw.shape[1])


def in_values(values: Values, settings: ForeignSettings, labels: int) -> Finding | None:
    """Tell whether the numbers can mean what the settings say."""
    low, high, said = values.low, values.high, settings.output
    span = f"values from {low:.4g} to {high:.4g} in {values.channels} channel{'s' * (values.channels != 1)}"
    within = low >= -1e-5 and high <= 1 + 1e-5
    if said in ("logits", "softmax-logits") and within:
        kind = "binary" if values.whole else "probabilities"
        return Finding(
            "probabilities-as-logits",
            f"{span}, said to be logits: as such they would all be probabilities of 0.5 to {_SIGMOID_OF_ONE:.2f}",
            f'teacher.output = "{kind}"',
        )
    if said in ("probabilities", "binary") and not within:
        if values.whole and low >= 0 and high <= 255:
            remedy = (
                "these look like gray levels: let the model divide them by 255"
                if high > 64
                else 'these look like numbers of classes: teacher.output = "classes"'
            )
            return Finding("not-probabilities", f"{span}, said to be {said}", remedy)
        logits = "softmax-logits" if values.channels > labels else "logits"
        return Finding("logits-as-probabilities", f"{span}, said to be {said}", f'teacher.output = "{logits}"')
    if said == "binary" and not values.whole:
        return Finding("not-binary", f"{span}, not only 0 and 1", 'teacher.output = "probabilities"')
    if said == "classes" and (not values.whole or values.channels != 1):
        return Finding("not-classes", f"{span}, said to be numbers of classes", 'teacher.output = "softmax-logits"')
    return None


def in_masks(
    masks: SoftMasks,
    truth: npt.NDArray[np.uint8],
    every: SoftMasks | None,
    images: npt.NDArray[np.uint8],
    labels: Sequence[str],
    settings: ForeignSettings | None,
) -> list[Finding]:
    """Tell what is wrong with masks of labelled images.

    Parameters
    ----------
    masks, truth
        uint8 (n, labels, H, W): soft masks, and 0 or 1.
    every
        Soft masks (n, channels, H, W) of all channels or classes; None where there are no others.
    images
        uint8 (n, C, H, W), the images.
    labels
        Names.
    settings
        Of the teacher; None where it is one that was trained here.
    """
    chosen = list(settings.output_channels if settings else ()) or list(range(len(labels)))
    if settings and settings.output == "classes" and not settings.output_channels:
        chosen = list(range(1, len(labels) + 1))
    pool = (masks if every is None else every) >= TARGET_LEVEL
    found = [
        _in_label(masks[:, i] >= TARGET_LEVEL, truth[:, i] > 0, pool, label, chosen[i], settings)
        for i, label in enumerate(labels)
    ]
    constant = _constant(masks, truth, images)
    if constant is not None and all(one is None or one.channel is None for one in found):
        return [constant]
    right = [one.channel if one is not None and one.channel is not None else chosen[i] for i, one in enumerate(found)]
    return [
        one.finding if one.channel is None else replace(one.finding, remedy=_channel_remedy(right, settings))
        for one in found
        if one is not None
    ]


@dataclass(frozen=True)
class _Guess:
    dice: Dice
    finding: Finding
    channel: int | None = None


def _constant(masks: SoftMasks, truth: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8]) -> Finding | None:
    if np.count_nonzero(truth.any(axis=(1, 2, 3))) < ENOUGH:
        return None
    remedy = (
        "the model does not see the image: mend its weights, teacher.normalisation, or the command or code that asks it"
    )
    spread = masks.max(axis=(2, 3)).astype(int) - masks.min(axis=(2, 3))
    if spread.max() <= 1:
        return Finding("constant", f"every pixel of every mask has level {masks.min()} to {masks.max()} of 255", remedy)
    if (masks == masks[:1]).all() and not (images == images[:1]).all() and not (truth == truth[:1]).all():
        return Finding("constant", "all images get the same mask", remedy)
    return None


def _in_label(
    mask: Masks, truth: Masks, every: Masks, label: str, chosen: int, settings: ForeignSettings | None
) -> _Guess | None:
    """The best explanation of one label's masks, if one is much better than that they are right."""
    shown = truth.any(axis=(1, 2))
    if np.count_nonzero(shown) < ENOUGH:
        return None
    mask, truth, every = mask[shown], truth[shown], every[shown]
    base, floor = dice(mask, truth), dice(np.ones_like(truth), truth)
    guesses = []

    def guess(name: str, other: Masks, seen: str, remedy: str, channel: int | None = None) -> None:
        value = dice(other, truth)
        told = f"label {label}: Dice is {_percent(base)} as the masks come, {_percent(value)} {seen}"
        guesses.append(_Guess(value, Finding(name, told, remedy), channel))

    for channel in range(every.shape[1]):
        if channel != chosen:
            guess("channel", every[:, channel], f"in channel {channel} in place of {chosen}", "", channel)
    for orientation in _ORIENTATIONS:
        turned = upright(mask, orientation)
        if turned.shape == truth.shape:
            seen = f"if they are taken for {orientation}"
            guess("orientation", turned, seen, _orientation_remedy(orientation, settings))
    guess("inverted", ~mask, "if they are taken for the background's", _inverted_remedy(settings))
    down, right = _shift(mask, truth)
    height, width = truth.shape[1:]
    if abs(down) > _LEAST_SHIFT * height or abs(right) > _LEAST_SHIFT * width:
        guess(
            "shifted",
            np.roll(mask, (down, right), (1, 2)),
            f"if they are moved by {down} rows and {right} columns (of {height} x {width})",
            "the model crops or pads: set teacher.size to what it was trained at, or undo the crop where the model is asked",
        )
    good = [one for one in guesses if is_better(one.dice, base, floor)]
    return max(good, key=lambda one: float(one.dice.mean()), default=None)


_ON_DISK: Final = "the site's images and masks do not belong together as they lie on the disk: mend them and pack again"


def _orientation_remedy(found: Orientation, settings: ForeignSettings | None) -> str:
    if settings is None:
        return _ON_DISK
    corners = np.arange(4).reshape(2, 2)
    both = upright(upright(corners, settings.output_orientation), found)
    whole = next(one for one in get_args(Orientation) if np.array_equal(upright(corners, one), both))
    return f'teacher.output-orientation = "{whole}"'


def _inverted_remedy(settings: ForeignSettings | None) -> str:
    return f"teacher.output-inverted = {str(not settings.output_inverted).lower()}" if settings else _ON_DISK


def _channel_remedy(right: Sequence[int], settings: ForeignSettings | None) -> str:
    return f"teacher.output-channels = {list(right)}" if settings else "name the labels in the order of the masks"


def is_better(value: Dice, base: Dice, floor: Dice) -> bool:
    """Whether Dice of images is much better than what it was, and than that of masks that are everywhere."""
    gain = value - base
    steady = np.count_nonzero(gain > 0) >= _MOST_OF_THEM * len(gain)
    return bool(steady and gain.mean() >= GAIN and (value - floor).mean() >= GAIN)


def hopeless(mean_dice: float) -> Finding | None:
    """Name a teacher that fails without a known reason; ``mean_dice`` in [0, 1]."""
    if mean_dice >= _HOPELESS:
        return None
    return Finding(
        "hopeless",
        f"mean Dice is {100 * mean_dice:.1f} %, and none of the known mistakes explains it",
        "is it this teacher, and do the labelled images show what it segments? Look at the picture; see docs/teachers.md",
    )


def dice(masks: Masks, truth: Masks) -> Dice:
    """Dice, in [0, 1], of each of (n, H, W); every truth shows something."""
    overlap = np.count_nonzero(masks & truth, axis=(1, 2))
    both = np.count_nonzero(masks, axis=(1, 2)) + np.count_nonzero(truth, axis=(1, 2))
    return np.asarray(2 * overlap / both, np.float64)


def _shift(masks: Masks, truth: Masks) -> tuple[int, int]:
    """How many rows down and columns right all masks fit best together, by their cross-correlation."""
    total = np.zeros((truth.shape[1], truth.shape[2] // 2 + 1), np.complex128)
    for mask, real in zip(masks, truth, strict=True):
        total += np.conj(np.fft.rfft2(mask)) * np.fft.rfft2(real)
    peak = np.unravel_index(np.argmax(np.fft.irfft2(total, truth.shape[1:])), truth.shape[1:])
    down, right = (
        int(at) - side if at > side // 2 else int(at) for at, side in zip(peak, truth.shape[1:], strict=True)
    )
    return down, right


def _percent(values: Dice) -> str:
    return f"{100 * values.mean():.1f} %"


_ORIENTATIONS: Final[tuple[Orientation, ...]] = tuple(one for one in get_args(Orientation) if one != "upright")
