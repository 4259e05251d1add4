"""A teacher from elsewhere behind the geometry and the meaning that ``[teacher]`` gives it.

What differs between formats is one function, `Ask`: numbers in, numbers out. Everything around it is the same for all of
them and lies here: channels, size, normalisation on the way in; which channels, what they mean, and the grid on the way out.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from consilium.clients.teachers import geometry
from consilium.clients.teachers.settings import ForeignSettings, Normalisation, Orientation, TensorSettings
from consilium.common.errors import DataError

Numbers = npt.NDArray[Any]
Ask = Callable[[Numbers], Numbers]
"""From (n, C, h, w), float32 or for kinds that take pixels uint8, to (n, K, h', w') or (n, h', w')."""

ScalarT = TypeVar("ScalarT", bound=np.generic)

_SLACK: Final = 1e-5  # what rounding in a network's last step may add to a probability


class FittedTeacher:
    """A `Teacher` made of a model's bare function and the settings that say how to use it.

    Parameters
    ----------
    ask
        The model.
    settings
        What the site says of it.
    labels
        How many masks of an image it gives.
    """

    def __init__(self, ask: Ask, settings: ForeignSettings, labels: int) -> None:
        self.settings: Final = settings
        self._ask: Final = ask
        self._labels: Final = labels
        self.card: Final[Mapping[str, object]] = {
            "format": getattr(settings, "kind", "callable"),
            "network": {"name": getattr(settings, "kind", "callable")},
            "size": list(settings.size) if settings.size else "native",
            "in_channels": settings.channels,
            "classes": labels,
            "output": settings.output,
        }

    def raw(self, images: npt.NDArray[np.uint8]) -> Numbers:
        """Ask the model: what it answers, as (n, channels, h, w), whatever that means.

        Raises
        ------
        DataError
            If the answer is no array of that form for as many images.
        """
        size = self.settings.size or (images.shape[2], images.shape[3])
        fitted = geometry.to_size(geometry.to_channels(images, self.settings.channels), size)
        batch = self.settings.batch
        return np.concatenate([self._part(fitted[at : at + batch]) for at in range(0, len(fitted), batch)])

    def _part(self, images: npt.NDArray[np.uint8]) -> Numbers:
        settings = self.settings
        if not isinstance(settings, TensorSettings):
            return planes(self._ask(images), len(images))
        numbers = normalise(images, settings.normalisation, settings.mean, settings.std)
        if settings.channels_last:
            numbers = np.ascontiguousarray(np.moveaxis(numbers, 1, -1))
        answer = self._ask(numbers)
        if settings.channels_last and answer.ndim == 4:
            answer = np.moveaxis(answer, -1, 1)
        return planes(answer, len(images))

    def predict(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Segment images; see `Teacher`."""
        if not len(images):
            return np.empty((0, self._labels, *images.shape[2:]), np.float32)
        return self.settle(self.raw(images), (images.shape[2], images.shape[3]))

    def settle(self, raw: Numbers, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Make soft masks of what `raw` gave: float32 (n, labels, *shape), in [0, 1]."""
        return self._lay(read(raw, self.settings, self._labels), shape)

    def settle_all(self, raw: Numbers, shape: tuple[int, int], most: int) -> npt.NDArray[np.float32]:
        """Make soft masks of every channel or class, the first ``most`` of them, whoever's they are."""
        if self.settings.output == "classes":
            count = min(most, int(raw.max()) + 1)
            return self._lay(_classes(raw, tuple(range(count))), shape)
        return self._lay(activate(raw, self.settings)[:, :most], shape)

    def _lay(self, masks: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        masks = 1 - masks if self.settings.output_inverted else masks
        return geometry.to_grid(np.ascontiguousarray(upright(masks, self.settings.output_orientation)), shape)

    def changed(self, **changes: object) -> "FittedTeacher":
        """Give the same model under other settings."""
        return FittedTeacher(self._ask, self.settings.model_copy(update=changes), self._labels)


def planes(answer: Numbers, count: int) -> Numbers:
    """Bring an answer for ``count`` images to the form (n, channels, h, w), or say what it is instead."""
    shaped = answer[:, None] if answer.ndim == 3 else answer
    if shaped.ndim != 4 or len(shaped) != count or 0 in shaped.shape or not np.issubdtype(shaped.dtype, np.number):
        if answer.dtype == np.bool_ and shaped.ndim == 4 and len(shaped) == count:
            return np.asarray(shaped, np.uint8)
        raise DataError(
            f"a teacher answers {count} image{'s' * (count != 1)} with numbers of the form ({count}, channels, height, width) or "
            f"({count}, height, width); this one gave {answer.dtype} {answer.shape}"
        )
    return shaped


def upright(masks: npt.NDArray[ScalarT], orientation: Orientation) -> npt.NDArray[ScalarT]:
    """Lay masks (..., H, W) upright that lie otherwise.

    Turned by 90 degrees means counter-clockwise: such masks are turned clockwise.
    """
    if orientation == "transposed":
        return masks.swapaxes(-1, -2)
    if orientation == "flipped-up-down":
        return masks[..., ::-1, :]
    if orientation == "flipped-left-right":
        return masks[..., ::-1]
    if orientation == "turned-90":
        return masks.swapaxes(-1, -2)[..., ::-1]
    if orientation == "turned-180":
        return masks[..., ::-1, ::-1]
    if orientation == "turned-270":
        return masks.swapaxes(-1, -2)[..., ::-1, :]
    if orientation == "anti-transposed":
        return masks[..., ::-1, ::-1].swapaxes(-1, -2)
    return masks


def normalise(
    images: npt.NDArray[np.uint8], rule: Normalisation, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
) -> npt.NDArray[np.float32]:
    """Make a network's input of pixels.

    Parameters
    ----------
    images
        uint8 (n, C, H, W).
    rule
        ``unit``: to [0, 1]; ``raw``: 0 to 255; ``zscore``: mean 0, deviation 1; ``min-max``: to [0, 1] by least and greatest
        value; ``mean-std``: ``(unit - mean) / std``. The middle two take each channel of each image by itself, and
        make 0 of a constant one.
    mean, std
        For ``mean-std``: one value, or one a channel.

    Returns
    -------
    float32 of the same shape.
    """
    pixels = images.astype(np.float32)
    if rule == "raw":
        return pixels
    if rule == "zscore":
        spread = pixels.std(axis=(2, 3), keepdims=True)
        return np.asarray((pixels - pixels.mean(axis=(2, 3), keepdims=True)) / np.where(spread, spread, 1), np.float32)
    if rule == "min-max":
        low, high = pixels.min(axis=(2, 3), keepdims=True), pixels.max(axis=(2, 3), keepdims=True)
        return np.asarray((pixels - low) / np.where(high > low, high - low, 1), np.float32)
    unit = pixels / np.float32(255)
    if rule == "mean-std":
        shift, scale = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (mean, std))
        return np.asarray((unit - shift) / scale, np.float32)
    return unit


def read(raw: Numbers, settings: ForeignSettings, labels: int) -> npt.NDArray[np.float32]:
    """Make probabilities of a model's answer, one channel a label.

    Parameters
    ----------
    raw
        (n, channels, h, w), see `planes`.
    settings
        What the numbers mean, and which channel is which label's.
    labels
        How many.

    Returns
    -------
    float32 (n, labels, h, w), in [0, 1].

    Raises
    ------
    DataError
        If the numbers cannot mean that.
    """
    chosen = settings.output_channels
    if settings.output == "classes":
        return _classes(raw, chosen or tuple(range(1, labels + 1)))
    if not chosen and raw.shape[1] != labels:
        raise DataError(
            f"the teacher gives {raw.shape[1]} channels for {labels} label{'s' * (labels != 1)}; say in "
            "teacher.output-channels which one is whose, counted from 0"
        )
    if chosen and max(chosen) >= raw.shape[1]:
        raise DataError(f"teacher.output-channels names {max(chosen)}; there are 0 to {raw.shape[1] - 1}")
    every = activate(raw, settings)
    return every[:, list(chosen)] if chosen else every


def activate(raw: Numbers, settings: ForeignSettings) -> npt.NDArray[np.float32]:
    """Make probabilities of all channels of an answer that is no map of classes; see `read`."""
    low, high = float(raw.min()), float(raw.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN comes through min and max
        raise DataError("the teacher gives finite numbers; this one gave NaN or infinity")
    if settings.output == "logits":
        return sigmoid(raw)
    if settings.output == "softmax-logits":
        if raw.shape[1] < 2:
            raise DataError(
                'softmax over channels needs at least two of them; the teacher gives one: is teacher.output = "logits"?'
            )
        return _softmax(raw)
    if settings.output == "binary":
        if not np.isin(np.unique(raw), (0, 1)).all():
            raise DataError(
                f'teacher.output = "binary" means 0 and 1 only; the teacher gives values from {low:.4g} to {high:.4g}'
            )
        return np.asarray(raw, np.float32)
    if low < -_SLACK or high > 1 + _SLACK:
        raise DataError(
            f'teacher.output = "probabilities" means values in [0, 1]; the teacher gives values from {low:.4g} to {high:.4g}. '
            'If these are logits, set teacher.output = "logits", or "softmax-logits"'
        )
    return np.clip(np.asarray(raw, np.float32), 0, 1)


def sigmoid(logits: Numbers) -> npt.NDArray[np.float32]:
    """Logistic function; does not overflow."""
    small = np.exp(-np.abs(np.asarray(logits, np.float32)))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _softmax(logits: Numbers) -> npt.NDArray[np.float32]:
    powers = np.exp(np.asarray(logits, np.float32) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def _classes(raw: Numbers, classes: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if raw.shape[1] != 1 or not np.array_equal(raw, np.rint(raw)):
        raise DataError(
            'teacher.output = "classes" means one whole number for each pixel; the teacher gives '
            + (f"{raw.shape[1]} channels" if raw.shape[1] != 1 else "numbers that are not whole")
        )
    return np.asarray(raw == np.array(classes).reshape(1, -1, 1, 1), np.float32)
