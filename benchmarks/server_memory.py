"""Peak memory of the collecting server, as sites and images grow: it should not.

Each case is a process of its own that runs the real `Collector` over an in-memory post. The post hands over, like
Flower's, all answers that are there at once, each mask with bytes of its own, and every site answers at once: the most
that can wait. Sites answer with coded soft masks of blurred lesions. `--pixels` lets every site lack every image, so that
the pixels travel too.

Counted is the memory that belongs to the process alone (resident, less pages of files, which the system takes back when
it likes), sampled every 10 ms, over what it was before the catalogue was opened.

    python benchmarks/server_memory.py
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from _measure import parser, print_machine, print_table, print_target
from flwr.app import RecordDict

from consilium.common import soft_mask, wire
from consilium.common.catalogue import Catalogue, CatalogueImage, build
from consilium.common.identity import make_signing_key
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.server.collect import Collector, Watched
from consilium.server.inquiry import Letter
from consilium.server.ledger import Ledger
from consilium.server.run_folder import MaskFile

CASES = ("4x500", "4x2000", "16x500", "16x2000")
TINY_CASES = ("2x20", "4x40")
FLAT = 1.25
"""The last case may take so many times the memory of the first, while its masks are 16 times as many."""


class PostInMemory:
    """Carries requests to sites that answer at once, all answers waiting until they are collected."""

    def __init__(self, sites: tuple[str, ...], masks: list[bytes]) -> None:
        self._sites, self._masks, self._number = sites, masks, 0
        self._asked: list[tuple[str, str, RecordDict]] = []

    def connected(self) -> set[str]:
        """All sites."""
        return set(self._sites)

    def send(self, site: str, _action: wire.Action, content: RecordDict, _timeout_s: float) -> str:
        """Take a request; its pixels are sent and gone."""
        self._number += 1
        request = wire.from_record(wire.PredictRequest, content).model_copy(update={"pixels": []})
        self._asked.append((str(self._number), site, wire.to_record(request)))
        return str(self._number)

    def receive(self) -> list[Letter]:
        """All answers that wait."""
        asked, self._asked = self._asked, []
        return [Letter(ticket, self._reply(site, request)) for ticket, site, request in asked]

    def _reply(self, site: str, content: RecordDict) -> RecordDict:
        request = wire.from_record(wire.PredictRequest, content)
        masks = [bytes(bytearray(self._masks[int(name[:8], 16) % len(self._masks)])) for name in request.ids]
        reply = wire.PredictReply(
            study=request.study,
            catalogue=request.catalogue,
            site=site,
            ids=request.ids,
            masks=masks,
            abstained=[],
            key=b"",
            signature=b"",
            seconds=1.0,
        )
        return wire.to_record(reply)


def own_memory() -> int:
    """Bytes that are resident and no page of a file."""
    held = psutil.Process().memory_info()
    return int(held.rss) - int(getattr(held, "shared", 0))


class Peak(threading.Thread):
    """The most `own_memory` while the block runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ended = 0, threading.Event()

    def run(self) -> None:
        """Look until told to end."""
        while not self._ended.wait(0.01):
            self.most = max(self.most, own_memory())

    def __enter__(self) -> "Peak":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def catalogue_of(folder: Path, count: int, size: int) -> Catalogue:
    """A catalogue of smooth random images, no two alike."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(size), np.arange(size)) // 4

    def images() -> Iterator[CatalogueImage]:
        for number in range(count):
            pixels = ((ramp + number) % 251).astype(np.uint8)
            pixels[:8] = rng.integers(0, 256, (8, size))
            yield CatalogueImage(pixels[None], str(number))

    return build(folder / "catalogue", "memory", images(), make_signing_key(folder / "key"))


def coded_masks(size: int) -> list[bytes]:
    """Soft masks of blurred discs, of several sizes and softness."""
    rows, columns = np.mgrid[:size, :size] / size
    coded = []
    for number in range(64):
        rng = np.random.default_rng(number)
        distance = np.hypot(rows - rng.uniform(0.3, 0.7), columns - rng.uniform(0.3, 0.7)) - rng.uniform(0.05, 0.25)
        soft = 1 / (1 + np.exp(np.clip(distance / rng.uniform(0.005, 0.05), -40, 40)))
        coded.append(soft_mask.encode(soft_mask.quantise(soft[None])))
    return coded


def collect_once(sites: int, images: int, size: int, chunk: int, pixels: bool) -> dict[str, float]:
    """Collect in this process and measure it."""
    names = tuple(f"site-{number}" for number in range(sites))
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        listed, masks = catalogue_of(folder, images, size), coded_masks(size)
        document = {
            "name": "memory",
            "preset": "paper",
            "sites": list(names),
            "image": {"size": size},
            "collect": {"chunk": chunk},
        }
        study = parse(Study, document, "benchmark")
        watched = np.linspace(0, images - 1, min(12, images)).astype(np.int64)
        before = own_memory()
        with Peak() as peak:
            began = time.perf_counter()
            Collector(
                study=study,
                catalogue=listed,
                ledger=Ledger.open(folder / "ledger.sqlite"),
                post=PostInMemory(names, masks),
                pseudo_masks=MaskFile(folder / "pseudo_masks.u8", images, study.mask_shape),
                watched=Watched(
                    watched, names, MaskFile(folder / "site_masks.u8", sites * len(watched), study.mask_shape)
                ),
                missing=dict.fromkeys(names, [pixels] * images),
                known=dict.fromkeys(names, range(len(study.labels))),
                envelope={"study": study.digest, "catalogue": listed.hash},
            ).run()
            seconds = time.perf_counter() - began
        waiting = 2 * chunk * sum(map(len, masks)) / len(masks)
        return {"before": before, "peak": peak.most, "seconds": seconds, "waiting": waiting}


def in_a_process(given: Namespace, case: str) -> dict[str, float]:
    """Run a case in a fresh process."""
    command = [sys.executable, __file__, "--once", case, "--size", str(given.size), "--chunk", str(given.chunk)]
    done = subprocess.run([*command, *(["--pixels"] if given.pixels else [])], check=True, stdout=subprocess.PIPE)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument(
        "--case", action="append", help="SITESxIMAGES; may be repeated; 4 and 16 sites with 500 and 2000 by default"
    )
    options.add_argument("--size", type=int, default=384)
    options.add_argument("--chunk", type=int, default=64, help="images in one request; two chunks are in flight")
    options.add_argument("--pixels", action="store_true", help="no site has the images yet: they travel")
    options.add_argument("--rounds", type=int, default=2, help="each case so often, alternating; the largest counts")
    options.add_argument("--once", metavar="CASE", help="one case in this process; prints JSON")
    given = options.parse_args()
    if given.once:
        sites, images = map(int, given.once.split("x"))
        print(json.dumps(collect_once(sites, images, given.size, given.chunk, given.pixels)))
        return 0
    if given.tiny:
        given.size, given.chunk, given.rounds, given.case = 64, 8, 1, list(TINY_CASES)
    cases = given.case or list(CASES)
    print_machine()
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(given.rounds):
        for case in cases if number % 2 == 0 else cases[::-1]:
            found[case].append(in_a_process(given, case))
    mib = 2.0**20
    rows, grown = [], {}
    for case, runs in found.items():
        sites, images = map(int, case.split("x"))
        top = max(runs, key=lambda run: run["peak"])
        grown[case] = (top["peak"] - top["before"]) / mib
        rows.append(
            (
                f"{sites} sites, {images:,} images",
                f"{sites * images:,}",
                f"{sites * top['waiting'] / mib:.1f}",
                f"{top['before'] / mib:.0f}",
                f"{top['peak'] / mib:.0f}",
                f"{grown[case]:.1f}",
                f"{min(run['seconds'] for run in runs):.1f}",
            )
        )
    head = (
        "case",
        "masks",
        "coded masks that wait, MiB",
        "own memory before, MiB",
        "at most, MiB",
        "growth, MiB",
        "seconds",
    )
    print_table(head, rows)
    first, last = (max(run["peak"] for run in found[case]) for case in (cases[0], cases[-1]))
    print_target(
        f"flat: own memory of the last case at most {FLAT:g} times that of the first (here {last / first:.2f}; growth "
        f"{grown[cases[0]]:.0f} and {grown[cases[-1]]:.0f} MiB)",
        last / first <= FLAT,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
