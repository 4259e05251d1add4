"""The rows of an ablation: what each compares, and which targets are met or missed by them."""

import numpy as np

from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Place, Row, scored
from consilium.server.ablation.targets import targets


def row(
    kind: Kind, seed: int, dice: float, *, step: str = "", model: str = "", part: str = POOLED, gain: float = 0.0
) -> Row:
    return Row("even", seed, step, kind, model, part, 4, 4, dice, dice, dice, "", gain, gain, gain, None, None, None)


def results(
    *students: float, paper: float = 60.0, pooled: float = 75.0, losses: tuple[float, float] = (0.0, 0.0)
) -> list[Row]:
    """Per seed a student beside teachers of 60 and 65; sites alpha and bravo differ by `losses` on their own tests."""
    rows = []
    for seed, student in enumerate(students):
        rows += [row(Kind.TEACHER, seed, dice, model=name) for name, dice in (("alpha", 60.0), ("bravo", 65.0))]
        rows += [row(Kind.STUDENT, seed, student, step="new"), row(Kind.STUDENT, seed, paper, step="paper")]
        rows += [row(Kind.POOLED_DATA, seed, pooled), row(Kind.FEDAVG, seed, 50.0)]
        rows += [
            row(Kind.STUDENT, seed, 0.0, step="new", part=site, gain=loss)
            for site, loss in zip(("alpha", "bravo"), losses, strict=True)
        ]
        rows.append(row(Kind.ENSEMBLE, seed, 99.0, step="new", part=UNLABELLED))
    return rows


def met(rows: list[Row]) -> list[bool | None]:
    return [one.met for one in targets(rows, "even", "new", "paper")]


def test_targets_are_met_at_their_bounds_and_missed_below() -> None:
    assert met(results(65.0, 77.0, losses=(-1.0, 3.0))) == [True, True, True, True, True]  # +6 on average, of 10
    assert met(results(64.9, 77.1)) == [False, True, True, True, True]  # below the best teacher with one seed
    assert met(results(67.9, 67.9)) == [True, False, True, False, True]  # +2.9 of 10
    assert met(results(70.9, 70.9)) == [True, True, True, False, True]  # +5.9 of 10
    assert met(results(71.0, 71.0, paper=66.1)) == [True, True, False, True, True]  # +4.9 over the paper's
    assert met(results(71.0, 71.0, losses=(-1.1, 9.0))) == [True, True, True, True, False]
    assert (
        met(results(64.0, 64.0, pooled=60.0))[3] is True
    )  # everybody's data is worth less than one teacher: nothing to go


def test_a_site_loses_on_average_over_the_seeds() -> None:
    rows = results(71.0, 71.0)
    rows += [row(Kind.STUDENT, seed, 0.0, step="new", part="delta", gain=gain) for seed, gain in enumerate((-2.5, 1.0))]
    assert met(rows)[4] is True  # -0.75
    found = targets(rows, "even", "new", "paper")
    assert "delta -0.75" in found[4].came
    assert found[0].came == "+6.00 (+6.00, +6.00)"


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert met([one for one in results(71.0) if one.step != "paper"])[2] is None
    assert met([]) == [None] * 5


def test_a_row_compares_image_by_image_and_resamples_groups() -> None:
    values, others = np.array([0.5, 0.9, 0.7, 0.7]), np.array([0.4, 0.8, 0.6, 0.6])
    found = scored(Place("even", 0, "new", Kind.STUDENT), POOLED, ["a", "a", "b", ""], values, "bravo", others)
    assert (found.n, found.groups, found.dice_mean, found.difference) == (4, 3, 70.0, 10.0)
    assert found.difference_low == found.difference_high == 10.0  # the same on every image
    one = scored(Place("even", 0, "new", Kind.STUDENT), POOLED, ["a", "a"], values[:2], "bravo", others[:2])
    assert one.dice_low == one.dice_high == 70.0  # one group: nothing varies
