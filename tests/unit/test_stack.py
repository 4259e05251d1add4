"""The logistic stack learns whom to believe."""

import numpy as np
import pytest

from consilium.common import metrics
from consilium.common.errors import DataError
from consilium.common.study import FusionSettings
from consilium.server.consensus import fuse
from consilium.server.fusion import stack

SIZE = 48
ALPHA = 256.0


def scene(count: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One fair site, one that misses half of the targets, one inverted."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    truth = np.zeros((count, 1, SIZE, SIZE), np.uint8)
    masks = {name: np.zeros((count, 1, SIZE, SIZE), np.uint8) for name in ("fair", "blind", "inverted")}
    for i in range(count):
        row, column = rng.uniform(14, 34, 2)
        distance = 9 - np.hypot(rows - row, columns - column)
        truth[i, 0] = distance > 0

        def drawn(noise: float, distance: np.ndarray = distance) -> np.ndarray:
            return 255 / (1 + np.exp(-(distance + rng.normal(0, noise) + rng.normal(0, noise, (SIZE, SIZE)))))

        masks["fair"][i, 0] = drawn(1.0)
        masks["blind"][i, 0] = drawn(1.0) if rng.random() < 0.5 else 3
        masks["inverted"][i, 0] = 255 - drawn(0.3)
    return masks, truth


def test_it_uses_what_an_inverted_site_knows_and_beats_the_mean() -> None:
    masks, truth = scene(24, 0)
    learned = stack.fit(masks, truth, ALPHA)
    others, real = scene(24, 1)
    stacked = metrics.dice(stack.apply(learned, others), real).mean()
    mean = metrics.dice(fuse(others, FusionSettings(), alpha=ALPHA).masks, real).mean()
    assert stacked > 0.9
    assert stacked > mean + 0.3


def test_it_is_the_same_every_time_and_in_whatever_order_sites_come() -> None:
    masks, truth = scene(6, 2)
    wanted = stack.apply(stack.fit(masks, truth, ALPHA), masks)
    turned = dict(reversed(masks.items()))
    assert (stack.apply(stack.fit(turned, truth, ALPHA), turned) == wanted).all()


def test_one_site_that_is_right_gives_that_site() -> None:
    _, truth = scene(6, 3)
    masks = {"a": truth * np.uint8(255)}
    fused = stack.apply(stack.fit(masks, truth, ALPHA), masks)
    assert ((fused >= 128) == (truth > 0)).all()


def test_each_label_has_a_regression_of_its_own() -> None:
    masks, truth = scene(8, 4)
    doubled = {name: np.concatenate([mask, 255 - mask], axis=1) for name, mask in masks.items()}
    both = stack.fit(doubled, np.concatenate([truth, truth], axis=1), ALPHA)
    alone = stack.fit(masks, truth, ALPHA)
    assert both.weights[0] == pytest.approx(alone.weights[0])
    assert metrics.dice(stack.apply(both, doubled)[:, [1]], truth).mean() > 0.9


def test_the_threshold_is_worked_out_by_hand() -> None:
    fused = np.array([[[200, 100, 40, 0]]], np.uint8)
    # target: the first two pixels; from level 41 to 100 on Dice is 1, and 100 is nearest to one half
    assert stack._best_threshold(fused, np.array([[[True, True, False, False]]])) == 99.5 / 255


def test_what_cannot_be_fitted_is_refused() -> None:
    masks, truth = scene(3, 5)
    with pytest.raises(DataError, match="needs target pixels and others; 0 of"):
        stack.fit(masks, truth * 0, ALPHA)
    with pytest.raises(DataError, match="one shape"):
        stack.fit(masks, truth[:2], ALPHA)
    with pytest.raises(DataError, match="fitted on blind, fair, inverted; got masks of fair"):
        stack.apply(stack.fit(masks, truth, ALPHA), {"fair": masks["fair"]})
