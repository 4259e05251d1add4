"""What the benchmarks share: alternating measurements, medians, and a plain table."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once a round, in an order that is turned round from one round to the next.

    Parameters
    ----------
    sides
        Each gives one measured number, mostly seconds.
    rounds
        How often; an even number gives every side each place equally often.

    Returns
    -------
    dict
        What each side gave, round by round.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            found[name].append(sides[name]())
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired_ratio(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, float, float]:
    """Ratios within each round: their median, least and most."""
    ratios = [a / b for a, b in zip(upper, lower, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--tiny", action="store_true", help="a few seconds, to see that it works; the numbers mean nothing"
    )
    return made


def print_machine() -> None:
    """Tell what was measured on, and how busy it was at the start."""
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "flwr"))
    print(f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}")
    print(f"load average at the start: {os.getloadavg()[0]:.2f}\n", flush=True)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table: texts to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| "
        + " | ".join(_padded(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    print("\n".join([lines[0], rule, *lines[1:]]) + "\n", flush=True)


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def print_target(rule: str, met: bool) -> None:
    """Print whether a target is met."""
    print(f"target: {rule}: {'met' if met else 'MISSED'}", flush=True)
