"""How much faster a catalogue is built with two workers than with one, and how fast a killed build catches up.

Both sides bring the same generated images (gray PNG of 640 x 480, speckled like ultrasound) to 384 x 384, pack and sign them, and
must give the same bytes. The third side goes on with a build of which all but one image are packed already.

    python benchmarks/catalogue_build.py
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from _measure import alternate, paired_ratio, parser, print_machine, print_table, print_target
from PIL import Image
from scipy.ndimage import gaussian_filter

from consilium.common.catalogue import build
from consilium.common.identity.signing import make_signing_key
from consilium.server.transferal_sets import TransferalSet, catalogue_images

TARGET = 1.6


class StoppedError(Exception):
    """Raised to leave a build in the middle."""


def draw(folder: Path, count: int) -> None:
    """Write speckled images, no two alike."""
    rng = np.random.default_rng(0)
    speckle = [gaussian_filter(rng.normal(0, 60, (480, 640)), 1.2) * 3 + 90 for _ in range(8)]
    for i in range(count):
        rolled = np.roll(speckle[i % 8], 7 * i, 1).clip(0, 255).astype(np.uint8)
        Image.fromarray(rolled).save(folder / f"{i}.png", compress_level=3)


def stop_before_end(count: int, done: int) -> None:
    """Stop a build when all but one image are packed."""
    if done == count - 1:
        raise StoppedError


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=6)
    given = options.parse_args()
    count, rounds, size = (12, 2, 64) if given.tiny else (given.images, given.rounds, 384)
    print_machine()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "images").mkdir()
        draw(root / "images", count)
        key = make_signing_key(root / "key.pem")
        images = catalogue_images([TransferalSet("", "images", root / "images")], size, 1)
        make = partial(build, name="c", images=images, key=key, shape=(1, size, size))
        hashes = set()

        def measured(workers: int, *, resumed: bool = False) -> float:
            if resumed:
                with suppress(StoppedError):
                    make(root / "out", workers=workers, on_progress=partial(stop_before_end, count))
            started = time.perf_counter()
            hashes.add(make(root / "out", workers=workers).hash)
            took = time.perf_counter() - started
            shutil.rmtree(root / "out")
            return took

        found = alternate(
            {
                "1 worker": partial(measured, 1),
                "2 workers": partial(measured, 2),
                "1 worker, all but one packed before": partial(measured, 1, resumed=True),
            },
            rounds,
        )
    if len(hashes) != 1:
        raise SystemExit("the catalogues differ")
    rows = []
    for side, seconds in found.items():
        ratio, low, high = paired_ratio(found["1 worker"], seconds)
        speed = count / statistics.median(seconds)
        rows.append((side, f"{speed:,.0f}", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"))
    print_table((f"{count} images", "images/s", "times as fast as 1 worker", "over the rounds"), rows)
    ratio, _, _ = paired_ratio(found["1 worker"], found["2 workers"])
    cores = os.cpu_count() or 1
    print_target(
        f"2 workers at least {TARGET:g} times as fast as 1, on 2 cores or more (here {cores})", ratio >= TARGET
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
