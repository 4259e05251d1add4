"""Synthetic B-mode ultrasound of four imaginary hospitals, with exact masks, from a seed.

For demonstrations and tests that need no patient: each hospital has its own scanner and its own case mix, so that a
network trained at one of them works at home, is weak elsewhere, and each is weak in another way.

How an image is made:

1. a *case* is drawn in units of the image side: tissue layers (skin, fat, gland, muscle), septa, lesions, and
   structures that look like lesions and are none (fat lobules, vessels, ribs, ligament shadows);
2. it becomes a map of echo strength in dB, with attenuation along the beam: what lies in or below a structure that
   absorbs is darker (shadow), below a cyst it is brighter (enhancement);
3. speckle: a complex white Gaussian field, weighted by the echo strength, filtered with the scanner's point spread
   function; its magnitude is Rayleigh distributed in uniform tissue (Wagner, Smith, Sandrik and Lopez 1983, IEEE
   Trans. Sonics Ultrason. 30:156). The point spread function is a Gaussian, the same at every depth, and works on the
   demodulated field: a departure from a real, depth-dependent pulse;
4. electronic noise, time-gain curve, log compression to the dynamic range, gray map, calipers and text.

Lengths are fractions of the image side, so one case looks the same at 96 and at 384 pixels. The mask is the lesion's
outline before the scanner blurs it; it does not know where the outline fades.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.datasets.phantoms import anatomy, burnt_in, echo, machine
from consilium.common.datasets.phantoms.hospitals import HOSPITALS, Hospital
from consilium.common.errors import SettingsError

LABELS: Final = ("lesion", "cyst", "mass")
"""What a mask can show: every lesion, or those without inner echoes, or the others."""

MIN_SIZE: Final = 48
MAX_SIZE: Final = 384


def make(
    hospital: str,
    count: int,
    size: int,
    seed: int,
    *,
    lesion_free: float = 0.0,
    start: int = 0,
    labels: Sequence[str] = ("lesion",),
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images ``start`` to ``start + count - 1`` of a hospital's endless list, with their masks.

    An image depends on its place in the list, ``hospital``, ``size``, ``seed`` and ``lesion_free`` only: lists can be
    extended, and lists with different seeds share no image. `lesion_free` decides only which places hold a lesion-free
    image; the others stay what they are. The same case at another size is the same anatomy under other speckle. The
    bytes are those of one numpy version on one kind of machine.

    Parameters
    ----------
    hospital
        A key of `HOSPITALS`.
    count
        Number of images, 0 or more.
    size
        Side in pixels, 48 to 384.
    seed
        0 or more.
    lesion_free
        Share of images without a lesion, in [0, 1], spread evenly over the list: of the first ``n`` images,
        ``n * lesion_free`` rounded are lesion-free.
    start
        Place of the first image, 0 or more.
    labels
        What the masks show, of `LABELS`: ``lesion``, or ``cyst`` and ``mass`` apart. It changes no image.

    Returns
    -------
    images
        ``(count, 1, size, size)``, uint8, 0 to 255.
    masks
        ``(count, len(labels), size, size)``, uint8, 1 inside a lesion of the label and 0 elsewhere.

    Raises
    ------
    SettingsError
        The hospital is not known, or a number is out of range; every fault is named.
    """
    _check(hospital, count, size, seed, lesion_free, start, labels)
    place = HOSPITALS[hospital]
    images = np.empty((count, 1, size, size), np.uint8)
    masks = np.empty((count, len(labels), size, size), np.uint8)
    for row, index in enumerate(range(start, start + count)):
        has_lesion = not _is_lesion_free(index, lesion_free)
        images[row, 0], found = _image(place, size, seed, index, has_lesion=has_lesion)
        masks[row] = [found[label] for label in labels]
    return images, masks


def _check(
    hospital: str, count: int, size: int, seed: int, lesion_free: float, start: int, labels: Sequence[str]
) -> None:
    faults: list[str] = []
    if hospital not in HOSPITALS:
        faults.append(f"hospital must be one of {', '.join(HOSPITALS)}; got {hospital!r}")
    for name, value in (("count", count), ("seed", seed), ("start", start)):
        if value < 0:
            faults.append(f"{name} must be 0 or more; got {value}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        faults.append(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels; got {size}")
    if not 0.0 <= lesion_free <= 1.0:  # also refuses nan
        faults.append(f"lesion_free must be a share in [0, 1]; got {lesion_free}")
    if not labels or not set(labels) <= set(LABELS):
        faults.append(f"labels are some of {', '.join(LABELS)}; got {', '.join(labels) or 'none'}")
    if faults:
        raise SettingsError("; ".join(faults))


def _is_lesion_free(index: int, share: float) -> bool:
    """Whether the rounded count of lesion-free images steps up at this index."""
    return math.floor((index + 1) * share + 0.5) > math.floor(index * share + 0.5)


def _image(
    hospital: Hospital, size: int, seed: int, index: int, *, has_lesion: bool
) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.uint8]]]:
    """One image, and its mask for each of `LABELS`, each ``(size, size)``."""
    key = [seed, zlib.crc32(hospital.name.encode()), index]
    rng = np.random.default_rng([*key, 0])  # anatomy: never asked for anything that depends on the size
    scanner, mix = hospital.scanner, hospital.case_mix
    lesions = anatomy.lesions(rng, mix) if has_lesion else []
    lookalikes = anatomy.lookalikes(rng, mix, lesions)
    level_db = echo.tissue_db(rng, scanner, size)
    loss_db = np.zeros((size, size), np.float32)
    masks = {label: np.zeros((size, size), np.uint8) for label in LABELS}
    for body in lookalikes:
        level_db, _ = echo.add_body(rng, body, level_db, loss_db, scanner)
    for body in lesions:
        level_db, inside = echo.add_body(rng, body, level_db, loss_db, scanner)
        masks["lesion"] |= inside
        masks[body.label] |= inside
    if rng.random() < mix.ribs:
        level_db = echo.add_ribs(rng, level_db, loss_db, scanner)
    for _ in range(rng.poisson(mix.ligaments)):
        echo.add_ligament_shadow(rng, loss_db, scanner)
    tgc_db = machine.tgc_db(rng, scanner, size)
    overlay = burnt_in.overlay(rng, scanner, lesions or lookalikes, size)
    gray = machine.scan(np.random.default_rng([*key, 1, size]), level_db - loss_db, tgc_db, scanner)
    return np.where(overlay > 0, overlay, gray), masks
