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
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter1d

from consilium.common.errors import SettingsError

Float = npt.NDArray[np.float32]
Range = tuple[float, float]

LABELS: Final = ("lesion", "cyst", "mass")
"""What a mask can show: every lesion, or those without inner echoes, or the others."""

MIN_SIZE: Final = 48
MAX_SIZE: Final = 384


@dataclass(frozen=True)
class Scanner:
    """What a hospital's machine does to every case."""

    depth_cm: float
    """Depth shown; a deeper view shows thinner layers."""
    gain_db: float
    """Level of subcutaneous fat above the black end of the display."""
    dynamic_range_db: float
    """Echo levels between black and white."""
    gamma: float
    """Exponent of the gray map; below 1 washes out, above 1 darkens."""
    black: float
    """Gray level of the black end, 0 to 1 (a lifted floor washes the image out)."""
    axial_speckle: float
    """Standard deviation of the point spread function along the beam, in image sides."""
    lateral_speckle: float
    """The same across the beam."""
    looks: int
    """Envelopes averaged (spatial compounding): more looks, less speckle."""
    noise_db: float
    """Level of electronic noise, against fat, before the time-gain curve."""
    slope_db: float
    """Echo level lost from top to bottom that the time-gain curve does not restore."""
    tgc_ripple_db: float
    """Standard deviation of the time-gain curve's error along the depth."""
    shadow_strength: float
    """Factor on every shadow and enhancement (compounding weakens them)."""
    caliper_share: float
    """Share of images with burnt-in calipers on a lesion, or on a structure that is none."""
    text_share: float
    """Share of images with burnt-in text."""


@dataclass(frozen=True)
class CaseMix:
    """Who comes to a hospital: ranges are (low, high) of uniform distributions."""

    radius: Range
    """Mean lesion radius in image sides (0.1 covers about 3 % of the image, 0.25 about 20 %)."""
    contrast_db: Range
    """Echo level of a lesion against the tissue around it; negative is hypoechoic."""
    hyperechoic_share: float
    """Share of lesions somewhat brighter than their surroundings (8 to 11 dB), whatever `contrast_db`."""
    cyst_share: float
    """Share of lesions without inner echoes."""
    fuzziness: Range
    """Width of the border's transition in image sides."""
    lobulation: Range
    """Relative size of the outline's slow waves."""
    spiculation: Range
    """Relative size of the outline's fast waves."""
    aspect: Range
    """Width over height."""
    rim_db: Range
    """Rim around the lesion against the tissue: bright around a dark lesion, dark around a bright one."""
    shadow_share: float
    """Probability of a shadow behind a solid lesion."""
    enhancement_share: float
    """Probability of enhancement behind a lesion without a shadow; a cyst always has it."""
    second_lesion_share: float
    """Share of images with two lesions."""
    lobules: float
    """Expected number of dark fat lobules."""
    vessels: float
    """Expected number of vessels cut across."""
    ribs: float
    """Probability of ribs in view."""
    ligaments: float
    """Expected number of shadows of ligaments."""


@dataclass(frozen=True)
class Hospital:
    """A scanner and the patients in front of it."""

    name: str
    scanner: Scanner
    case_mix: CaseMix


