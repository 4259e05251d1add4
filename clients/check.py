"""Testing a site's teacher on the site's own labelled images, before it answers anybody else."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.clients import site_text
from consilium.clients.settings import SiteHome
from consilium.clients.teachers import Teacher, card, faults, picture
from consilium.clients.teachers.faults import Finding, Values
from consilium.clients.teachers.fitted import FittedTeacher
from consilium.clients.teachers.opening import clip, open_untempered
from consilium.clients.teachers.settings import NORMALISATIONS, TensorSettings
from consilium.clients.train import pack_data
from consilium.common import metrics, temperature
from consilium.common.datasets import labelled
from consilium.common.errors import DataError, StateError
from consilium.common.evaluation import calibration
from consilium.common.identity.key_files import private_folder
from consilium.common.settings import read_toml
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks, quantise
from consilium.common.validation import Validation, count_faults
from consilium.common.wire import Score

PICTURE: Final = "masks.png"
SCHEMA: Final = 1
_BATCH: Final = 16
_EXAMINED: Final = 64  # images in which mistakes are looked for
_TRIED: Final = 12  # of these, with every other normalisation
_CHANNELS: Final = 32
_WELL_ENOUGH: Final = 0.7  # Dice above which the normalisation is believed
_CLOSE: Final = 1.05  # temperatures of this ratio are the same
_CLEARLY: Final = 0.02  # Dice by which a normalisation must beat one named before it

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Calibrated:
    """The temperature under which the teacher's probabilities come true.

    Attributes
    ----------
    temperature, best
        As set, and as fitted on all images.
    ece, ece_best
        Expected calibration error, in [0, 1], at these. The latter is that of each half of the images at the temperature of
        the other half.
    """

    temperature: float
    best: float
    ece: float
    ece_best: float

    @property
    def is_set(self) -> bool:
        """Whether the fitted one is as good as set."""
        return 1 / _CLOSE < self.best / self.temperature < _CLOSE

    @property
    def advised(self) -> bool:
        """Whether the fitted one is another, and better on images it was not fitted on."""
        return self.ece_best < self.ece and not self.is_set


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes
    ----------
    images
        How many labelled images the teacher was asked about.
    dice, iou
        Over all images, percent; None where the answers could not be read at all.
    empty, alarms
        Masks of the truth that show no target, and in how many of these the teacher sees one.
    shown, misses
        Masks of the truth that show one, and how many of these the teacher's touches nowhere.
    calibrated
        None for binary teachers and where the images show nothing to learn from.
    findings
        What is wrong.
    """

    images: int
    dice: Score | None = None
    iou: Score | None = None
    empty: int = 0
    alarms: int = 0
    shown: int = 0
    misses: int = 0
    calibrated: Calibrated | None = None
    findings: tuple[Finding, ...] = ()


def check_teacher(home: SiteHome, on_images: Progress | None = None) -> Checked:
    """Run the teacher on the site's test images; leave card and picture in `SiteHome.checks`.

    Parameters
    ----------
    home
        The site. Images that are not packed yet are packed first.
    on_images
        Told how many images are done, of how many.

    Raises
    ------
    ConsiliumError
        If there is no teacher or no test image, or its answer has no form that could be explained.
    """
    pack_data(home)
    data = _test_images(home)
    teacher = open_untempered(home)
    told = _ask(home, teacher, data, on_images)
    if told.wrong is not None:
        checked = Checked(len(data), findings=(told.wrong,))
    elif told.failure is not None:
        raise told.failure
    else:
        checked = _judged(home, teacher, data, told)
    folder = private_folder(home.checks)
    (folder / PICTURE).unlink(missing_ok=True)
    if told.wrong is None:
        _draw(home, data, told.masks)
    card.keep(folder, _card(home, teacher, data, checked))
    return checked


def _test_images(home: SiteHome) -> labelled.Labelled:
    if not labelled.is_packed(home.test_set):
        raise StateError(
            f"{home.test_set} holds no packed test images: name the labelled images in data.folder; data.test-share of them "
            "are kept for tests"
        )
    data = labelled.open_packed(home.test_set)
    if not len(data):
        raise DataError(f"{home.test_set} holds no images: make data.test-share larger and pack again")
    count = len(home.settings.labels)
    if data.masks.shape[1] != count:
        raise DataError(f"{home.test_set} has masks of {data.masks.shape[1]} labels, the settings name {count}")
    return data


