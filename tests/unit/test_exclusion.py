"""Exclusion: hand-worked statistics, and both thresholds to the pixel and the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import shannon_entropy

from consilium.server.exclusion import (
    Reason,
    Statistics,
    reasons,
    reasons_by_consensus,
    statistics,
    without_far_sets,
)


def planes(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)[None, None]


def test_a_constant_mask_has_no_entropy_and_is_all_target_or_none() -> None:
    found = statistics(np.stack([np.full((1, 4, 4), level, np.uint8) for level in (0, 77, 128, 255)]))
    assert found.entropy_bits.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert found.target_pixels.tolist() == [0, 0, 16, 16]


def test_entropy_is_that_of_the_256_bin_histogram() -> None:
    # half 0, a quarter 10, two eighths 20 and 30: 1/2 + 2/4 + 3/8 + 3/8 bits
    found = statistics(planes([0, 0, 0, 0], [10, 10, 20, 30]))
    assert found.entropy_bits[0] == pytest.approx(1.75)


def test_a_target_pixel_is_strictly_above_one_half() -> None:
    assert statistics(planes([127, 128])).target_pixels[0] == 1  # 127 / 255 < 0.5 < 128 / 255


def test_several_labels_count_as_their_union() -> None:
    two = np.array([[[[255, 0], [0, 0]], [[255, 255], [0, 0]]]], np.uint8)
    assert statistics(two).target_pixels[0] == 2


def test_the_entropy_of_several_labels_is_that_of_their_union() -> None:
    """Levels 255, 255, 9, 0 of the union: 1/2 * 1 + 2 * 1/4 * 2 bits. An image with one label only is not left out for it."""
    two = np.array([[[[255, 0], [9, 0]], [[0, 255], [0, 0]]]], np.uint8)
    assert statistics(two).entropy_bits[0] == pytest.approx(1.5)
    one_label = np.array([[[[255, 255], [255, 255]], [[0, 0], [0, 0]]]], np.uint8)
    assert reasons(statistics(one_label), alpha=4 * 384**2 / 4, beta=0.0, size=2) == [Reason.KEPT]


@given(st.integers(0, 2**32 - 1), st.integers(1, 256))
def test_entropy_agrees_with_scikit_image_and_is_at_most_8_bits(seed: int, levels: int) -> None:
    mask = np.random.default_rng(seed).integers(0, levels, (1, 1, 16, 16)).astype(np.uint8)
    entropy = statistics(mask).entropy_bits[0]
    assert entropy == pytest.approx(shannon_entropy(mask[0, 0]), abs=1e-12)
    assert 0 <= entropy <= 8


def test_both_thresholds_are_strict_and_joined_by_or() -> None:
    found = Statistics(np.array([255, 256, 256, 255]), np.array([1.0, 2.5, 2.5000001, 3.0]))
    assert reasons(found, alpha=256, beta=2.5, size=384) == [
        Reason.FEW_TARGET_PIXELS,
        Reason.KEPT,
        Reason.HIGH_ENTROPY,
        Reason.BOTH,
    ]


def test_alpha_scales_with_the_area() -> None:
    found = Statistics(np.array([63, 64]), np.zeros(2))  # 256 pixels at 384 x 384 are 64 at 192 x 192
    assert reasons(found, alpha=256, beta=2.5, size=192) == [Reason.FEW_TARGET_PIXELS, Reason.KEPT]


def test_without_beta_no_entropy_is_too_high() -> None:
    assert reasons(Statistics(np.array([9]), np.array([8.0])), alpha=1, beta=None, size=384) == [Reason.KEPT]


def test_the_mean_of_four_binary_teachers_never_reaches_the_papers_beta() -> None:
    votes = np.random.default_rng(0).integers(0, 2, (4, 64, 64))
    mean = np.floor(votes.mean(axis=0) * 255 + 0.5).astype(np.uint8)[None, None]
    assert statistics(mean).entropy_bits[0] <= np.log2(5) < 2.5


def test_by_consensus_a_fuzzy_image_stays_and_one_that_no_quorum_sees_goes() -> None:
    """256 target pixels at 384 x 384 are 16 at 96 x 96."""
    found = Statistics(np.array([20, 20, 3, 3]), np.array([7.5, 1.0, 0.1, 7.5]))
    consensus = np.array([True, False, True, False])
    assert reasons_by_consensus(found, consensus, alpha=256, size=96) == [
        Reason.KEPT,
        Reason.NO_CONSENSUS,
        Reason.FEW_TARGET_PIXELS,
        Reason.FEW_AND_NO_CONSENSUS,
    ]


SETS = ["breast", "breast", "thyroid", "thyroid", "thyroid"]
WEIGHTS = np.array([0.6, 0.2, 0.3, 0.1, 0.9])
"""Kept images of the breast weigh 0.4 on average, those of the thyroid 0.2: half as much."""
DECIDED = [Reason.KEPT, Reason.KEPT, Reason.KEPT, Reason.KEPT, Reason.NO_CONSENSUS]


@pytest.mark.parametrize(("least", "far"), [(0.51, True), (0.49, False), (0.0, False)])
def test_a_set_is_far_below_a_share_of_the_best_sets_mean_weight(least: float, far: bool) -> None:
    found = without_far_sets(DECIDED, SETS, WEIGHTS, least)
    thyroid = Reason.FAR_SET if far else Reason.KEPT
    assert found == [Reason.KEPT, Reason.KEPT, thyroid, thyroid, Reason.NO_CONSENSUS]


def test_a_set_alone_is_never_far_and_none_is_where_nothing_is_kept() -> None:
    assert without_far_sets(DECIDED[:2], SETS[:2], WEIGHTS[:2], 0.99) == DECIDED[:2]
    assert without_far_sets([Reason.NO_CONSENSUS] * 5, SETS, WEIGHTS, 0.99) == [Reason.NO_CONSENSUS] * 5
