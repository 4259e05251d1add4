"""What the judged step is held to, and whether it keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Row

GAIN: Final = 3.0
"""Dice points that the student is to be above the best single teacher, on average over the seeds."""
OVER_PAPER: Final = 5.0
"""Dice points above the paper's student."""
DISTANCE: Final = 0.6
"""Of the way from the best teacher to training with everybody's data."""
LOSS: Final = 1.0
"""Most Dice points that a site may lose against its own teacher, on its own test, on average over the seeds."""

NOTHING: Final = "nothing to compare"


@dataclass(frozen=True)
class Target:
    """One of them: the rule, what came, and whether that meets it; None where nothing was measured that could tell."""

    rule: str
    came: str
    met: bool | None


def targets(rows: Sequence[Row], scenario: str, judged: str, paper: str) -> list[Target]:
    """Hold a scenario's results against the targets.

    Parameters
    ----------
    rows
        Results; those of other scenarios are left out.
    scenario
        Which.
    judged, paper
        Names of the two steps.
    """
    here = [row for row in rows if row.scenario == scenario]
    student = by_seed(here, Kind.STUDENT, judged)
    best, above, pooled = best_teacher(here), by_seed(here, Kind.STUDENT, paper), by_seed(here, Kind.POOLED_DATA)
    gains = _differences(student, best)
    return [
        _least("at least as good as the best single teacher, with every seed", gains, 0.0, smallest=True),
        _least(f"{GAIN:g} points above the best single teacher, on average", gains, GAIN),
        _least(
            f"{OVER_PAPER:g} points above the paper's student, on average", _differences(student, above), OVER_PAPER
        ),
        _distance(gains, _differences(pooled, best)),
        _no_site_loses(here, judged),
    ]


def by_seed(rows: Sequence[Row], kind: Kind, step: str = "", part: str = POOLED) -> dict[int, float]:
    """Dice by seed of what is there once for each, in percent."""
    return {row.seed: row.dice_mean for row in rows if (row.kind, row.step, row.part) == (kind, step, part)}


def best_teacher(rows: Sequence[Row], part: str = POOLED) -> dict[int, float]:
    """Dice by seed of the teacher that is best there: which one it is may differ."""
    found: dict[int, float] = {}
    for row in rows:
        if (row.kind, row.part) == (Kind.TEACHER, part):
            found[row.seed] = max(row.dice_mean, found.get(row.seed, 0.0))
    return found


def own_tests(rows: Sequence[Row], step: str) -> dict[str, float]:
    """By site: the step's student less the site's own teacher, on the site's own test, the mean over the seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.kind, row.step) == (Kind.STUDENT, step) and row.part not in (POOLED, UNLABELLED):
            found.setdefault(row.part, []).append(row.difference)
    return {site: fmean(values) for site, values in found.items()}


def _differences(ours: dict[int, float], theirs: dict[int, float]) -> dict[int, float]:
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def _least(rule: str, found: dict[int, float], least: float, *, smallest: bool = False) -> Target:
    if not found:
        return Target(rule, NOTHING, None)
    listed = ", ".join(f"{value:+.2f}" for value in found.values())
    value = min(found.values()) if smallest else fmean(found.values())
    return Target(rule, f"{value:+.2f} ({listed})", value >= least)


def _distance(gains: dict[int, float], distances: dict[int, float]) -> Target:
    """Compare means over the seeds that have both: a ratio of each seed's would be wild where a distance is small."""
    rule = f"{DISTANCE:.0%} of the way from the best teacher to training on everybody's data"
    seeds = gains.keys() & distances.keys()
    if not seeds:
        return Target(rule, NOTHING, None)
    gain, distance = fmean(gains[seed] for seed in seeds), fmean(distances[seed] for seed in seeds)
    share = f"{gain / distance:.0%}, " if distance > 0 else ""
    return Target(rule, f"{share}{gain:+.2f} of {distance:+.2f}", gain >= DISTANCE * distance)


def _no_site_loses(rows: Sequence[Row], judged: str) -> Target:
    rule = f"no site loses more than {LOSS:g} point against its own teacher, on its own test"
    found = own_tests(rows, judged)
    if not found:
        return Target(rule, NOTHING, None)
    return Target(
        rule, ", ".join(f"{site} {value:+.2f}" for site, value in found.items()), min(found.values()) >= -LOSS
    )
