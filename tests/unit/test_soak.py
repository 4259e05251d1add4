"""What `benchmarks/soak.py` makes of a SuperNode that hangs, on a process that really does."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from soak import COLLECTING, HANGING, HANGING_TO_DEATH, Glance, Kill, Process, Soak, targets


@pytest.fixture
def hung() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def state(process: psutil.Process) -> str:
    """Whether it runs, was stopped, or is dead."""
    return {"stopped": "stopped", "zombie": "dead"}.get(process.status(), "runs")


def strike(hung: psutil.Process, victim: str, stage: str = COLLECTING) -> Kill | None:
    soak = Soak(Path(), Path(), Path(), random.Random(0))
    return soak._kill([Process("SuperNode", "west", hung.pid)], Glance(stage), [victim])


@pytest.mark.parametrize(("victim", "ends"), [(HANGING, "runs"), (HANGING_TO_DEATH, "dead")])
def test_it_is_stopped_until_its_site_is_shown_as_away_and_then_goes_on_or_dies(
    hung: psutil.Process, victim: str, ends: str
) -> None:
    kill = strike(hung, victim)
    assert kill is not None
    assert kill.site == "west"
    signal.sigtimedwait([], 0.2)
    kill.at = 100.0
    kill.look(Glance(COLLECTING, unanswered=(("north", 1), ("west", 4))), [], 140.0)
    assert state(hung) == "stopped"
    kill.look(Glance(COLLECTING, unanswered=(("west", 4),), away=frozenset({"west"})), [], 155.0)
    signal.sigtimedwait([], 0.2)
    assert state(hung) == ends
    assert (kill.reported_s, kill.others_owed, kill.made_good) == (55.0, 0, False)
    kill.look(Glance(COLLECTING, answers=(("north", 4), ("west", 1))), [], 200.0)
    assert (kill.back_s, kill.made_good) == (100.0, True)
    assert all(kept for _, kept in targets([kill]))


def test_answers_that_the_other_sites_owe_or_a_site_that_nobody_misses_miss_the_target() -> None:
    ended = {"again_s": 61.0, "further_s": 70.0, "back_s": 70.0}
    costly = Kill(HANGING, "west", 1, Glance(COLLECTING), 0.0, **ended, reported_s=50.0, others_owed=2)
    unseen = Kill(HANGING, "west", 1, Glance(COLLECTING), 0.0, **ended, reported_s=None, others_owed=0)
    assert [kept for _, kept in targets([costly])] == [True, True, False]
    assert [kept for _, kept in targets([unseen])] == [False, True, True]


def test_it_hangs_only_where_someone_would_miss_it(hung: psutil.Process) -> None:
    assert strike(hung, HANGING, "distill") is None
    assert state(hung) == "runs"
