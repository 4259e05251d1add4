"""Agreement between sites: worked out by hand, and its laws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consilium.server.agreement import WHOLE, Agreement, Sample, of_chunk, sample, soft_dice, stand_apart


def masks(*levels: int) -> np.ndarray:
    """One image of one label, its pixels in a row."""
    return np.array(levels, np.uint8).reshape(1, 1, 1, -1)


def test_soft_dice_worked_out_by_hand() -> None:
    """2 * (100 + 0 + 10) / (100 + 20 + 10 + 200 + 0 + 40) = 220 / 370 = 0.5945..."""
    assert soft_dice(masks(100, 20, 10), masks(200, 0, 40)).tolist() == [5945]


def test_equals_agree_wholly_empty_ones_too_and_strangers_not_at_all() -> None:
    assert soft_dice(masks(3, 0, 9), masks(3, 0, 9)).tolist() == [WHOLE]
    assert soft_dice(masks(0, 0), masks(0, 0)).tolist() == [WHOLE]
    assert soft_dice(masks(255, 0), masks(0, 255)).tolist() == [0]
    assert soft_dice(masks(0, 0), masks(0, 1)).tolist() == [0]


@given(st.integers(0, 10**6))
def test_it_is_the_same_both_ways_and_between_nothing_and_all(seed: int) -> None:
    ours, theirs = np.random.default_rng(seed).integers(0, 256, (2, 3, 2, 4, 4)).astype(np.uint8)
    found = soft_dice(ours, theirs)
    assert (found == soft_dice(theirs, ours)).all()
    assert ((found >= 0) & (found <= WHOLE)).all()


def test_one_liar_does_not_lower_the_honest() -> None:
    """Of four that agree and one that does not, each honest site meets three equals and the liar."""
    samples = {name: Sample(masks(255, 0), (0,)) for name in "abcd"} | {"liar": Sample(masks(0, 255), (0,))}
    found = of_chunk(samples)
    assert found == dict.fromkeys("abcd", (1, WHOLE)) | {"liar": (1, 0)}


def test_two_partners_count_by_their_mean() -> None:
    samples = {"a": Sample(masks(255, 0), (0,)), "b": Sample(masks(255, 0), (0,)), "c": Sample(masks(0, 255), (0,))}
    assert of_chunk(samples) == {"a": (1, WHOLE // 2), "b": (1, WHOLE // 2), "c": (1, 0)}


def test_only_labels_that_both_know_are_compared_and_a_site_alone_has_none() -> None:
    both = np.array([[[[255]], [[7]]]], np.uint8)  # labels 2 and 0, in the site's own order
    samples = {"both": Sample(both, (2, 0)), "one": Sample(masks(7), (0,)), "alone": Sample(masks(9), (1,))}
    assert of_chunk(samples) == {"both": (1, WHOLE), "one": (1, WHOLE)}


def test_two_sites_are_compared_on_images_that_both_answered_and_on_no_others() -> None:
    """Of three images: a and b agree on the first; a and c do not on the second; nobody else answered the third."""
    held = np.array([255, 0, 255, 0, 255, 0], np.uint8).reshape(3, 1, 1, 2)
    upside = held[..., ::-1].copy()

    def answer(masks: np.ndarray, *images: bool) -> Sample:
        return Sample(masks, (0,), np.array(images))

    found = of_chunk({
        "a": answer(held, True, True, True), "b": answer(held, True, False, False), "c": answer(upside, False, True, False)
    })  # fmt: skip
    assert found == {"a": (2, WHOLE), "b": (1, WHOLE), "c": (1, 0)}
    assert of_chunk({"a": answer(held, True, False, False), "b": answer(held, False, True, True)}) == {}


@given(st.integers(0, 10**6))
def test_abstaining_from_images_is_as_if_they_were_not_there_for_that_site(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, (4, 3, 1, 4, 4)).astype(np.uint8)
    answered = rng.random((4, 3)) < 0.6
    together = of_chunk({str(i): Sample(masks[i], (0,), answered[i]) for i in range(4)})
    alone = [of_chunk({str(i): Sample(masks[i, [n]], (0,)) for i in np.flatnonzero(answered[:, n])}) for n in range(3)]
    for site in map(str, range(4)):
        parts = [found[site] for found in alone if site in found]
        assert together.get(site, (0, 0)) == (sum(n for n, _ in parts), sum(total for _, total in parts))


@given(st.integers(0, 10**6), st.permutations("abcd"))
def test_the_order_of_sites_does_not_matter(seed: int, order: list[str]) -> None:
    rng = np.random.default_rng(seed)
    samples = {site: Sample(rng.integers(0, 256, (2, 1, 4, 4)).astype(np.uint8), (0,)) for site in "abcd"}
    assert of_chunk({site: samples[site] for site in order}) == of_chunk(samples)


def test_a_large_mask_is_looked_at_on_a_lattice_and_a_small_one_whole() -> None:
    large = np.arange(384 * 384, dtype=np.uint32).reshape(1, 1, 384, 384).astype(np.uint8)
    assert (sample(large, (0,)).masks == large[:, :, 3::6, 3::6]).all()
    assert (sample(large[..., :100, :100], (0,)).masks == large[..., :100, :100]).all()


def test_who_stands_apart_is_below_half_of_the_median_of_three_or_more() -> None:
    def held(*means: float) -> dict[str, Agreement]:
        return {site: Agreement(mean, 10) for site, mean in zip("abcde", means, strict=False)}

    assert stand_apart(held(80, 78, 76, 75, 10)) == ["e"]
    assert stand_apart(held(80, 78, 38)) == ["c"]  # half of 78 is 39
    assert stand_apart(held(80, 78, 40)) == []
    assert stand_apart(held(80, 10)) == []
    assert stand_apart({}) == []
