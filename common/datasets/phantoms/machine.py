"""The machine: from echo strength to a gray image."""

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from consilium.common.datasets.phantoms import smooth
from consilium.common.datasets.phantoms.hospitals import Scanner
from consilium.common.datasets.phantoms.smooth import Float


def tgc_db(rng: np.random.Generator, scanner: Scanner, size: int) -> Float:
    """What the time-gain curve leaves uncorrected, by depth: ``(size, 1)``."""
    ripple = np.float32(scanner.tgc_ripple_db / 0.7) * smooth.curve(rng, 8, size)
    return (ripple - np.float32(scanner.slope_db) * (smooth.centres(size) - np.float32(0.4)))[:, None]


def scan(rng: np.random.Generator, level_db: Float, tgc_db: Float, scanner: Scanner) -> npt.NDArray[np.uint8]:
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
