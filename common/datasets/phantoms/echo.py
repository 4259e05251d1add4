"""The map of echo strength in dB: tissue, bodies in it, and what they cost the sound that passes through them."""

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from consilium.common.datasets.phantoms import smooth
from consilium.common.datasets.phantoms.anatomy import Body
from consilium.common.datasets.phantoms.hospitals import Scanner
from consilium.common.datasets.phantoms.smooth import Float


def tissue_db(rng: np.random.Generator, scanner: Scanner, size: int) -> Float:
    """Echo level of lesion-free tissue against fat, in dB: wavy layers, fascia between them, septa and fibres."""
    y = smooth.centres(size)[:, None]
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
    bend = 0.035 * smooth.curve(rng, 5, size)  # the whole stack follows the probe's pressure
    bounds = []
    for depth, wave, change, line in edges:
        bound = np.float32(depth * cm) + bend * (depth > 0.2) + np.float32(wave * cm) * smooth.curve(rng, 9, size)
        distance = y - bound
        level += np.float32(change) * smooth.step(distance, 0.012) + np.float32(line) * smooth.bump(distance, 0.008) * (
            0.6 + 0.4 * smooth.curve(rng, 12, size)
        )
        bounds.append(distance)
    in_fat = smooth.step(bounds[0], 0.02) * smooth.step(-bounds[1], 0.02)
    in_gland = smooth.step(bounds[1], 0.03) * smooth.step(-bounds[2], 0.03)
    below = smooth.step(bounds[2], 0.02)
    # Septa and fibres are the zero lines of smooth fields: thin, curved, without ends in the open.
    septa = smooth.bump(smooth.field(rng, 12, 7, size), 0.06)
    fibres = smooth.bump(smooth.field(rng, 22, 7, size), 0.10) + smooth.bump(smooth.field(rng, 30, 9, size), 0.12)
    fibres *= smooth.step(smooth.field(rng, 9, 6, size), 0.4)
    striae = smooth.bump(smooth.field(rng, 34, 6, size), 0.12)
    level += in_fat * (11.0 * septa) + in_gland * (9.0 * fibres + 5.0 * smooth.field(rng, 14, 9, size))
    level += below * (9.0 * striae + 3.0 * smooth.field(rng, 20, 5, size))
    return level + 5.0 * smooth.field(rng, 7, 6, size)


def _distance(body: Body, size: int) -> Float:
    """Distance outwards from a body's outline, about right near the outline, in image sides; ``(size, size)``."""
    axis = smooth.centres(size)
    dx, dy = axis[None, :] - np.float32(body.x), axis[:, None] - np.float32(body.y)
    cos, sin, stretch = (np.float32(v) for v in (math.cos(body.tilt), math.sin(body.tilt), math.sqrt(body.aspect)))
    u, v = (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch
    turn = np.arctan2(v, u) * np.float32(64 / np.pi) + np.float32(64)  # 0 to 128
    low = np.minimum(turn.astype(np.intp), 127)
    part = turn - low
    outline = body.outline[low] * (1 - part) + body.outline[low + 1] * part
    return np.asarray(np.hypot(u, v) - np.float32(body.radius) * outline, np.float32)


def add_body(
    rng: np.random.Generator, body: Body, level_db: Float, loss_db: Float, scanner: Scanner
) -> tuple[Float, npt.NDArray[np.uint8]]:
    """Put a body into the echo map (returned) and its shadow into the loss (in place); also its pixels."""
    size = len(level_db)
    distance = _distance(body, size)
    inside = smooth.step(-distance, body.fuzziness)
    axis = smooth.centres(size)
    # Inside, the tissue's own pattern is replaced by that of the lesion, around the level the tissue has there.
    around = float(level_db[(distance > 0) & (distance < 0.05)].mean())
    # Its contrast is uneven, so parts of the border are faint.
    contrast = np.float32(body.contrast_db) * (1 + np.float32(body.uneven) * smooth.field(rng, 8, 8, size))
    own = np.float32(around) + contrast + np.float32(2 * body.inner_db) * smooth.field(rng, 16, 16, size)
    rim = np.float32(body.rim_db) * smooth.bump(distance - np.float32(0.012), 0.012)
    level = level_db + inside * (own - level_db) + rim * (1 - inside)
    strength = np.float32(scanner.shadow_strength / size)
    behind = gaussian_filter1d(np.cumsum(inside, axis=0, dtype=np.float32) * strength, 0.015 * size, 1, truncate=2)
    # Loss is counted below the body only: within it, it is part of the contrast above.
    loss_db += np.float32(body.absorption_db) * behind * (1 - inside)
    half_width = body.radius * math.sqrt(body.aspect)
    flank = np.abs(np.abs(axis - np.float32(body.x)) - np.float32(0.97 * half_width))
    drop = np.float32(body.edge_db * scanner.shadow_strength) * smooth.step(axis[:, None] - np.float32(body.y), 0.05)
    loss_db += drop * smooth.bump(flank, 0.016) * (1 - inside)
    return level, (distance < 0).astype(np.uint8)


def add_ribs(rng: np.random.Generator, level_db: Float, loss_db: Float, scanner: Scanner) -> Float:
    """One or two ribs near the bottom: a bright arc towards the probe, and nothing but shadow below it."""
    axis = smooth.centres(len(level_db))
    first, pitch = rng.uniform(0.0, 0.5), rng.uniform(0.45, 0.7)
    for centre in (first, first + pitch):
        top, width = rng.uniform(0.74, 0.86), rng.uniform(0.08, 0.15)
        across = (axis - np.float32(centre)) / np.float32(width)
        here = np.exp(-np.square(np.square(across)))
        below = axis[:, None] - np.float32(top) - np.float32(0.07) * np.square(across)
        level_db = level_db + here * 12.0 * smooth.bump(below, 0.010)
        loss_db += np.float32(20.0 * scanner.shadow_strength) * here * smooth.step(below - np.float32(0.02), 0.015)
    return level_db


def add_ligament_shadow(rng: np.random.Generator, loss_db: Float, scanner: Scanner) -> None:
    """A dark column that starts at the gland's surface, leans a little and fades."""
    axis = smooth.centres(len(loss_db))
    x, lean, width = rng.uniform(0.05, 0.95), rng.normal(0, 0.08), rng.uniform(0.015, 0.045)
    top, strength = rng.uniform(0.15, 0.35), rng.uniform(6.0, 12.0) * scanner.shadow_strength
    down = axis[:, None] - np.float32(top)
    beam = smooth.bump(axis - np.float32(x) - np.float32(lean) * down, width)
    loss_db += np.float32(strength) * smooth.step(down, 0.03) * beam * (1 - 0.5 * axis[:, None])
