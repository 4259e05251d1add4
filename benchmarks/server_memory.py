"""Peak memory of the collecting server, as sites and images grow: it should not.

Each case is a process of its own that runs the real `Collector` over an in-memory post. The post hands over, like
Flower's, all answers that are there at once, each mask with bytes of its own, and every site answers at once: the most
that can wait. Sites answer with coded soft masks of blurred lesions. `--pixels` lets every site lack every image, so that
the pixels travel too. Under the paper preset a mask is folded and forgotten; under the consensus preset the masks of a chunk
are kept, coded, as those that are unlike all the others' are taken out again when all are there.

Counted is the memory that belongs to the process alone (resident, less pages of files, which the system takes back when
it likes), sampled every 10 ms, over what it was before anything was asked.

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
from consilium.common.catalogue import CatalogueImage, build, open_catalogue
from consilium.common.identity.signing import make_signing_key
from consilium.common.presets import DEFAULT, Preset
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.server.collect import Collector, Watched
from consilium.server.inquiry import Letter
from consilium.server.ledger import Ledger
from consilium.server.run_folder import MaskFile

CASES = ("4x500", "4x2000", "16x500", "16x2000")
PRESETS: tuple[Preset, ...] = ("paper", "consensus")
IN_FLIGHT = 2
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


def make_catalogue(folder: Path, count: int, size: int) -> None:
    """A catalogue of smooth random images, no two alike."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(size), np.arange(size)) // 4

    def images() -> Iterator[CatalogueImage]:
        for number in range(count):
            pixels = ((ramp + number) % 251).astype(np.uint8)
            pixels[:8] = rng.integers(0, 256, (8, size))
            yield CatalogueImage(pixels[None], str(number))

    build(folder / "catalogue", "memory", images(), make_signing_key(folder / "key"))


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


def collect_once(preset: Preset, sites: int, source: Path, chunk: int, pixels: bool) -> dict[str, float]:
    """Collect in this process and measure it; `source` is where `make_catalogue` put the images."""
    names = tuple(f"site-{number}" for number in range(sites))
    listed = open_catalogue(source / "catalogue")
    images, size = len(listed), listed.pixels.shape[-1]
    masks = coded_masks(size)
    document = {
        "name": "memory",
        "preset": preset,
        "sites": list(names),
        "image": {"size": size},
        "collect": {"chunk": chunk, "chunks-in-flight": IN_FLIGHT},
    }
    study = parse(Study, document, "benchmark")
    watched = np.linspace(0, images - 1, min(12, images)).astype(np.int64)
    with tempfile.TemporaryDirectory() as root, Peak() as peak:
        folder, before, began = Path(root), own_memory(), time.perf_counter()
        Collector(
            study=study,
            catalogue=listed,
            ledger=Ledger.open(folder / "ledger.sqlite"),
            post=PostInMemory(names, masks),
            pseudo_masks=MaskFile(folder / "pseudo_masks.u8", images, study.mask_shape),
            watched=Watched(watched, names, MaskFile(folder / "site_masks.u8", sites * len(watched), study.mask_shape)),
            missing=dict.fromkeys(names, [pixels] * images),
            known=dict.fromkeys(names, range(len(study.labels))),
            envelope={"study": study.digest, "catalogue": listed.hash},
        ).run()
        seconds = time.perf_counter() - began
    waiting = sites * IN_FLIGHT * chunk * sum(map(len, masks)) / len(masks)
    return {"before": before, "peak": peak.most, "seconds": seconds, "waiting": waiting}


def in_a_process(given: Namespace, preset: Preset, sites: int, source: Path) -> dict[str, float]:
    """Run a case in a fresh process."""
    once = [preset, str(sites), str(source)]
    command = [sys.executable, __file__, "--once", *once, "--chunk", str(given.chunk)]
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
    options.add_argument(
        "--chunk", type=int, default=64, help=f"images in one request; {IN_FLIGHT} chunks are in flight"
    )
    options.add_argument("--pixels", action="store_true", help="no site has the images yet: they travel")
    options.add_argument("--rounds", type=int, default=2, help="each case so often, alternating; the largest counts")
    options.add_argument(
        "--once", nargs=3, metavar=("PRESET", "SITES", "FOLDER"), help="one case in this process; JSON"
    )
    given = options.parse_args()
    if given.once:
        preset, sites, source = given.once
        print(json.dumps(collect_once(preset, int(sites), Path(source), given.chunk, given.pixels)))
        return 0
    if given.tiny:
        given.size, given.chunk, given.rounds, given.case = 64, 8, 1, list(TINY_CASES)
    cases = [tuple(map(int, case.split("x"))) for case in given.case or CASES]
    print_machine()
    with tempfile.TemporaryDirectory() as root:
        for images in {images for _, images in cases}:
            make_catalogue(Path(root) / str(images), images, given.size)
        for preset in PRESETS:
            print_preset(given, preset, cases, Path(root))
    return 0


def print_preset(given: Namespace, preset: Preset, cases: list[tuple[int, ...]], root: Path) -> None:
    """Measure and print the cases under one preset."""
    found: dict[tuple[int, ...], list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(given.rounds):
        for case in cases if number % 2 == 0 else cases[::-1]:
            found[case].append(in_a_process(given, preset, case[0], root / str(case[1])))
    rows = []
    for (sites, images), runs in found.items():
        top = max(runs, key=lambda run: run["peak"])
        numbers = (top["waiting"], top["before"], top["peak"], top["peak"] - top["before"])
        seconds = min(run["seconds"] for run in runs)
        what = (preset, f"{sites} sites, {images:,} images", f"{sites * images:,}")
        rows.append((*what, *(f"{number / 2**20:.0f}" for number in numbers), f"{seconds:.1f}"))
    head = (
        "preset",
        "case",
        "masks",
        "coded masks in flight, MiB",
        "own memory before",
        "at most",
        "growth",
        "seconds",
    )
    print_table(head, rows)
    first, last = (max(run["peak"] for run in found[case]) for case in (cases[0], cases[-1]))
    told = f"own memory of the last case is {last / first:.2f} times that of the first"
    if preset == DEFAULT:
        print(f"{told}: it grows with the sites, by the coded masks of the chunks in flight\n")
    else:
        print_target(f"flat: {told}, at most {FLAT:g} times", last / first <= FLAT)


if __name__ == "__main__":
    sys.exit(main())
