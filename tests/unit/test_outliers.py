"""Masks that stand apart from the others' of the same image: worked out by hand, and their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.common.study import FusionSettings
from consilium.server.agreement import Sample, meetings
from consilium.server.consensus import Fused, fuse
from consilium.server.fusion.methods import method_of
from consilium.server.outliers import outliers

SIZE = 8
ALPHA = 4 * 384 * 384 / SIZE**2  # four target pixels at this size
EMPTY = np.zeros((1, 1, SIZE, SIZE), np.uint8)


def blob(level: int, first: int = 0, pixels: int = 8) -> np.ndarray:
    """One image of one label: so many pixels of a level from a place on, else 0."""
    mask = EMPTY.copy()
    mask.reshape(-1)[first : first + pixels] = level
    return mask


def found(needed: int = 1, **masks: np.ndarray) -> set[str]:
    """Which sites' masks of the one image are outliers."""
    samples = {site: Sample(held, (0,)) for site, held in masks.items()}
    return {site for site, flags in outliers(samples, meetings(samples), needed).items() if flags.any()}


def fused(outliers: str, method: str = "weighted-mean", **masks: np.ndarray) -> Fused:
    options = FusionSettings.model_validate({"gate": "majority", "outliers": outliers, "method": method})
    return fuse(masks, options, alpha=ALPHA)


# ---- who is one


def test_an_inverted_mask_is_one_and_a_poor_outline_is_not() -> None:
    """a and b agree wholly; c overlaps them by 4 of 8 pixels: 1/2. The inverted one shares 55 of each of a's 8 pixels:
    2 * 440 / (1600 + 440 + 56 * 255) = 0.054."""
    target, half = blob(200), blob(200, first=4)
    assert found(a=target, b=target, c=half, d=255 - target) == {"d"}
    # medians: a (1, 0.5, 0.05) 0.5; c (0.5, 0.5, 0.05) 0.5: half of 0.5 is 0.25
    assert found(a=target, b=target, c=half) == set()


def test_a_site_alone_with_a_miss_or_a_false_alarm_is_one() -> None:
    target = blob(200)
    assert found(a=target, b=target, c=EMPTY) == {"c"}
    assert found(a=EMPTY, b=EMPTY, c=target) == {"c"}


def test_where_sites_are_divided_nobody_is_one() -> None:
    """a: (1, 0, 0, 0.05), c: (1, 0, 0, 0), e: (0.05, 0.05, 0, 0): the median site's is 0.03."""
    target = blob(200)
    assert found(a=target, b=target, c=EMPTY, d=EMPTY, e=255 - target) == set()
    assert found(a=target, b=EMPTY) == set()  # of two, who?
    assert found(a=target) == set()


def test_none_is_left_out_where_the_fusion_would_have_too_few() -> None:
    target = blob(200)
    assert found(2, a=target, b=target, c=EMPTY) == {"c"}
    assert found(3, a=target, b=target, c=EMPTY) == set()


def test_each_label_and_each_image_has_its_own_and_an_abstention_is_none() -> None:
    target = blob(200)
    both, switched = np.concatenate([target, EMPTY], axis=1), np.concatenate([target, target], axis=1)
    samples = {site: Sample(np.concatenate([both, both]), (0, 1)) for site in "ab"}
    samples["c"] = Sample(np.concatenate([both, switched]), (0, 1))
    samples["alone"] = Sample(np.concatenate([255 - target] * 2), (0,), np.array([True, False]))
    apart = outliers(samples, meetings(samples), 1)
    assert apart["c"].tolist() == [[False, False], [False, True]]
    assert apart["alone"].tolist() == [[True], [False]]
    assert not apart["a"].any()


# ---- what follows


def test_an_outlier_counts_neither_in_the_mean_nor_at_the_gate() -> None:
    masks = {"a": blob(200), "b": blob(160), "c": blob(180), "d": 255 - blob(200)}
    left_out, heard = fused("silent", **masks), fused("heard", **masks)
    assert (left_out.masks == blob(180)).all()
    assert heard.masks.max() == 149  # (200 + 160 + 180 + 55) / 4 = 148.75
    assert (left_out.seen.tolist(), heard.seen.tolist()) == ([[3]], [[4]])
    assert left_out.answered.tolist() == [[4]]  # it gave a mask: the image does not lack it
    assert {site: flags.tolist() for site, flags in left_out.silent.items() if flags.any()} == {"d": [True]}