HOSPITALS: Final[dict[str, Hospital]] = {
    # A modern linear probe: fine speckle, compounding. Smooth, dark, benign masses; never a rib or a shadowing mass.
    "north": Hospital(
        "north",
        Scanner(
            depth_cm=3.6, gain_db=20, dynamic_range_db=66, gamma=1.0, black=0.02, axial_speckle=0.0045,
            lateral_speckle=0.0065, looks=4, noise_db=-34, slope_db=5, tgc_ripple_db=1.0, shadow_strength=0.8,
            caliper_share=0.0, text_share=0.2,
        ),
        CaseMix(
            radius=(0.14, 0.24), contrast_db=(-13, -7), hyperechoic_share=0.0, cyst_share=0.15,
            fuzziness=(0.008, 0.018), lobulation=(0.02, 0.14), spiculation=(0.0, 0.03), aspect=(1.1, 1.7),
            rim_db=(0, 3), shadow_share=0.0, enhancement_share=0.8, second_lesion_share=0.1, lobules=1.5,
            vessels=0.5, ribs=0.0, ligaments=0.3,
        ),
    ),
    # An old machine at low gain: coarse speckle, strong shadows. Small irregular masses; never sees a cyst or a vessel.
    "east": Hospital(
        "east",
        Scanner(
            depth_cm=4.6, gain_db=20, dynamic_range_db=56, gamma=1.15, black=0.0, axial_speckle=0.008,
            lateral_speckle=0.016, looks=2, noise_db=-24, slope_db=9, tgc_ripple_db=1.5, shadow_strength=1.2,
            caliper_share=0.0, text_share=0.1,
        ),
        CaseMix(
            radius=(0.105, 0.155), contrast_db=(-18, -12), hyperechoic_share=0.0, cyst_share=0.0,
            fuzziness=(0.01, 0.02), lobulation=(0.06, 0.16), spiculation=(0.05, 0.12), aspect=(0.75, 1.15),
            rim_db=(1, 5), shadow_share=0.8, enhancement_share=0.0, second_lesion_share=0.05, lobules=0.6,
            vessels=0.0, ribs=0.5, ligaments=0.8,
        ),
    ),
    # Everything bright and flat: high gain, wide dynamic range. Faint masses with a bright halo, a few hyperechoic.
    "south": Hospital(
        "south",
        Scanner(
            depth_cm=4.0, gain_db=36, dynamic_range_db=80, gamma=0.95, black=0.06, axial_speckle=0.006,
            lateral_speckle=0.010, looks=4, noise_db=-26, slope_db=2, tgc_ripple_db=2.5, shadow_strength=0.7,
            caliper_share=0.0, text_share=0.1,
        ),
        CaseMix(
            radius=(0.11, 0.18), contrast_db=(-15, -9), hyperechoic_share=0.15, cyst_share=0.0,
            fuzziness=(0.010, 0.020), lobulation=(0.04, 0.14), spiculation=(0.0, 0.04), aspect=(1.0, 1.6),
            rim_db=(5, 9), shadow_share=0.2, enhancement_share=0.3, second_lesion_share=0.1, lobules=0.0,
            vessels=0.6, ribs=0.3, ligaments=0.5,
        ),
    ),
    # A narrow dynamic range, hard black and white. Cysts and dark masses under calipers; many vessels and ribs.
    "west": Hospital(
        "west",
        Scanner(
            depth_cm=5.0, gain_db=20, dynamic_range_db=50, gamma=0.9, black=0.0, axial_speckle=0.0055,
            lateral_speckle=0.010, looks=3, noise_db=-30, slope_db=4, tgc_ripple_db=2.0, shadow_strength=1.0,
            caliper_share=0.7, text_share=0.8,
        ),
        CaseMix(
            radius=(0.11, 0.20), contrast_db=(-16, -10), hyperechoic_share=0.0, cyst_share=0.6,
            fuzziness=(0.008, 0.018), lobulation=(0.03, 0.18), spiculation=(0.0, 0.04), aspect=(0.9, 1.6),
            rim_db=(0, 5), shadow_share=0.2, enhancement_share=0.5, second_lesion_share=0.25, lobules=1.2,
            vessels=1.5, ribs=0.6, ligaments=0.0,
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Body:
    """A closed outline and what it does to the echo; angles in radians, lengths in image sides."""

    x: float
    y: float
    radius: float
    aspect: float
    tilt: float
    outline: Float  # relative radius at equally spaced angles, closed
    contrast_db: float
    uneven: float  # slow variation of the contrast, relative
    inner_db: float  # fine unevenness inside
    fuzziness: float
    rim_db: float
    absorption_db: float  # per image side of path; positive shadows, negative enhances
    edge_db: float  # loss below the two flanks
    label: str = ""  # of a lesion: cyst or mass


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
    lesions = _lesions(rng, mix) if has_lesion else []
    lookalikes = _lookalikes(rng, mix, lesions)
    level_db = _tissue_db(rng, scanner, size)
    loss_db = np.zeros((size, size), np.float32)
    masks = {label: np.zeros((size, size), np.uint8) for label in LABELS}
    for body in lookalikes:
        level_db, _ = _add_body(rng, body, level_db, loss_db, scanner)
    for body in lesions:
        level_db, inside = _add_body(rng, body, level_db, loss_db, scanner)
        masks["lesion"] |= inside
        masks[body.label] |= inside
    if rng.random() < mix.ribs:
        level_db = _add_ribs(rng, level_db, loss_db, scanner)
    for _ in range(rng.poisson(mix.ligaments)):
        _add_ligament_shadow(rng, loss_db, scanner)
    tgc_db = _tgc_db(rng, scanner, size)
    overlay = _overlay(rng, scanner, lesions or lookalikes, size)
    gray = _scan(np.random.default_rng([*key, 1, size]), level_db - loss_db, tgc_db, scanner)
    return np.where(overlay > 0, overlay, gray), masks


# --- the case -----------------------------------------------------------------------------------------------------


def _lesions(rng: np.random.Generator, mix: CaseMix) -> list[_Body]:
    wanted = 1 + int(rng.random() < mix.second_lesion_share)
    lesions: list[_Body] = []
    for _ in range(wanted):
        radius = rng.uniform(*mix.radius) * (0.75 if wanted > 1 else 1.0)
        aspect = rng.uniform(*mix.aspect)
        # A second lesion that finds no room is left out: two that touch would be one lesion of an odd shape.
        for _ in range(8):
            margin = radius * math.sqrt(aspect) + 0.03
            x, y = rng.uniform(margin, 1 - margin), rng.uniform(0.16 + radius, max(0.78 - radius, 0.17 + radius))
            lesion = _lesion(rng, mix, x, y, radius, aspect)
            if all(_apart(lesion, other) for other in lesions):
                lesions.append(lesion)
                break
    return lesions


def _lesion(rng: np.random.Generator, mix: CaseMix, x: float, y: float, radius: float, aspect: float) -> _Body:
    contrast = rng.uniform(*mix.contrast_db)
    kind = rng.random()
    is_cyst, is_bright = kind < mix.cyst_share, kind >= 1 - mix.hyperechoic_share
    if is_bright:
        contrast = rng.uniform(8.0, 11.0)
    elif is_cyst:
        contrast = rng.uniform(-38.0, -28.0)
    if not is_cyst and rng.random() < mix.shadow_share:
        absorption = rng.uniform(20.0, 40.0)
    else:
        absorption = -rng.uniform(15.0, 30.0) if is_cyst or rng.random() < mix.enhancement_share else 0.0
    lobulation, spiculation = rng.uniform(*mix.lobulation), rng.uniform(*mix.spiculation)
    rim = rng.uniform(*mix.rim_db) * (-1.0 if is_bright else 1.0)  # the capsule stands out from what it holds
    return _Body(
        x, y, radius, aspect, rng.normal(0.0, 0.25),
        _outline(rng, 0.4 * lobulation if is_cyst else lobulation, 0.0 if is_cyst else spiculation),
        contrast, 0.0 if is_cyst else 0.45, 0.5 if is_cyst else rng.uniform(1.5, 3.0), rng.uniform(*mix.fuzziness),
        rim, absorption, rng.uniform(2.0, 6.0), "cyst" if is_cyst else "mass",
    )  # fmt: skip


def _outline(rng: np.random.Generator, lobulation: float, spiculation: float) -> Float:
    """Relative radius at 128 equally spaced angles, closed by repeating the first; mean square 1."""
    angle = np.linspace(0.0, 2 * np.pi, 129)
    slow, fast = np.arange(2, 6), np.arange(6, 17)
    outline = np.ones_like(angle)
    for orders, size in ((slow, lobulation), (fast, spiculation)):
        phase, weight = rng.uniform(0, 2 * np.pi, len(orders)), rng.uniform(0.0, 1.0, len(orders)) / orders**0.5
        wave = np.cos(orders[:, None] * angle + phase[:, None]).T @ weight
        outline += size * wave / np.sqrt((weight**2).sum() / 2)
    outline = np.maximum(outline, 0.4)
    return np.asarray(outline / np.sqrt((outline[:-1] ** 2).mean()), np.float32)


def _lookalikes(rng: np.random.Generator, mix: CaseMix, lesions: list[_Body]) -> list[_Body]:
    """Fat lobules (flat, shallow, with a capsule) and vessels (small, empty, with bright walls)."""
    bodies: list[_Body] = []
    for _ in range(rng.poisson(mix.lobules)):
        x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.25), rng.uniform(0.045, 0.075)
        bodies.append(
            _Body(
                x, y, radius, aspect=rng.uniform(2.0, 3.2), tilt=rng.normal(0.0, 0.1), outline=_outline(rng, 0.06, 0.0),
                contrast_db=rng.uniform(-12.0, -7.0), uneven=0.4, inner_db=1.5, fuzziness=0.008,
                rim_db=rng.uniform(4.0, 8.0), absorption_db=0.0, edge_db=0.0,
            )
        )  # fmt: skip
    for _ in range(rng.poisson(mix.vessels)):
        x, y, radius = rng.uniform(0.06, 0.94), rng.uniform(0.3, 0.8), rng.uniform(0.022, 0.042)
        bodies.append(
            _Body(
                x, y, radius, aspect=rng.uniform(1.0, 2.2), tilt=rng.normal(0.0, 0.3), outline=_outline(rng, 0.03, 0.0),
                contrast_db=rng.uniform(-32.0, -22.0), uneven=0.0, inner_db=0.5, fuzziness=0.005,
                rim_db=rng.uniform(5.0, 9.0), absorption_db=-20.0, edge_db=0.0,
            )
        )  # fmt: skip
    return [body for body in bodies if all(_apart(body, lesion) for lesion in lesions)]


def _apart(one: _Body, other: _Body) -> bool:
    """Whether two bodies leave a gap, however they are turned and whatever their outline."""
    reach = sum(body.radius * math.sqrt(max(body.aspect, 1 / body.aspect)) for body in (one, other))
    return math.hypot(one.x - other.x, one.y - other.y) > 1.15 * reach


# --- echo strength ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _spline_rows(coarse: int, size: int) -> Float:
    """Cubic B-spline weights, ``(size, coarse)``: a smooth curve through any ``coarse`` random numbers."""
    knots = np.arange(-3, coarse + 1) / (coarse - 3)
    at = (np.arange(size) + 0.5) / size
    rows = np.asarray(BSpline.design_matrix(at, knots, 3).toarray(), np.float32)
    rows.flags.writeable = False
    return rows


def _curve(rng: np.random.Generator, coarse: int, size: int) -> Float:
    """A smooth random curve, ``(size,)``, with about ``coarse`` bends and a standard deviation of about 0.7."""
    return _spline_rows(coarse, size) @ rng.standard_normal(coarse, np.float32)


def _field(rng: np.random.Generator, rows: int, columns: int, size: int) -> Float:
    """A smooth random field, ``(size, size)``, about ``rows`` x ``columns`` blobs, standard deviation about 0.5."""
    coarse = rng.standard_normal((rows, columns), np.float32)
    return np.asarray(_spline_rows(rows, size) @ coarse @ _spline_rows(columns, size).T, np.float32)


def _step(distance: Float, width: float) -> Float:
    """0 well below zero, 1 well above, over about ``width`` on each side."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / np.float32(width)), np.float32)


def _bump(distance: Float, width: float) -> Float:
    return np.asarray(np.exp(-np.square(distance / np.float32(width))), np.float32)


def _axis(size: int) -> Float:
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


def _tissue_db(rng: np.random.Generator, scanner: Scanner, size: int) -> Float:
    """Echo level of lesion-free tissue against fat, in dB: wavy layers, fascia between them, septa and fibres."""
    y = _axis(size)[:, None]
    cm = 1.0 / scanner.depth_cm
    fat_cm = rng.uniform(0.5, 0.95)
    gland_cm = fat_cm + rng.uniform(1.4, 2.1)
    # depth of the lower edge, waviness, level of the layer below against the one above, brightness of the line between
    edges = (
        (0.16, 0.010, -9.0, 3.0),
        (fat_cm, 0.12, rng.uniform(4.0, 7.0), 4.0),
        (gland_cm, 0.16, -rng.uniform(3.0, 6.0), 5.0),
        (gland_cm + rng.uniform(0.5, 0.9), 0.10, -rng.uniform(4.0, 8.0), 9.0),
    )
    level = np.full((size, size), 9.0, np.float32)
    bend = 0.035 * _curve(rng, 5, size)  # the whole stack follows the probe's pressure
    bounds = []
    for depth, wave, change, line in edges:
        bound = np.float32(depth * cm) + bend * (depth > 0.2) + np.float32(wave * cm) * _curve(rng, 9, size)
        distance = y - bound
        level += np.float32(change) * _step(distance, 0.012) + np.float32(line) * _bump(distance, 0.008) * (
            0.6 + 0.4 * _curve(rng, 12, size)
        )
        bounds.append(distance)
    in_fat = _step(bounds[0], 0.02) * _step(-bounds[1], 0.02)
    in_gland = _step(bounds[1], 0.03) * _step(-bounds[2], 0.03)
    below = _step(bounds[2], 0.02)
    # Septa and fibres are the zero lines of smooth fields: thin, curved, without ends in the open.
    septa = _bump(_field(rng, 12, 7, size), 0.06)
    fibres = _bump(_field(rng, 22, 7, size), 0.10) + _bump(_field(rng, 30, 9, size), 0.12)
    fibres *= _step(_field(rng, 9, 6, size), 0.4)
    striae = _bump(_field(rng, 34, 6, size), 0.12)
    level += in_fat * (11.0 * septa) + in_gland * (9.0 * fibres + 5.0 * _field(rng, 14, 9, size))
    level += below * (9.0 * striae + 3.0 * _field(rng, 20, 5, size))
    return level + 5.0 * _field(rng, 7, 6, size)


def _distance(body: _Body, size: int) -> Float:
    """Distance outwards from a body's outline, about right near the outline, in image sides; ``(size, size)``."""
    axis = _axis(size)
    dx, dy = axis[None, :] - np.float32(body.x), axis[:, None] - np.float32(body.y)
    cos, sin, stretch = (np.float32(v) for v in (math.cos(body.tilt), math.sin(body.tilt), math.sqrt(body.aspect)))
    u, v = (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch
    turn = np.arctan2(v, u) * np.float32(64 / np.pi) + np.float32(64)  # 0 to 128
    low = np.minimum(turn.astype(np.intp), 127)
    part = turn - low
    outline = body.outline[low] * (1 - part) + body.outline[low + 1] * part
    return np.asarray(np.hypot(u, v) - np.float32(body.radius) * outline, np.float32)


def _add_body(
    rng: np.random.Generator, body: _Body, level_db: Float, loss_db: Float, scanner: Scanner
) -> tuple[Float, npt.NDArray[np.uint8]]:
    """Put a body into the echo map (returned) and its shadow into the loss (in place); also its pixels."""
    size = len(level_db)
    distance = _distance(body, size)
    inside = _step(-distance, body.fuzziness)
    axis = _axis(size)
    # Inside, the tissue's own pattern is replaced by that of the lesion, around the level the tissue has there.
    around = float(level_db[(distance > 0) & (distance < 0.05)].mean())
    # Its contrast is uneven, so parts of the border are faint.
    contrast = np.float32(body.contrast_db) * (1 + np.float32(body.uneven) * _field(rng, 8, 8, size))
    own = np.float32(around) + contrast + np.float32(2 * body.inner_db) * _field(rng, 16, 16, size)
    rim = np.float32(body.rim_db) * _bump(distance - np.float32(0.012), 0.012)
    level = level_db + inside * (own - level_db) + rim * (1 - inside)
    strength = np.float32(scanner.shadow_strength / size)
    behind = gaussian_filter1d(np.cumsum(inside, axis=0, dtype=np.float32) * strength, 0.015 * size, 1, truncate=2)
    # Loss is counted below the body only: within it, it is part of the contrast above.
    loss_db += np.float32(body.absorption_db) * behind * (1 - inside)
    half_width = body.radius * math.sqrt(body.aspect)
    flank = np.abs(np.abs(axis - np.float32(body.x)) - np.float32(0.97 * half_width))
    drop = np.float32(body.edge_db * scanner.shadow_strength) * _step(axis[:, None] - np.float32(body.y), 0.05)
    loss_db += drop * _bump(flank, 0.016) * (1 - inside)
    return level, (distance < 0).astype(np.uint8)


def _add_ribs(rng: np.random.Generator, level_db: Float, loss_db: Float, scanner: Scanner) -> Float:
    """One or two ribs near the bottom: a bright arc towards the probe, and nothing but shadow below it."""
    axis = _axis(len(level_db))
    first, pitch = rng.uniform(0.0, 0.5), rng.uniform(0.45, 0.7)
    for centre in (first, first + pitch):
        top, width = rng.uniform(0.74, 0.86), rng.uniform(0.08, 0.15)
        across = (axis - np.float32(centre)) / np.float32(width)
        here = np.exp(-np.square(np.square(across)))
        below = axis[:, None] - np.float32(top) - np.float32(0.07) * np.square(across)
        level_db = level_db + here * 12.0 * _bump(below, 0.010)
        loss_db += np.float32(20.0 * scanner.shadow_strength) * here * _step(below - np.float32(0.02), 0.015)
    return level_db


def _add_ligament_shadow(rng: np.random.Generator, loss_db: Float, scanner: Scanner) -> None:
    """A dark column that starts at the gland's surface, leans a little and fades."""
    axis = _axis(len(loss_db))
    x, lean, width = rng.uniform(0.05, 0.95), rng.normal(0, 0.08), rng.uniform(0.015, 0.045)
    top, strength = rng.uniform(0.15, 0.35), rng.uniform(6.0, 12.0) * scanner.shadow_strength
    down = axis[:, None] - np.float32(top)
    beam = _bump(axis - np.float32(x) - np.float32(lean) * down, width)
    loss_db += np.float32(strength) * _step(down, 0.03) * beam * (1 - 0.5 * axis[:, None])


def _tgc_db(rng: np.random.Generator, scanner: Scanner, size: int) -> Float:
    """What the time-gain curve leaves uncorrected, by depth: ``(size, 1)``."""
    ripple = np.float32(scanner.tgc_ripple_db / 0.7) * _curve(rng, 8, size)
    return (ripple - np.float32(scanner.slope_db) * (_axis(size) - np.float32(0.4)))[:, None]


# --- the machine --------------------------------------------------------------------------------------------------


def _scan(rng: np.random.Generator, level_db: Float, tgc_db: Float, scanner: Scanner) -> npt.NDArray[np.uint8]:
    """Speckle, noise, gain, log compression and gray map: an image, ``(size, size)``, uint8."""
    size = len(level_db)
    # Below half a pixel a Gaussian filter is none, and speckle would be finer than the grid can show.
    axial, lateral = max(0.5, scanner.axial_speckle * size), max(0.5, scanner.lateral_speckle * size)
    # The filter keeps the sum of weights at 1, so white noise loses power by 1 / (4 pi axial lateral).
    unit = np.float32(math.sqrt(2 * math.pi * axial * lateral))
    scatter = unit * np.power(np.float32(10.0), level_db / np.float32(20.0))
    noise = np.float32(10.0 ** (scanner.noise_db / 20.0) / math.sqrt(2.0))
    envelope = np.zeros((size, size), np.float32)
    for _ in range(scanner.looks):
        field = rng.standard_normal((2, size, size), np.float32) * scatter
        field = gaussian_filter1d(gaussian_filter1d(field, axial, 1, truncate=3), lateral, 2, truncate=3)
        field += noise * rng.standard_normal((2, size, size), np.float32)
        envelope += np.hypot(field[0], field[1])
    level = np.float32(20.0) * np.log10(envelope / np.float32(scanner.looks) + np.float32(1e-6)) + tgc_db
    shown = np.clip((level + np.float32(scanner.gain_db)) / np.float32(scanner.dynamic_range_db), 0.0, 1.0)
    shown = np.float32(scanner.black) + np.float32(1 - scanner.black) * shown ** np.float32(scanner.gamma)
    return np.asarray(np.rint(255.0 * shown), np.uint8)


# 3 x 5 dots a letter, rows from the top; enough for a side, a clock position and a distance.
_LETTERS: Final = {
    "R": "110101110101101", "L": "100100100100111", "T": "111010010010010", "B": "110101110101110",
    "1": "010110010010111", "2": "111001111100111", "3": "111001111001111", "5": "111100111001111",
    "7": "111001010010010", "9": "111101111001111", ":": "000010000010000", " ": "000000000000000",
}  # fmt: skip


def _overlay(rng: np.random.Generator, scanner: Scanner, targets: list[_Body], size: int) -> npt.NDArray[np.uint8]:
    """What the machine writes over the image, 0 where nothing: ``(size, size)``, uint8."""
    overlay = np.zeros((size, size), np.uint8)
    has_calipers, has_text = rng.random() < scanner.caliper_share, rng.random() < scanner.text_share
    if has_calipers and targets:
        body = targets[int(rng.integers(len(targets)))]
        _draw_calipers(overlay, body, size)
    if has_text:
        words = ("RT 3:7", "LT 9:1", "LT 5", "RT 2", "B 12")
        _draw_text(overlay, words[int(rng.integers(len(words)))], rng.uniform(0.05, 0.6), rng.uniform(0.8, 0.92))
    return overlay


def _draw_calipers(overlay: npt.NDArray[np.uint8], body: _Body, size: int) -> None:
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
