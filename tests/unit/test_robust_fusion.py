"""The trimmed mean and the median: their laws, and what they hold against."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import DataError, SettingsError
from consilium.common.settings import parse
from consilium.common.study import FusionSettings, Study
from consilium.server.fusion.all_masks import put_in_place
from consilium.server.fusion.methods import method_of

SHAPE = (2, 1, 3, 4)
SEEDS = st.integers(0, 10**6)


def fuse(masks: list[np.ndarray], method: str, trim: int = 1) -> np.ndarray:
    fusion = method_of(FusionSettings(method=method, trim=trim))
    state = fusion.init(masks[0].shape)
    for mask in masks:
        fusion.fold(state, mask, 1, None)
    return fusion.finish(state)


def levels(*values: int) -> list[np.ndarray]:
    return [np.full(SHAPE, value, np.uint8) for value in values]


def masks(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8))


@pytest.mark.parametrize(
    ("method", "trim", "given_levels", "expected"),
    [
        ("trimmed-mean", 1, (0, 10, 255), 10),
        ("trimmed-mean", 1, (255, 10, 11, 0), 10),  # 10.5, halves down
        ("trimmed-mean", 1, (3, 200, 100, 101, 0), 68),  # (3 + 100 + 101) / 3
        ("trimmed-mean", 2, (9, 1, 250, 2, 255), 9),
        ("median", 1, (7,), 7),
        ("median", 1, (0, 255), 127),  # two binary teachers that disagree make no target pixel
        ("median", 1, (255, 0, 255), 255),
        ("median", 1, (9, 1, 250, 2), 5),  # 5.5, halves down
    ],
)
def test_a_pixel_worked_out_by_hand(method: str, trim: int, given_levels: tuple[int, ...], expected: int) -> None:
    assert (fuse(levels(*given_levels), method, trim) == expected).all()


@given(SEEDS, st.integers(1, 9), st.integers(0, 2), st.sampled_from(["median", "trimmed-mean"]))
def test_they_are_what_numpy_gives_on_sorted_levels_in_whatever_order(
    seed: int, count: int, extra: int, method: str
) -> None:
    trim = max(1, (count - 1) // 2)
    given_masks = masks(count if method == "median" else 2 * trim + 1 + extra, seed)
    ordered = np.sort(np.stack(given_masks), axis=0).astype(np.int64)
    middle = ordered[trim : len(ordered) - trim]
    if method == "median":
        expected = (ordered[(count - 1) // 2] + ordered[count // 2]) // 2
    else:
        expected = (2 * middle.sum(axis=0) + len(middle) - 1) // (2 * len(middle))
    for order in itertools.islice(itertools.permutations(given_masks), 0, 24, 7):
        assert (fuse(list(order), method, trim) == expected).all()


@given(SEEDS, st.integers(3, 7), st.sampled_from(["median", "trimmed-mean"]))
def test_the_result_lies_between_the_inputs(seed: int, count: int, method: str) -> None:
    given_masks = masks(count, seed)
    fused = fuse(given_masks, method)
    assert (fused >= np.min(given_masks, axis=0)).all()
    assert (fused <= np.max(given_masks, axis=0)).all()


@given(SEEDS, st.integers(1, 3), st.sampled_from(["median", "trimmed-mean"]))
def test_sites_that_agree_give_what_they_agree_on_whatever_few_others_send(seed: int, trim: int, method: str) -> None:
    honest, *liars = masks(1 + trim, seed)
    assert (fuse([*liars, *[honest] * (trim + 1)], method, trim) == honest).all()


@given(SEEDS)
def test_one_teacher_gives_that_teacher(seed: int) -> None:
    [mask] = masks(1, seed)
    assert (fuse([mask], "median") == mask).all()
    assert (fuse([mask] * 3, "trimmed-mean") == mask).all()


@given(SEEDS, st.integers(1, 2))
def test_trimmed_liars_cannot_move_a_pixel_beyond_what_the_honest_say(seed: int, trim: int) -> None:
    honest, lies = masks(trim + 2, seed), masks(trim, seed + 1)
    fused = fuse([*honest, *lies], "trimmed-mean", trim)
    assert (fused >= np.min(honest, axis=0)).all()
    assert (fused <= np.max(honest, axis=0)).all()


KNOWN = st.sets(st.integers(0, 1), min_size=1).map(sorted)


@given(SEEDS, st.lists(KNOWN, max_size=4), st.sampled_from(["median", "trimmed-mean"]))
def test_each_label_is_fused_over_the_sites_that_know_it(seed: int, known: list[list[int]], method: str) -> None:
    known = [[0, 1], [1, 0], [0, 1], *known]
    whole = np.random.default_rng(seed).integers(0, 256, (len(known), 2, 2, 3, 4)).astype(np.uint8)
    fusion = method_of(FusionSettings(method=method))
    state = fusion.init((2, 2, 3, 4))
    for rows, mask in zip(known, whole, strict=True):
        fusion.fold(state, mask[:, rows], 1, rows)
    fused = fusion.finish(state)
    for label in range(2):
        alone = fuse([whole[i][:, [label]] for i, rows in enumerate(known) if label in rows], method)
        assert (fused[:, [label]] == alone).all()


@given(SEEDS, st.integers(1, 9), st.integers(0, 4))
def test_put_in_place_orders_the_ends_and_loses_no_level(seed: int, count: int, ends: int) -> None:
    ends = min(ends, (count + 1) // 2)
    planes = [mask[0, 0] for mask in masks(count, seed)]
    ordered = np.sort(np.stack(planes), axis=0)
    put_in_place(planes, ends)
    assert (np.sort(np.stack(planes), axis=0) == ordered).all()
    for place in [*range(ends), *range(count - ends, count)]:
        assert (planes[place] == ordered[place]).all()


def test_a_state_keeps_masks_of_its_own_and_finishes_twice_alike() -> None:
    fusion = method_of(FusionSettings(method="median"))
    state, given_masks = fusion.init(SHAPE), masks(3, 0)
    before = [mask.copy() for mask in given_masks]
    for mask in given_masks:
        fusion.fold(state, mask, 1, None)
    assert (fusion.finish(state) == fusion.finish(state)).all()
    assert all((mask == held).all() for mask, held in zip(given_masks, before, strict=True))


def test_too_few_sites_for_the_trim_are_refused() -> None:
    with pytest.raises(DataError, match=r"at least 3 sites' masks of every label; 2 were folded in of label 0"):
        fuse(levels(1, 2), "trimmed-mean")
    with pytest.raises(DataError, match="at least 1 sites' masks"):
        method_of(FusionSettings(method="median")).finish(method_of(FusionSettings(method="median")).init(SHAPE))


def test_weights_are_for_the_weighted_mean() -> None:
    fusion = method_of(FusionSettings(method="median"))
    with pytest.raises(DataError, match="every site weighs 1"):
        fusion.fold(fusion.init(SHAPE), levels(1)[0], 2, None)


@pytest.mark.parametrize(
    ("sites", "values", "rule"),
    [
        (["a", "b"], {"fusion": {"method": "trimmed-mean"}}, "needs at least 3 sites, and a collect.quorum of as many"),
        (["a", "b", "c"], {"fusion": {"method": "trimmed-mean", "trim": 2}}, "needs at least 5 sites"),
        (
            ["a", "b", "c"],
            {"fusion": {"method": "trimmed-mean"}, "collect": {"quorum": 2}},
            "got 3 sites and a quorum of 2",
        ),
        (["a", "b"], {"fusion": {"method": "median", "weights": {"a": 2}}}, "every site counts as one"),
    ],
)
def test_settings_that_cannot_work_are_refused(sites: list[str], values: dict[str, object], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        parse(Study, {"name": "s", "sites": sites, **values}, "x")