def test_an_inverted_site_makes_no_quorum() -> None:
    """Two of five see a target; with the inverted one they would be a majority, and the gate would leave the others out."""
    target = blob(200)
    masks = {"a": target, "b": blob(190), "c": blob(120), "d": blob(110), "e": 255 - target}
    assert fused("heard", **masks).consensus.all()
    found = fused("silent", **masks)
    assert found.silent["e"].all()
    assert not found.consensus.any()  # two of four are no majority
    assert (found.masks == blob(155)).all()  # (200 + 190 + 120 + 110) / 4


@pytest.mark.parametrize("method", ["weighted-mean", "trimmed-mean", "median"])
def test_with_an_inverted_site_an_image_is_what_the_others_say(method: str) -> None:
    masks = {site: blob(level) for site, level in zip("abcd", (200, 190, 180, 170), strict=True)}
    assert (fused("silent", method, **masks, e=255 - blob(200)).masks == fused("silent", method, **masks).masks).all()


def random_masks(sites: int, seed: int) -> dict[str, np.ndarray]:
    """Two images of two labels: the same blobs, shifted, at other levels; some empty, some inverted."""
    rng = np.random.default_rng(seed)
    held = {}
    for site in range(sites):
        mask = np.zeros((2, 2, SIZE * SIZE), np.uint8)
        for image, label in np.ndindex(2, 2):
            at = int(rng.integers(0, 8))
            mask[image, label, at : at + 12] = rng.integers(100, 256) * (rng.random() < 0.8)
            if rng.random() < 0.2:
                mask[image, label] = 255 - mask[image, label]
        held[f"site-{site}"] = mask.reshape(2, 2, SIZE, SIZE)
    return held


METHODS = st.sampled_from(["weighted-mean", "trimmed-mean", "median", "staple"])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), METHODS)
def test_the_order_of_sites_changes_nothing_and_fewer_than_half_are_left_out(
    seed: int, sites: int, method: str
) -> None:
    masks = random_masks(sites, seed)
    one = fused("silent", method, **masks)
    other = fused("silent", method, **dict(reversed(masks.items())))
    assert (one.masks == other.masks).all()
    assert (one.consensus == other.consensus).all()
    samples = {site: Sample(held, (0, 1)) for site, held in masks.items()}
    needed = 3 if method == "trimmed-mean" else 1
    left_out = sum(flags.astype(int) for flags in outliers(samples, meetings(samples), needed).values())
    assert (2 * left_out < sites).all()
    assert (sites - left_out >= needed).all()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), METHODS)
def test_without_an_outlier_it_is_the_same_fusion(seed: int, sites: int, method: str) -> None:
    if method == "trimmed-mean" and sites < 3:
        return
    masks = random_masks(sites, seed)
    samples = {site: Sample(held, (0, 1)) for site, held in masks.items()}
    needed = 3 if method == "trimmed-mean" else 1
    flags = outliers(samples, meetings(samples), needed)
    whole = ~np.any([held.any(axis=1) for held in flags.values()], axis=0)
    left_out, heard = fused("silent", method, **masks), fused("heard", method, **masks)
    assert (left_out.masks[whole] == heard.masks[whole]).all()
    assert (left_out.seen[whole] == heard.seen[whole]).all()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), METHODS, st.integers(1, 9))
def test_what_is_taken_out_again_was_never_there(seed: int, sites: int, name: str, weight: int) -> None:
    method, masks = method_of(FusionSettings(method=name)), list(random_masks(sites + 1, seed).values())
    weight = weight if name == "weighted-mean" else 1
    states = [method.init(masks[0].shape) for _ in range(2)]
    for state, folded in zip(states, (masks, masks[1:]), strict=True):
        for mask in folded:
            method.fold(state, mask, weight, None)
    method.unfold(states[0], masks[0][:, [1]], weight, [1])
    method.unfold(states[0], masks[0][:, [0]], weight, [0])
    assert (method.finish(states[0]) == method.finish(states[1])).all()
