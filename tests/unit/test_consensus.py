"""The gate, the quorum, the sites' weights, and what comes of them together."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.common.errors import DataError
from consilium.common.study import FusionSettings
from consilium.common.validation import Validation, from_card
from consilium.server import gate
from consilium.server.consensus import Fused, fuse
from consilium.server.fusion.methods import method_of
from consilium.server.site_weights import site_weights

SIZE = 8
ALPHA = 4 * 384 * 384 / SIZE**2  # four target pixels at this size
SEEDS = st.integers(0, 10**6)


def blob(level: int, pixels: int = 8, *, labels: int = 1) -> np.ndarray:
    """One image: so many pixels of a level in each label, else 0."""
    mask = np.zeros((1, labels, SIZE, SIZE), np.uint8)
    mask.reshape(1, labels, -1)[:, :, :pixels] = level
    return mask


def gated(**masks: np.ndarray) -> Fused:
    return fuse(masks, FusionSettings(gate="majority"), alpha=ALPHA)


def same(one: Fused, other: Fused) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "agreement")
        for name in ("masks", "seen", "answered", "consensus", "agreement")
    )


def random_masks(sites: int, seed: int, images: int = 3, labels: int = 2) -> dict[str, np.ndarray]:
    """Masks of which some are empty."""
    rng = np.random.default_rng(seed)
    shape = (sites, images, labels, SIZE, SIZE)
    masks = rng.integers(0, 256, shape) * (rng.random((*shape[:3], 1, 1)) < 0.6)
    return {f"site-{i}": mask.astype(np.uint8) for i, mask in enumerate(masks)}


def validations(sites: int, seed: int) -> dict[str, Validation]:
    rng = np.random.default_rng(seed)
    return {
        f"site-{i}": Validation(
            float(rng.uniform(20, 90)), int(rng.integers(1, 60)), 1.0, *rng.integers(0, 3, 2).tolist()
        )
        for i in range(sites)
        if rng.random() < 0.8
    }


OPTIONS = st.builds(
    FusionSettings,
    method=st.sampled_from(["weighted-mean", "median", "staple"]),
    gate=st.sampled_from(["none", "majority", 1, 2]),
    weights=st.sampled_from(["validation", {}]),
)


# ---- the gate


def test_a_site_sees_a_target_from_alpha_pixels_above_one_half_on() -> None:
    three, four, gray = blob(128, 3), blob(128, 4), blob(127, 30)
    assert gate.sees(np.concatenate([three, four, gray]), ALPHA).tolist() == [[False], [True], [False]]
    assert gate.sees(np.zeros((1, 1, 8, 8), np.uint8), 0.0).tolist() == [[False]]  # one pixel at least


def test_a_majority_is_more_than_half_and_a_number_no_more_than_answered() -> None:
    answered = np.arange(6)
    assert gate.quorum("majority", answered).tolist() == [1, 1, 2, 2, 3, 3]
    assert gate.quorum(2, answered).tolist() == [0, 1, 2, 2, 2, 2]
    assert gate.quorum("none", answered).tolist() == [0] * 6


def test_a_site_that_misses_the_target_is_silent_where_a_majority_sees_it() -> None:
    found = gated(a=blob(200), b=blob(160), c=blob(0))
    assert (found.masks == blob(180)).all()
    assert found.seen.tolist() == [[2]]
    assert found.answered.tolist() == [[3]]
    assert found.consensus.all()
    assert found.agreement.tolist() == [pytest.approx(2 * 160 / 360, abs=1e-4)]  # of a and b; c is not in it


def test_where_no_majority_sees_a_target_nobody_is_silent() -> None:
    found = gated(a=blob(240), b=blob(6), c=blob(0))
    assert (found.masks == blob(82)).all()  # 246 / 3
    assert not found.consensus.any()


def test_an_inverted_site_is_outvoted_where_there_is_no_target() -> None:
    empty = np.zeros_like(blob(0))
    found = gated(a=empty, b=empty, c=empty, inverted=255 - empty)
    assert not found.consensus.any()
    assert found.masks.max() == 64  # 255 / 4: no target pixel


def test_sites_with_more_false_alarms_than_misses_are_never_silent() -> None:
    masks = {"a": blob(200), "b": blob(200), "c": blob(0)}
    careful = Validation(80.0, 20, misses=1, false_alarms=3)
    found = fuse(masks, FusionSettings(gate="majority"), {"c": careful}, ALPHA)
    assert (found.masks == blob(133)).all()
    assert found.seen.tolist() == [[2]]
    assert gate.heard_always("majority", {"c": careful, "d": Validation(80.0, 20, misses=3, false_alarms=3)}) == {"c"}


def test_each_label_is_gated_for_itself_among_the_sites_that_know_it() -> None:
    masks = {"a": blob(200), "b": np.concatenate([blob(0), blob(100)], axis=1), "c": blob(240)}
    known = {"a": [0], "b": [0, 1], "c": [0]}
    found = fuse(masks, FusionSettings(gate="majority"), alpha=ALPHA, known=known)
    assert (found.masks[:, [0]] == blob(220)).all()  # b is silent of label 0
    assert (found.masks[:, [1]] == blob(100)).all()  # no site sees label 1: nobody is silent
    assert found.seen.tolist() == [[2, 0]]
    assert found.answered.tolist() == [[3, 1]]
    assert found.consensus.all()


def test_agreement_needs_two_sites() -> None:
    assert np.isnan(fuse({"a": blob(200)}, FusionSettings(), alpha=ALPHA).agreement).all()


# ---- laws


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), OPTIONS)
def test_the_order_of_sites_changes_nothing(seed: int, sites: int, options: FusionSettings) -> None:
    masks, told = random_masks(sites, seed), validations(sites, seed)
    wanted = fuse(masks, options, told, ALPHA)
    for order in itertools.islice(itertools.permutations(masks), 1, 24, 11):
        assert same(wanted, fuse({site: masks[site] for site in order}, options, told, ALPHA))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), st.sampled_from(["weighted-mean", "median", "staple"]))
def test_without_options_it_is_the_plain_fusion(seed: int, sites: int, method: str) -> None:
    options, masks = FusionSettings(method=method), random_masks(sites, seed)
    plain = method_of(options)
    state = plain.init((3, 2, SIZE, SIZE))
    for mask in masks.values():
        plain.fold(state, mask, 1, None)
    assert (fuse(masks, options, {}, ALPHA).masks == plain.finish(state)).all()


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.sampled_from(["weighted-mean", "median", "staple"]))
def test_a_site_that_always_answers_nothing_changes_no_image_that_a_quorum_sees(
    seed: int, sites: int, least: int, method: str
) -> None:
    options = FusionSettings(gate=least, method=method)
    masks = random_masks(sites, seed, labels=1)
    before = fuse(masks, options, {}, ALPHA)
    after = fuse({**masks, "silent": np.zeros_like(masks["site-0"])}, options, {}, ALPHA)
    met = (before.seen >= least)[:, 0]
    assert (before.masks[met] == after.masks[met]).all()
    np.testing.assert_array_equal(before.agreement[met], after.agreement[met])
    assert (after.consensus <= before.consensus).all()


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), OPTIONS)
def test_images_do_not_change_each_other(seed: int, sites: int, options: FusionSettings) -> None:
    masks, told = random_masks(sites, seed), validations(sites, seed)
    wanted = fuse(masks, options, told, ALPHA)
    alone = [fuse({site: mask[[i]] for site, mask in masks.items()}, options, told, ALPHA) for i in range(3)]
    assert (wanted.masks == np.concatenate([one.masks for one in alone])).all()
    assert (wanted.consensus == np.concatenate([one.consensus for one in alone])).all()


def test_no_site_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="at least one site"):
        fuse({}, FusionSettings())


# ---- weights


def test_weights_are_the_squared_dice_after_ten_images_of_the_mean() -> None:
    told = {"a": Validation(80.0, 30), "b": Validation(60.0, 10)}
    # the mean is 75; a: (2400 + 750) / 40 = 78.75, b: (600 + 750) / 20 = 67.5; (67.5 / 78.75)^2 = 0.7347
    assert site_weights(["a", "b"], told) == {"a": 1000, "b": 735}


def test_no_weight_is_less_than_a_quarter_and_a_silent_site_has_the_median() -> None:
    told = {"a": Validation(90.0, 1000), "b": Validation(10.0, 1000), "c": Validation(80.0, 1000)}
    found = site_weights(["d", "c", "b", "a"], told)
    assert found["a"] == 1000
    assert found["b"] == 250
    assert 780 <= found["c"] <= 800
    assert found["d"] == found["c"]


def test_sites_that_say_nothing_weigh_the_same() -> None:
    assert site_weights(["a", "b"], {}) == {"a": 1, "b": 1}
    assert site_weights(["a", "b"], {"a": Validation(0.0, 20)}) == {"a": 1, "b": 1}


def test_a_mean_by_validation_is_worked_out_by_hand() -> None:
    told = {"a": Validation(80.0, 30), "b": Validation(60.0, 10)}
    found = fuse({"a": blob(200), "b": blob(100)}, FusionSettings(weights="validation"), told, ALPHA)
    assert (found.masks == blob(158)).all()  # (1000 * 200 + 735 * 100) / 1735 = 157.6


@given(SEEDS, st.integers(1, 8))
def test_weights_are_bounded_and_better_sites_with_as_many_images_weigh_no_less(seed: int, sites: int) -> None:
    told = {site: Validation(found.dice, 20) for site, found in validations(sites, seed).items()}
    weights = site_weights([f"site-{i}" for i in range(sites)], told)
    assert len(weights) == sites
    assert 4 * min(weights.values()) >= max(weights.values())
    ordered = sorted(told, key=lambda site: told[site].dice)
    assert [weights[site] for site in ordered] == sorted(weights[site] for site in ordered)


# ---- what a site says


def test_a_card_gives_back_what_was_put_into_it() -> None:
    found = Validation(71.25, 17, 1.5, 2, 1)
    assert from_card({"validation": found.to_card()}) == found


@pytest.mark.parametrize(
    "told",
    [
        None,
        3,
        {},
        {"dice-mean": 171, "images": 5, "temperature": 1, "misses": 0, "false-alarms": 0},
        {"dice-mean": float("nan"), "images": 5, "temperature": 1, "misses": 0, "false-alarms": 0},
        {"dice-mean": 71, "images": 0, "temperature": 1, "misses": 0, "false-alarms": 0},
        {"dice-mean": 71, "images": 1e999, "temperature": 1, "misses": 0, "false-alarms": 0},
        {"dice-mean": 71, "images": 5, "temperature": 0, "misses": 0, "false-alarms": 0},
        {"dice-mean": 71, "images": 5, "temperature": 1, "misses": -1, "false-alarms": 0},
    ],
)
def test_what_cannot_be_true_is_not_believed(told: object) -> None:
    assert from_card({"validation": told}) is None
