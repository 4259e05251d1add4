"""The weighted mean: its laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import DataError
from consilium.server.fusion import weighted_mean
from consilium.server.fusion.weighted_mean import WEIGHT_LIMIT

SHAPE = (2, 1, 3, 4)


def fuse(masks: list[np.ndarray], weights: list[int]) -> np.ndarray:
    state = weighted_mean.init(masks[0].shape)
    for mask, weight in zip(masks, weights, strict=True):
        weighted_mean.fold(state, mask, weight)
    return weighted_mean.finish(state)


def masks(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8))


def test_the_mean_is_rounded_to_the_nearest_level_halves_down() -> None:
    pair = [np.full(SHAPE, level, np.uint8) for level in (0, 1)]
    assert (fuse(pair, [1, 1]) == 0).all()  # 0.5
    assert (fuse(pair, [2, 1]) == 0).all()  # 1/3
    assert (fuse([np.full(SHAPE, 255, np.uint8), np.full(SHAPE, 100, np.uint8)], [3, 1]) == 216).all()  # 216.25


def test_two_binary_teachers_that_disagree_make_no_target_pixel() -> None:
    votes = [np.full(SHAPE, level, np.uint8) for level in (0, 255)]
    assert (fuse(votes, [1, 1]) == 127).all()  # exactly one half is not above one half


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
def test_order_does_not_matter(seed: int, weights: list[int]) -> None:
    given_masks = masks(len(weights), seed)
    results = {
        fuse([given_masks[i] for i in order], [weights[i] for i in order]).tobytes()
        for order in itertools.islice(itertools.permutations(range(len(weights))), 6)
    }
    assert len(results) == 1


@given(st.integers(0, 10**6), st.integers(1, WEIGHT_LIMIT))
def test_one_teacher_gives_that_teacher_whatever_its_weight(seed: int, weight: int) -> None:
    [mask] = masks(1, seed)
    assert (fuse([mask], [weight]) == mask).all()


@given(st.integers(0, 255), st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
def test_a_constant_gives_that_constant(level: int, weights: list[int]) -> None:
    assert (fuse([np.full(SHAPE, level, np.uint8)] * len(weights), weights) == level).all()


@given(st.integers(0, 10**6), st.lists(st.integers(1, 100), min_size=2, max_size=4), st.integers(2, 100))
def test_scaling_all_weights_changes_nothing(seed: int, weights: list[int], factor: int) -> None:
    given_masks = masks(len(weights), seed)
    assert (fuse(given_masks, weights) == fuse(given_masks, [factor * weight for weight in weights])).all()


@given(st.integers(0, 10**6), st.lists(st.integers(1, 1000), min_size=2, max_size=4))
def test_it_is_the_float64_mean_within_rounding(seed: int, weights: list[int]) -> None:
    given_masks = masks(len(weights), seed)
    mean = np.average(np.stack(given_masks).astype(np.float64), axis=0, weights=weights)
    assert np.abs(fuse(given_masks, weights) - mean).max() <= 0.5 + 1e-9


def test_the_largest_weights_do_not_overflow() -> None:
    assert (fuse([np.full(SHAPE, 255, np.uint8)] * 2, [WEIGHT_LIMIT - 1, 1]) == 255).all()
    state = weighted_mean.init(SHAPE)
    weighted_mean.fold(state, np.zeros(SHAPE, np.uint8), WEIGHT_LIMIT)
    with pytest.raises(DataError, match="sum to at most"):
        weighted_mean.fold(state, np.zeros(SHAPE, np.uint8), 1)


@pytest.mark.parametrize("bad", [np.zeros((2, 1, 3, 5), np.uint8), np.zeros(SHAPE, np.float32)])
def test_masks_of_another_shape_or_kind_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="soft masks here are uint8"):
        weighted_mean.fold(weighted_mean.init(SHAPE), bad)


# ---- partial labels: each label over the sites that know it


def one_pixel(*levels: int) -> np.ndarray:
    return np.array(levels, np.uint8).reshape(1, -1, 1, 1)


def test_each_label_is_the_mean_over_the_sites_that_know_it() -> None:
    """north knows a and b, east only a with weight 3, west only b: a = (100 + 3 * 200) / 4, b = (50 + 250) / 2."""
    state = weighted_mean.init((1, 2, 1, 1))
    weighted_mean.fold(state, one_pixel(100, 50))
    weighted_mean.fold(state, one_pixel(200), 3, known=[0])
    weighted_mean.fold(state, one_pixel(250), 1, known=[1])
    assert weighted_mean.finish(state).ravel().tolist() == [175, 150]
    assert (state.weights.tolist(), state.sites.tolist()) == ([4, 2], [2, 2])


def test_masks_come_in_the_order_their_labels_are_named_in() -> None:
    state = weighted_mean.init((1, 3, 1, 1))
    weighted_mean.fold(state, one_pixel(1, 2), known=[2, 0])
    weighted_mean.fold(state, one_pixel(9), known=[1])
    assert weighted_mean.finish(state).ravel().tolist() == [2, 9, 1]


KNOWN = st.sets(st.integers(0, 2), min_size=1).map(sorted)


@given(st.integers(0, 10**6), st.lists(st.tuples(KNOWN, st.integers(1, 100)), min_size=1, max_size=5))
def test_a_label_is_fused_as_if_it_were_the_only_one_whatever_the_order(
    seed: int, sites: list[tuple[list[int], int]]
) -> None:
    sites = [([0, 1, 2], 1), *sites]  # so that every label is known
    whole = np.random.default_rng(seed).integers(0, 256, (len(sites), 2, 3, 3, 4)).astype(np.uint8)
    results = set()
    for order in (range(len(sites)), range(len(sites) - 1, -1, -1)):
        state = weighted_mean.init((2, 3, 3, 4))
        for i in order:
            known, weight = sites[i]
            weighted_mean.fold(state, whole[i][:, known], weight, known)
        results.add(weighted_mean.finish(state).tobytes())
    [fused] = results
    for label in range(3):
        those = [i for i, (known, _) in enumerate(sites) if label in known]
        alone = fuse([whole[i][:, [label]] for i in those], [sites[i][1] for i in those])
        assert (np.frombuffer(fused, np.uint8).reshape(2, 3, 3, 4)[:, [label]] == alone).all()


def test_a_label_that_nobody_knew_is_not_made_up() -> None:
    state = weighted_mean.init((1, 2, 1, 1))
    weighted_mean.fold(state, one_pixel(7), known=[1])
    with pytest.raises(DataError, match=r"of every label; none were folded in of \[0\]"):
        weighted_mean.finish(state)


@pytest.mark.parametrize("known", [[], [0, 0], [2], [-1]])
def test_labels_that_are_not_there_or_twice_are_refused(known: list[int]) -> None:
    with pytest.raises(DataError, match="positions from 0 to 1"):
        weighted_mean.fold(weighted_mean.init((1, 2, 1, 1)), one_pixel(*[5] * len(known)), known=known)


def test_nothing_folded_is_nothing_to_finish() -> None:
    with pytest.raises(DataError, match="at least one site"):
        weighted_mean.finish(weighted_mean.init(SHAPE))