@dataclass(frozen=True)
class _Told:
    """The teacher's answers: levels (n, K, H, W), pixels by logit in each half of the images, and what went wrong."""

    masks: SoftMasks
    halves: npt.NDArray[np.int64]
    failure: DataError | None
    wrong: Finding | None


def _ask(home: SiteHome, teacher: Teacher, data: labelled.Labelled, on_images: Progress | None) -> _Told:
    """Ask about all images, or until an answer cannot be read."""
    halves = np.zeros((2, *temperature.NO_COUNTS.shape), np.int64)
    half_of = np.zeros(len(data), np.int64)
    half_of[labelled.split(data.groups, 0.5, seed=0)[1]] = 1
    masks: SoftMasks = np.zeros(data.masks.shape, np.uint8)
    values: Values | None = None
    failure: DataError | None = None
    for at in range(0, len(data), _BATCH):
        images = data.images[at : at + _BATCH]
        try:
            if isinstance(teacher, FittedTeacher):
                raw = teacher.raw(images)
                seen = faults.values_of(raw)
                values = seen if values is None else values.joined(seen)
                probabilities = teacher.settle(raw, (images.shape[2], images.shape[3]))
            else:
                probabilities = teacher.predict(images)
        except DataError as error:
            failure = error
            break
        masks[at : at + _BATCH] = quantise(probabilities)
        for i, half in enumerate(half_of[at : at + _BATCH]):
            halves[half] += temperature.count(probabilities[i], data.masks[at + i] > 0, clip(home))
        if on_images is not None:
            on_images(min(at + _BATCH, len(data)), len(data))
    wrong = None
    if isinstance(teacher, FittedTeacher) and values is not None:
        wrong = faults.in_values(values, teacher.settings, len(home.settings.labels))
    return _Told(masks, halves, failure, wrong)


def _judged(home: SiteHome, teacher: Teacher, data: labelled.Labelled, told: _Told) -> Checked:
    dice = metrics.dice(told.masks, data.masks)
    drawn, real = told.masks >= TARGET_LEVEL, np.asarray(data.masks) > 0
    overlap = np.count_nonzero(drawn & real, axis=(2, 3))
    union = np.count_nonzero(drawn | real, axis=(2, 3))
    iou = np.where(union == 0, 1.0, overlap / np.maximum(union, 1)).mean(axis=1)
    shown = real.any(axis=(2, 3))
    misses, alarms = count_faults(told.masks, data.masks)
    findings = _examined(home, teacher, data, told.masks)
    targeted = np.any(shown, axis=1)
    hopeless = faults.hopeless(float(dice[targeted].mean())) if targeted.any() else None
    if hopeless is not None and not findings:
        findings = [hopeless]
    return Checked(
        images=len(data),
        dice=metrics.score(dice),
        iou=metrics.score(iou),
        empty=int(np.count_nonzero(~shown)),
        alarms=alarms,
        shown=int(np.count_nonzero(shown)),
        misses=misses,
        calibrated=_calibrated(home, told.halves),
        findings=tuple(findings),
    )


def _examined(home: SiteHome, teacher: Teacher, data: labelled.Labelled, masks: SoftMasks) -> list[Finding]:
    """Look for mistakes in some images, evenly spaced, those that show something first."""
    shown = np.asarray(data.masks).any(axis=(1, 2, 3))
    order = np.flatnonzero(shown)
    if not len(order):
        return []
    some = order[np.unique(np.linspace(0, len(order) - 1, _EXAMINED).round().astype(int))]
    images, truth = data.images[some], data.masks[some]
    labels = home.settings.labels
    if not isinstance(teacher, FittedTeacher):
        return faults.in_masks(masks[some], truth, None, images, labels, None)
    shape = (images.shape[2], images.shape[3])
    every = np.concatenate(
        [
            quantise(teacher.settle_all(teacher.raw(images[at : at + _BATCH]), shape, _CHANNELS))
            for at in range(0, len(images), _BATCH)
        ]
    )
    found = faults.in_masks(masks[some], truth, every, images, labels, teacher.settings)
    if found and found[0].name != "constant":
        return found
    return _normalisation(teacher, images[:_TRIED], truth[:_TRIED]) or found


