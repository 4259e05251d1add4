"""The tables of an ablation."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Row
from consilium.server.ablation.settings import Ablation
from consilium.server.ablation.targets import Target, best_teacher, by_seed, own_tests
from consilium.server.experiment.render import NONE, Cell, Table

BASELINES: Final = {
    Kind.FEDAVG: "FedAvg",
    Kind.POOLED_DATA: "all sites' labels",
    Kind.TRUE_MASKS: "unlabelled images, true masks",
}
"""The student's network, trained with labels that stay at the sites, with all of them in one place, and as a faultless fusion
would have it."""


def all_tables(settings: Ablation, rows: Sequence[Row], found: Sequence[Target]) -> list[Table]:
    """Give every table there is something for: targets, ladder and sites of the first scenario, and all scenarios."""
    first = settings.scenario[0]
    here = [row for row in rows if row.scenario == first.name]
    tables = [
        targets_table(found, settings.judged),
        ladder_table(here, settings.steps_of(first)),
        sites_table(here, settings.judged),
    ]
    if any(row.kind is Kind.ANSWERING for row in here):
        tables.append(answering_table(here, settings.steps_of(first)))
    if len(settings.scenario) > 1:
        tables.append(scenarios_table(settings, rows))
    return tables


def targets_table(found: Sequence[Target], judged: str) -> Table:
    """Whether the judged step keeps what it is held to."""
    words = {True: "met", False: "missed", None: NONE}
    lines = [(Cell(one.rule), Cell(one.came), Cell(words[one.met], best=one.met is True)) for one in found]
    return Table(
        "targets",
        f"What the student of the step {judged} is held to.",
        ("Target", "Found (Dice points)", "Result"),
        tuple(lines),
        (
            "In brackets: each seed's.",
            "Of the way: the student's gain over the best teacher, of the gain that training on everybody's data has; means over "
            "the seeds.",
        ),
    )


def ladder_table(rows: Sequence[Row], steps: Sequence[str]) -> Table:
    """The baselines, and under them what each step is worth."""
    seeds = len({row.seed for row in rows})
    lines = [
        _line(
            "best teacher", list(best_teacher(rows, UNLABELLED).values()), None, [], list(best_teacher(rows).values())
        ),
        _line("mean of the teachers", _of(rows, UNLABELLED, Kind.TEACHER), None, [], _of(rows, POOLED, Kind.TEACHER)),
        _line("worst teacher", _worst(rows, UNLABELLED), None, [], _worst(rows, POOLED)),
    ]
    for kind, name in BASELINES.items():
        lines.append(_line(name, [], None, [], _of(rows, POOLED, kind), _rows(rows, POOLED, kind)))
    for step in steps:
        students = _rows(rows, POOLED, Kind.STUDENT, step)
        lines.append(
            _line(
                step,
                _of(rows, UNLABELLED, Kind.ENSEMBLE, step),
                _kept(_rows(rows, POOLED, Kind.ENSEMBLE, step)),
                _of(rows, POOLED, Kind.ENSEMBLE, step),
                [row.dice_mean for row in students],
                students,
                min(own_tests(rows, step).values(), default=None),
            )
        )
    return Table(
        "ladder",
        f"Dice (%) on the pooled test, each step laid over one before it; means over {seeds} seed{'s' * (seeds != 1)}.",
        ("", "Fused, shared", "Kept", "Fused, test", "Model, test", "Over best teacher", "Worst site"),
        tuple(lines),
        (
            "Fused: the teachers' masks as the step fuses them, on the transferal images of the labelled data set, whose labels "
            "only this table knows, and on the pooled test. The rows above the steps have no fusion: there, the "
            "teachers' own masks.",
            "FedAvg, all sites' labels, true masks: the judged step's network, trained at the same compute; the last on the "
            "labelled data set's own unlabelled images, with their true masks, as a faultless fusion would have it.",
            "Model: the teacher or the baseline itself; of a step, its student.",
            "Kept: transferal images after exclusion, of how many.",
            "In brackets: the mean of the seeds' intervals at 95 %, by resampling whole groups of near duplicates.",
            "Worst site: the student less the site's own teacher, on that site's own test, where it is least.",
            "A dash: not measured. A step without a model was only fused, or left no image to train on.",
        ),
        spare=("Kept", "Fused, shared"),
    )


def sites_table(rows: Sequence[Row], step: str) -> Table:
    """What each site has of the judged step: its own teacher, and the student, on its own test."""
    own = own_tests(rows, step)
    lines = []
    for site in dict.fromkeys(row.model for row in rows if row.kind is Kind.TEACHER):
        teacher = [row.dice_mean for row in rows if (row.kind, row.model, row.part) == (Kind.TEACHER, site, site)]
        student = _of(rows, site, Kind.STUDENT, step)
        images = {row.n for row in rows if row.part == site}
        others = [_mean(_of(rows, site, kind)) for kind in BASELINES]
        lines.append(
            (
                Cell(f"{site} (n = {min(images)}{f' to {max(images)}' if len(images) > 1 else ''})"),
                Cell(_mean(teacher)),
                Cell(_mean(student)),
                Cell(f"{own[site]:+.2f}" if site in own else NONE, best=own.get(site, -1.0) >= 0),
                *map(Cell, others),
            )
        )
    return Table(
        "sites",
        f"Dice (%) of each site's own teacher and of the student of {step}, on the site's own test images.",
        ("Site", "Own teacher", "Student", "Difference", *BASELINES.values()),
        tuple(lines),
        spare=tuple(reversed(BASELINES.values())),
    )


def answering_table(rows: Sequence[Row], steps: Sequence[str]) -> Table:
    """What the sites answer with, in the steps in which it is not the teacher they had."""
    sites = list(dict.fromkeys(row.model for row in rows if row.kind is Kind.TEACHER))
    answering = [_rows(rows, POOLED, Kind.TEACHER), *(_rows(rows, POOLED, Kind.ANSWERING, step) for step in steps)]
    lines = [
        (
            Cell(name),
            *(Cell(_mean(row.dice_mean for row in held if row.model == site)) for site in sites),
            Cell(_mean(_most(held))),
            Cell(_mean(_of(rows, POOLED, Kind.ENSEMBLE, name))),
            Cell(_mean(_of(rows, POOLED, Kind.STUDENT, name))),
        )
        for name, held in zip(("own teacher", *steps), answering, strict=True)
        if held
    ]
    return Table(
        "answering",
        "Dice (%) on the pooled test of what each site answers with, where that is not its own teacher; means over the seeds.",
        ("Step", *sites, "The best", "Fused", "Student"),
        tuple(lines),
        (
            "A site with a head start has trained the student's pretrained network with its own labels; in a second study, the "
            "first one's student. The best: of each seed, which site's it is may differ, and nobody knows beforehand.",
        ),
    )


def scenarios_table(settings: Ablation, rows: Sequence[Row]) -> Table:
    """The first and the judged step in every scenario, beside the baselines."""
    paper, judged = settings.step[0].name, settings.judged
    lines = []
    for scenario in settings.scenario:
        here = [row for row in rows if row.scenario == scenario.name]
        own = own_tests(here, judged)
        worst = min(own, key=lambda site: own[site]) if own else ""
        numbers = [
            list(best_teacher(here).values()),
            _of(here, POOLED, Kind.TEACHER),
            _of(here, POOLED, Kind.ENSEMBLE, paper),
            _of(here, POOLED, Kind.ENSEMBLE, judged),
            list(by_seed(here, Kind.STUDENT, paper).values()),
            list(by_seed(here, Kind.STUDENT, judged).values()),
            *(_of(here, POOLED, kind) for kind in BASELINES),
        ]
        lines.append(
            (
                Cell(scenario.name),
                *(Cell(_mean(one)) for one in numbers),
                Cell(f"{own[worst]:+.2f} ({worst})" if worst else NONE),
            )
        )
    return Table(
        "scenarios",
        "Dice (%) on the pooled test of each scenario; means over its seeds.",
        (
            "Scenario", "Best teacher", "Mean teacher", f"Fused, {paper}", f"Fused, {judged}", f"Student, {paper}",
            f"Student, {judged}", *BASELINES.values(), "Worst site",
        ),
        tuple(lines),
        ("Test images differ where sites see other cases: compare within a row.",),
        ("Mean teacher", f"Fused, {paper}", *BASELINES.values(), f"Fused, {judged}"),
    )  # fmt: skip


def _line(
    name: str,
    unlabelled: Sequence[float],
    kept: str | None,
    fused: Sequence[float],
    model: Sequence[float],
    intervals: Sequence[Row] = (),
    worst: float | None = None,
) -> tuple[Cell, ...]:
    ends = _interval([(row.dice_low, row.dice_high) for row in intervals])
    gain, gains = NONE, _interval([(row.difference_low, row.difference_high) for row in intervals], "+")
    if intervals:
        gain = f"{fmean(row.difference for row in intervals):+.2f}"
    return (
        Cell(name),
        Cell(_mean(unlabelled)),
        Cell(kept or NONE),
        Cell(_mean(fused)),
        Cell(f"{_mean(model)}{ends}"),
        Cell(f"{gain}{gains}", best=bool(intervals) and fmean(row.difference for row in intervals) > 0),
        Cell(NONE if worst is None else f"{worst:+.2f}"),
    )


def _interval(ends: Iterable[tuple[float, float]], sign: str = "") -> str:
    held = list(ends)
    if not held:
        return ""
    low, high = (fmean(values) for values in zip(*held, strict=True))
    return f" ({low:{sign}.1f} to {high:{sign}.1f})"


def _kept(rows: Sequence[Row]) -> str:
    """Images kept, of how many; means over the seeds."""
    before = [row.images_before for row in rows if row.images_before is not None]
    after = [row.images_after for row in rows if row.images_after is not None]
    return f"{fmean(after):.0f} of {fmean(before):.0f}" if before and after else NONE


def _rows(rows: Iterable[Row], part: str, kind: Kind, step: str = "") -> list[Row]:
    return [row for row in rows if (row.part, row.kind, row.step) == (part, kind, step)]


def _of(rows: Iterable[Row], part: str, kind: Kind, step: str = "") -> list[float]:
    return [row.dice_mean for row in _rows(rows, part, kind, step)]


def _worst(rows: Sequence[Row], part: str) -> list[float]:
    return [min(held) for held in _by_seed(_rows(rows, part, Kind.TEACHER))]


def _most(rows: Sequence[Row]) -> list[float]:
    return [max(held) for held in _by_seed(rows)]


def _by_seed(rows: Sequence[Row]) -> list[list[float]]:
    return [[row.dice_mean for row in rows if row.seed == seed] for seed in dict.fromkeys(row.seed for row in rows)]


def _mean(values: Iterable[float]) -> str:
    held = list(values)
    return f"{fmean(held):.2f}" if held else NONE
