"""How fast the exclusion statistics are, against scikit-image's entropy and a count with numpy, on the same masks.

Fused masks of blurred lesions (what the fusion of soft teachers looks like) and noise (the worst case for a histogram).

    python benchmarks/exclusion_speed.py
"""

import statistics
import sys
from functools import partial

import numpy as np
import numpy.typing as npt
from _measure import alternate, paired_ratio, parser, print_machine, print_table, print_target, timed
from scipy.ndimage import gaussian_filter
from skimage.measure import shannon_entropy

from consilium.common.datasets import phantoms
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks, quantise
from consilium.server import exclusion

TARGET = 5.0


def fused_masks(count: int, size: int) -> SoftMasks:
    """Means of four differently soft and shifted versions of phantom lesions: uint8 (count, 1, size, size)."""
    rng = np.random.default_rng(0)
    _, truth = phantoms.make("north", count, size, seed=3, lesion_free=0.2)
    soft = np.zeros(truth.shape, np.float32)
    for mask, total in zip(truth[:, 0], soft[:, 0], strict=True):
        for _site in range(4):
            moved = np.roll(mask, rng.integers(-size // 24, size // 24 + 1, 2), (0, 1)).astype(np.float32)
            total += gaussian_filter(moved, rng.uniform(0.005, 0.06) * size) / 4
    return quantise(soft.clip(0, 1))


def with_scikit_image(masks: SoftMasks) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Target pixels and entropy, each by the function one would reach for."""
    pixels = np.array([np.count_nonzero(mask[0] >= TARGET_LEVEL) for mask in masks])
    return pixels, np.array([shannon_entropy(mask[0], base=2) for mask in masks])


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--masks", type=int, default=200, help="masks measured at once")
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    count, rounds, sizes = (4, 2, (48,)) if given.tiny else (given.masks, given.rounds, (96, 384))
    print_machine()
    rows, worst = [], float("inf")
    for size in sizes:
        noise = np.random.default_rng(1).integers(0, 256, (count, 1, size, size)).astype(np.uint8)
        for kind, masks in (("fused", fused_masks(count, size)), ("noise", noise)):
            ours, (pixels, bits) = exclusion.statistics(masks), with_scikit_image(masks)
            if not np.array_equal(ours.target_pixels, pixels) or not np.allclose(ours.entropy_bits, bits, atol=1e-12):
                raise SystemExit("the two do not agree")
            seconds = alternate(
                {
                    "consilium": partial(timed, partial(exclusion.statistics, masks)),
                    "scikit-image": partial(timed, partial(with_scikit_image, masks)),
                },
                rounds,
            )
            ratio, low, high = paired_ratio(seconds["scikit-image"], seconds["consilium"])
            worst = min(worst, ratio)
            ms = {side: f"{1000 * statistics.median(times) / count:.3f}" for side, times in seconds.items()}
            rows.append(
                (
                    f"{kind}, {size} x {size}",
                    ms["consilium"],
                    ms["scikit-image"],
                    f"{ratio:.1f}",
                    f"{low:.1f} to {high:.1f}",
                )
            )
    print_table(("masks", "consilium, ms a mask", "scikit-image, ms a mask", "times faster", "over the rounds"), rows)
    print_target(f"at least {TARGET:g} times faster, on every row", worst >= TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