def _normalisation(
    teacher: FittedTeacher, images: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
) -> list[Finding]:
    """Try other normalisations where the masks fit badly."""
    settings, real = teacher.settings, truth[:, 0] > 0
    images, real = images[real.any(axis=(1, 2))], real[real.any(axis=(1, 2))]
    if not isinstance(settings, TensorSettings) or len(images) < faults.ENOUGH:
        return []

    def dice(model: FittedTeacher) -> npt.NDArray[np.float64]:
        return faults.dice(quantise(model.predict(images)[:, 0]) >= TARGET_LEVEL, real)

    base, floor = dice(teacher), faults.dice(np.ones_like(real), real)
    if base.mean() >= _WELL_ENOUGH:
        return []
    best: tuple[float, Finding] | None = None
    for rule in NORMALISATIONS:
        if rule in (settings.normalisation, "mean-std"):
            continue
        try:
            value = dice(teacher.changed(normalisation=rule))
        except DataError:  # a model that gives no number for such an input
            continue
        if faults.is_better(value, base, floor) and (best is None or value.mean() > best[0] + _CLEARLY):
            seen = f"Dice of {len(images)} images is {100 * base.mean():.1f} % with {settings.normalisation}, "
            seen += f"{100 * value.mean():.1f} % with {rule}"
            best = float(value.mean()), Finding("normalisation", seen, f'teacher.normalisation = "{rule}"')
    return [best[1]] if best else []


def _calibrated(home: SiteHome, halves: npt.NDArray[np.int64]) -> Calibrated | None:
    """Fit the temperature, and tell what it is worth on images it was not fitted on."""
    settings, whole = home.settings.teacher, halves.sum(axis=0)
    if settings.offers == "binary" or not whole.sum(axis=1).all():
        return None
    can_cross = halves.sum(axis=2).all()
    fitted = [temperature.fit(half) for half in halves] if can_cross else [temperature.fit(whole)] * 2
    crossed = temperature.levels(halves[0], fitted[1]) + temperature.levels(halves[1], fitted[0])
    return Calibrated(
        temperature=settings.temperature,
        best=round(temperature.fit(whole), 3),
        ece=calibration.ece(temperature.levels(whole, settings.temperature)),
        ece_best=calibration.ece(crossed),
    )


def _draw(home: SiteHome, data: labelled.Labelled, masks: SoftMasks) -> None:
    dice = metrics.dice(masks, data.masks)
    chosen = picture.choose(dice)
    sheet = picture.draw(
        data.images[chosen],
        data.masks[chosen],
        masks[chosen],
        [f"image {i}: Dice {100 * dice[i]:.1f} %" for i in chosen],
        f"{home.settings.name}: {len(chosen)} of {len(data)} test images, from the worst Dice to the best",
    )
    path = home.checks / PICTURE
    path.touch(0o600)
    sheet.save(path)


def _card(home: SiteHome, teacher: Teacher, data: labelled.Labelled, checked: Checked) -> dict[str, Any]:
    """The teacher card: nothing of a single image, no path."""
    held: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: metadata.version(name) for name in ("consilium", "torch", "onnxruntime", "numpy")},
        "kind": home.settings.teacher.kind,
        "teacher": dict(teacher.card),
        "labels": list(home.settings.labels),
        "images": checked.images,
        "image-size": list(data.images.shape[2:]),
        "findings": [finding.name for finding in checked.findings],
        "fingerprint": card.fingerprint(home),
    }
    if checked.dice is not None and checked.iou is not None:
        held |= {
            "dice-mean": round(checked.dice.mean, 4),
            "dice-std": round(checked.dice.std, 4),
            "iou-mean": round(checked.iou.mean, 4),
            "iou-std": round(checked.iou.std, 4),
            "false-alarms": {"without-target": checked.empty, "alarms": checked.alarms},
            "misses": {"with-target": checked.shown, "missed": checked.misses},
            "validation": Validation(
                dice=checked.dice.mean,
                n=checked.images,
                temperature=checked.calibrated.best if checked.calibrated else 1.0,
                misses=checked.misses,
                false_alarms=checked.alarms,
            ).to_card(),
        }
    if checked.calibrated is not None:
        held["calibration"] = {
            "temperature": checked.calibrated.temperature,
            "best-temperature": checked.calibrated.best,
            "ece": round(checked.calibrated.ece, 6),
            "ece-at-best": round(checked.calibrated.ece_best, 6),
        }
    return held


def write_temperature(path: Path, value: float) -> None:
    """Set ``teacher.temperature`` in a ``site.toml``, and leave everything else in it as it is, comments too.

    Raises
    ------
    SettingsError
        If that cannot be done in the text of the file; it is unchanged then.
    """
    teacher = read_toml(path).get(site_text.TEACHER, {}) | {"temperature": value}
    by_hand = f"write 'temperature = {value:g}' into the table [teacher] yourself"
    site_text.write(path, site_text.with_temperature(path.read_text("utf-8"), value), teacher, by_hand)
