"""A case: its lesions, and the structures that look like lesions and are none. Nothing here knows of pixels."""

import math
from dataclasses import dataclass

import numpy as np

from consilium.common.datasets.phantoms.hospitals import CaseMix
from consilium.common.datasets.phantoms.smooth import Float


@dataclass(frozen=True)
class Body:
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


def lesions(rng: np.random.Generator, mix: CaseMix) -> list[Body]:
    """One or two lesions that do not touch."""
    wanted = 1 + int(rng.random() < mix.second_lesion_share)
    found: list[Body] = []
    for _ in range(wanted):
        radius = rng.uniform(*mix.radius) * (0.75 if wanted > 1 else 1.0)
        aspect = rng.uniform(*mix.aspect)
        # A second lesion that finds no room is left out: two that touch would be one lesion of an odd shape.
        for _ in range(8):
            margin = radius * math.sqrt(aspect) + 0.03
            x, y = rng.uniform(margin, 1 - margin), rng.uniform(0.16 + radius, max(0.78 - radius, 0.17 + radius))
            lesion = _lesion(rng, mix, x, y, radius, aspect)
            if all(_apart(lesion, other) for other in found):
                found.append(lesion)
                break
    return found


def _lesion(rng: np.random.Generator, mix: CaseMix, x: float, y: float, radius: float, aspect: float) -> Body:
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
    return Body(
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


def lookalikes(rng: np.random.Generator, mix: CaseMix, lesions: list[Body]) -> list[Body]:
    """Fat lobules (flat, shallow, with a capsule) and vessels (small, empty, with bright walls)."""
    bodies: list[Body] = []
    for _ in range(rng.poisson(mix.lobules)):
        x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.25), rng.uniform(0.045, 0.075)
        bodies.append(
            Body(
                x, y, radius, aspect=rng.uniform(2.0, 3.2), tilt=rng.normal(0.0, 0.1), outline=_outline(rng, 0.06, 0.0),
                contrast_db=rng.uniform(-12.0, -7.0), uneven=0.4, inner_db=1.5, fuzziness=0.008,
                rim_db=rng.uniform(4.0, 8.0), absorption_db=0.0, edge_db=0.0,
            )
        )  # fmt: skip
    for _ in range(rng.poisson(mix.vessels)):
        x, y, radius = rng.uniform(0.06, 0.94), rng.uniform(0.3, 0.8), rng.uniform(0.022, 0.042)
        bodies.append(
            Body(
                x, y, radius, aspect=rng.uniform(1.0, 2.2), tilt=rng.normal(0.0, 0.3), outline=_outline(rng, 0.03, 0.0),
                contrast_db=rng.uniform(-32.0, -22.0), uneven=0.0, inner_db=0.5, fuzziness=0.005,
                rim_db=rng.uniform(5.0, 9.0), absorption_db=-20.0, edge_db=0.0,
            )
        )  # fmt: skip
    return [body for body in bodies if all(_apart(body, lesion) for lesion in lesions)]


def _apart(one: Body, other: Body) -> bool:
    """Whether two bodies leave a gap, however they are turned and whatever their outline."""
    reach = sum(body.radius * math.sqrt(max(body.aspect, 1 / body.aspect)) for body in (one, other))
    return math.hypot(one.x - other.x, one.y - other.y) > 1.15 * reach
