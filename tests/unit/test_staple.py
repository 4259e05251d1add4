"""STAPLE: by hand, by its laws, and as SimpleITK has it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.common.study import FusionSettings
from consilium.server.fusion import patterns, staple
from consilium.server.fusion.methods import method_of

SEEDS = st.integers(0, 10**6)


def fuse(*masks: np.ndarray) -> np.ndarray:
    fusion = method_of(FusionSettings(method="staple"))
    state = fusion.init(masks[0].shape)
    for mask in masks:
        fusion.fold(state, mask, 1, None)
    return fusion.finish(state)


def disc(row: float, column: float, radius: float, size: int = 32) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (255 * ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)).astype(np.uint8)[None, None]


def noisy(sites: int, seed: int, size: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    flips = rng.random((sites, 1, 1, size, size)) < rng.uniform(0.01, 0.2, (sites, 1, 1, 1, 1))
    return [np.where(flip, 255 - disc(16, 16, 9, size), disc(16, 16, 9, size)).astype(np.uint8) for flip in flips]


def test_one_round_is_worked_out_by_hand() -> None:
    # of three pixels, two sites agree on the first and the last: the prior is (2 + 1) / 2 / 3 = 1/2
    decided = np.array([[True, True], [True, False], [False, False]])
    truth, sensitivity, specificity = staple.estimate(decided, np.ones(3))
    # by symmetry one half in the middle is a fixed point: each site then has 1 of 1.5 or 1.5 of 1.5
    assert truth == pytest.approx([1.0, 0.5, 0.0], abs=1e-4)
    assert sensitivity == pytest.approx([1.0, 2 / 3], abs=1e-4)
    assert specificity == pytest.approx([2 / 3, 1.0], abs=1e-4)


@pytest.mark.parametrize(("sites", "seed"), [(3, 0), (4, 1), (5, 2), (7, 3)])
def test_it_is_what_simpleitk_gives(sites: int, seed: int) -> None:
    sitk = pytest.importorskip("SimpleITK")
    masks = noisy(sites, seed)
    filtered = sitk.STAPLEImageFilter()
    wanted = sitk.GetArrayFromImage(
        filtered.Execute([sitk.GetImageFromArray((mask[0, 0] > 0).astype(np.uint8)) for mask in masks])
    )
    assert np.abs(fuse(*masks)[0, 0] - 255 * wanted).max() <= 1
    decisions = [(mask[0, 0] > 0).ravel() for mask in masks]
    at, pattern = patterns.find(decisions, 2)
    _, sensitivity, specificity = staple.estimate(
        np.stack([one[at] for one in decisions], 1), np.bincount(pattern) * 1.0
    )
    assert sensitivity == pytest.approx(filtered.GetSensitivity(), abs=1e-4)
    assert specificity == pytest.approx(filtered.GetSpecificity(), abs=1e-4)


def test_a_site_that_is_wrong_everywhere_is_found_and_outvoted() -> None:
    honest = [disc(16, 16, 9), disc(16, 17, 9), disc(15, 16, 9)]
    fused = fuse(*honest, 255 - honest[0])
    assert ((fused >= 128) == (sum(mask.astype(int) for mask in honest) >= 2 * 255)).mean() > 0.98


@settings(deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_the_order_of_sites_changes_nothing_and_their_confidence_neither(seed: int, sites: int) -> None:
    masks = noisy(sites, seed, 24)
    wanted = fuse(*masks)
    assert (fuse(*masks[::-1]) == wanted).all()
    assert (fuse(*[np.where(mask, 140, 90).astype(np.uint8) for mask in masks]) == wanted).all()


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_sites_that_agree_give_what_they_agree_on(seed: int, sites: int) -> None:
    [mask] = noisy(1, seed, 24)
    assert (fuse(*[mask] * sites) == mask).all()
    for level in (0, 255):
        assert (fuse(*[np.full_like(mask, level)] * sites) == level).all()


@given(SEEDS, st.integers(1, 40), st.integers(2, 40))
def test_patterns_put_every_pixel_together_again(seed: int, columns: int, base: int) -> None:
    held = np.random.default_rng(seed).integers(0, base, (columns, 50)) // np.array([[2]] * columns)
    at, pattern = patterns.find(list(held), base)
    assert (held[:, at][:, pattern] == held).all()
    assert len({tuple(one) for one in held.T}) == len(at)


@given(SEEDS, st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_whatever_sites_decide_all_estimates_are_probabilities(seed: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    decided = np.array([[bool(code >> site & 1) for site in range(sites)] for code in range(2**sites)])
    pixels = np.floor(10 ** rng.uniform(0, 5, 2**sites))
    for found in staple.estimate(decided, pixels):
        assert ((found >= 0) & (found <= 1)).all()
