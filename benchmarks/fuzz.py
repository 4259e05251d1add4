"""Throw anything at whoever reads bytes from outside: planes, messages, kept answers, the gateway's protobuf, lists of images.

The inputs and what must hold are those of `tests/fuzzing.py`, which the tests try on a few examples; here on many, by coverage:
an input that takes a way through our code that none took before is kept, and the next ones are made from those that were kept.
Where atheris is installed (pip install atheris) its libFuzzer guides; else a small loop of this script does, which traces lines.
Atheris tells edges of the byte code, the loop steps from line to line: their numbers are not to be compared.

    python benchmarks/fuzz.py --examples 20000
"""

import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from _measure import parser, print_machine, print_table, print_target
from hypothesis import HealthCheck, given, settings

try:
    import atheris
except ImportError:
    atheris = None

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["consilium"]) if atheris else nullcontext():
    from tests.fuzzing import TARGETS, Target

OURS = (*(str(ROOT / room) for room in ("clients", "common", "server")), "/consilium/")
HANGS_S = 10
LONGEST = 4096
BEGINNINGS = (64, 256, 1024, LONGEST)
"""Bytes of the inputs that the first ones are made from: a shorter one draws nothing."""
TELL_EVERY = 1000

Edge = tuple[str, int, int]


def entry_of(target: Target, counted: Counter[bool]) -> Callable[[bytes], bytes | None]:
    """Give what tries one input, drawn from bytes; it gives the bytes that were used, None if they draw nothing."""

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def try_it(given_input: object) -> None:
        counted[target.check(given_input)] += 1

    entry: Callable[[bytes], bytes | None] = try_it.hypothesis.fuzz_one_input
    return entry


@contextmanager
def traced(edges: set[Edge]) -> Iterator[None]:
    """Note every step from line to line in our code."""

    def in_ours(frame: FrameType, _event: str, _value: object) -> Any:
        name = frame.f_code.co_filename
        if not any(part in name for part in OURS):
            return None
        before = 0

        def line(inner: FrameType, event: str, _value: object) -> Any:
            nonlocal before
            if event == "line":
                edges.add((name, before, inner.f_lineno))
                before = inner.f_lineno
            return line

        return line

    sys.settrace(in_ours)
    try:
        yield
    finally:
        sys.settrace(None)


@contextmanager
def no_hang() -> Iterator[None]:
    """Interrupt what takes too long."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"an input took more than {HANGS_S} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a few places, cut, repeat, or go on as another input does."""
    held = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(held) + 1)
        match rng.randrange(5):
            case 0 if held:
                held[at % len(held)] = rng.randrange(256)
            case 1:
                del held[at : at + rng.randint(1, 16)]
            case 2:
                held[at:at] = rng.randbytes(rng.randint(1, 16))
            case 3:
                held[at:at] = held[at : at + rng.randint(1, 32)]
            case _:
                held[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(held[:LONGEST])


def guided(target: Target, examples: int, seed: int) -> tuple[Counter[bool], int, str]:
    """Try a target; gives how many inputs were accepted and refused, how many edges were seen, and what went wrong."""
    counted: Counter[bool] = Counter()
    entry, rng = entry_of(target, counted), random.Random(seed)  # noqa: S311 - no secret
    edges: set[Edge] = set()
    corpus = [rng.randbytes(length) for length in BEGINNINGS]
    for _ in range(examples):
        fresh = rng.random() < 0.1
        data = rng.randbytes(rng.randint(1, 1024)) if fresh else mutated(rng.choice(corpus), rng.choice(corpus), rng)
        before = len(edges)
        try:
            with no_hang(), traced(edges):
                entry(data)
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", []))
            return counted, len(edges), f"{type(error).__name__}: {error} {notes} (input {data.hex()})"
        if len(edges) > before:
            corpus.append(data)
    return counted, len(edges), ""


def with_atheris(target: Target, examples: int, seed: int, corpus: Path) -> None:
    """Let libFuzzer try a target; ends the process, with a status that is not 0 if something was found."""
    counted: Counter[bool] = Counter()
    entry, rng, tried = entry_of(target, counted), random.Random(seed), 0  # noqa: S311 - no secret
    for length in BEGINNINGS:
        (corpus / f"random-{seed}-{length}").write_bytes(rng.randbytes(length))

    def try_and_count(data: bytes) -> None:
        nonlocal tried
        entry(data)
        tried += 1
        if tried % TELL_EVERY == 0 or tried == examples:
            print(f"accepted {counted[True]}, refused {counted[False]}", flush=True)

    options = [
        f"-runs={examples}",
        f"-seed={seed + 1}",
        f"-timeout={HANGS_S}",
        "-rss_limit_mb=4096",
        f"-max_len={LONGEST}",
        "-len_control=0",
        f"-artifact_prefix={corpus}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_and_count)
    atheris.Fuzz()


def attack(target: Target, examples: int, seed: int) -> tuple[str, ...]:
    """One row of the table."""
    began = time.perf_counter()
    if atheris is None:
        counted, edges, fault = guided(target, examples, seed)
        told, speed = (str(counted[True]), str(counted[False]), str(edges)), examples / (time.perf_counter() - began)
    else:
        with tempfile.TemporaryDirectory() as corpus:
            command = [sys.executable, __file__, "--only", target.name, "--examples", str(examples)]
            command += ["--seed", str(seed), "--corpus", corpus]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        told, speed = told_by_atheris(done.stdout, done.stderr)
        fault = done.stderr[-2000:] if done.returncode else ""
    return target.name, *told, f"{time.perf_counter() - began:.0f}", f"{speed:.0f}", fault or "none"


def told_by_atheris(output: str, errors: str) -> tuple[tuple[str, ...], float]:
    """Inputs accepted, refused, and edges, as libFuzzer and `with_atheris` told last; and inputs a second."""
    counts = re.findall(r"accepted (\d+), refused (\d+)", output)
    edges = re.findall(r"cov: (\d+)", errors)
    runs = re.findall(r"Done (\d+) runs in (\d+) second", errors)
    speed = int(runs[-1][0]) / max(1, int(runs[-1][1])) if runs else 0.0
    return (*(counts or [("", "")])[-1], (edges or [""])[-1]), speed


def main() -> int:
    """Attack every target and print what was found."""
    options = parser(__doc__)
    options.add_argument("--examples", type=int, default=20_000, help="inputs for each target")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=[target.name for target in TARGETS], help="this target alone")
    options.add_argument(
        "--corpus", type=Path, help="folder from which atheris begins, and to which it adds; with --only"
    )
    chosen = options.parse_args()
    examples = 60 if chosen.tiny else chosen.examples
    if chosen.corpus and chosen.only and atheris:
        chosen.corpus.mkdir(parents=True, exist_ok=True)
        with_atheris(
            next(target for target in TARGETS if target.name == chosen.only), examples, chosen.seed, chosen.corpus
        )
    print_machine()
    if atheris is None:
        print("guided by this script's own line tracing; for libFuzzer: pip install atheris\n", flush=True)
    rows = [attack(target, examples, chosen.seed) for target in TARGETS if chosen.only in (None, target.name)]
    print_table(("what is read", "accepted", "refused", "edges", "seconds", "inputs a second", "faults"), rows)
    print_target(
        "no crash, no hang, no memory out of proportion, nothing wrong accepted", all(row[-1] == "none" for row in rows)
    )
    return 0 if all(row[-1] == "none" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
