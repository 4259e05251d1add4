import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, label

from consilium.common.datasets import phantoms
from consilium.common.datasets.phantoms import echo, machine, make
from consilium.common.datasets.phantoms.anatomy import Body
from consilium.common.datasets.phantoms.hospitals import HOSPITALS
from consilium.common.errors import SettingsError

NAMES = ("north", "east", "south", "west")


def test_there_are_four_hospitals_and_each_knows_its_name():
    assert tuple(HOSPITALS) == NAMES
    assert all(hospital.name == name for name, hospital in HOSPITALS.items())


@pytest.mark.parametrize("size", [48, 97, 384])
def test_images_are_gray_bytes_and_masks_are_zero_or_one(size):
    images, masks = make("west", 2, size, 0)
    assert images.shape == masks.shape == (2, 1, size, size)
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}


@settings(max_examples=8, deadline=None)
@given(
    hospital=st.sampled_from(NAMES),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 10**6),
    cut=st.integers(0, 4),
    share=st.floats(0, 1),
)
def test_a_list_may_be_made_in_parts(hospital, seed, start, cut, share):
    whole = make(hospital, 4, 48, seed, lesion_free=share, start=start)
    head = make(hospital, cut, 48, seed, lesion_free=share, start=start)
    tail = make(hospital, 4 - cut, 48, seed, lesion_free=share, start=start + cut)
    for full, one, two in zip(whole, head, tail, strict=True):
        np.testing.assert_array_equal(full, np.concatenate([one, two]))


def test_no_two_images_are_the_same_across_seeds_places_and_hospitals():
    images = np.concatenate([make(name, 3, 48, seed)[0] for name in NAMES for seed in (0, 1)])
    assert len({image.tobytes() for image in images}) == 24


def test_numpys_global_random_state_is_neither_used_nor_changed():
    np.random.seed(1)  # noqa: NPY002 - it is to stay as it is
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - it is to stay as it is
    first, _ = make("east", 1, 48, 5)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002 - it is to stay as it is
    np.random.seed(2)  # noqa: NPY002 - it is to stay as it is
    np.testing.assert_array_equal(first, make("east", 1, 48, 5)[0])


@given(share=st.floats(0, 1), count=st.integers(0, 60))
def test_the_first_n_images_hold_the_rounded_share_of_lesion_free_ones(share, count):
    free = sum(phantoms._is_lesion_free(index, share) for index in range(count))
    assert free == int(count * share + 0.5)


def test_lesion_free_images_have_an_empty_mask_and_the_others_do_not():
    _, masks = make("south", 10, 48, 3, lesion_free=0.3)
    assert (masks.reshape(10, -1).max(1) == 0).sum() == 3
    assert make("north", 3, 48, 3, lesion_free=1.0)[1].max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_lesions_cover_a_few_to_twenty_percent_of_the_image(name):
    _, masks = make(name, 50, 48, 11)
    share = masks.mean(axis=(1, 2, 3))
    assert share.min() > 0.015
    assert share.max() < 0.22
    assert 0.03 < np.median(share) < 0.15


def test_the_same_case_at_another_size_is_the_same_anatomy():
    for name in NAMES:
        small, large = make(name, 3, 96, 4)[1], make(name, 3, 192, 4)[1]
        halved = large.reshape(3, 1, 96, 2, 96, 2).mean(axis=(3, 5)) > 0.5
        overlap = 2 * (halved & (small == 1)).sum() / (halved.sum() + small.sum())
        assert overlap > 0.97


def test_speckle_of_one_look_has_the_rayleigh_law():
    """The mean of a Rayleigh envelope over its standard deviation is sqrt(pi / (4 - pi)) = 1.913."""
    scanner = dataclasses.replace(
        HOSPITALS["north"].scanner,
        looks=1, noise_db=-200.0, gain_db=60.0, dynamic_range_db=100.0, gamma=1.0, black=0.0,
    )  # fmt: skip
    flat = np.zeros((256, 256), np.float32)
    gray = machine.scan(np.random.default_rng(0), flat, np.zeros((256, 1), np.float32), scanner)
    envelope = 10 ** ((gray / 255 * 100 - 60) / 20)
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, rel=0.05)
    # The real and the imaginary part each have half the power, so the mean power is that of the level, 0 dB.
    assert 10 * np.log10((envelope**2).mean()) == pytest.approx(0.0, abs=0.3)


def test_a_doubled_image_has_speckle_of_twice_the_size():
    scanner = HOSPITALS["east"].scanner

    def lag(size):
        flat = np.zeros((size, size), np.float32)
        gray = machine.scan(np.random.default_rng(1), flat, np.zeros((size, 1), np.float32), scanner) * 1.0
        gray -= gray.mean()
        shift = size // 96
        return (gray[:, shift:] * gray[:, :-shift]).mean() / gray.var()

    assert lag(96) == pytest.approx(lag(192), abs=0.08)


@pytest.mark.parametrize("name", NAMES)
def test_nearly_every_lesion_is_seen(name):
    """The mean gray inside differs from that of a ring around it by more than the ring's own unevenness suggests."""
    images, masks = make(name, 25, 96, 21)
    seen = []
    for image, mask in zip(images[:, 0], masks[:, 0], strict=True):
        ring = binary_dilation(mask, iterations=5) & ~binary_dilation(mask, iterations=1)
        seen.append(abs(float(image[mask == 1].mean()) - float(image[ring].mean())) / float(image[ring].std()))
    assert np.mean(np.array(seen) > 0.7) >= 0.95


def test_two_lesions_do_not_touch():
    _, masks = make("west", 60, 64, 8)
    assert {label(mask[0])[1] for mask in masks} == {1, 2}


def test_a_shadowing_mass_darkens_and_a_cyst_brightens_what_lies_below():
    scanner = HOSPITALS["north"].scanner
    for absorption, sign in ((30.0, 1), (-30.0, -1)):
        loss = np.zeros((96, 96), np.float32)
        body = Body(0.5, 0.4, 0.15, 1.0, 0.0, np.ones(129, np.float32), -10, 0, 0, 0.005, 0, absorption, 0)
        echo.add_body(np.random.default_rng(0), body, np.zeros((96, 96), np.float32), loss, scanner)
        # 30 dB a side, a path of 2 x 0.15, and the scanner's own factor
        assert loss[80, 48] == pytest.approx(sign * 30.0 * 0.3 * scanner.shadow_strength, rel=0.1)
        assert loss[:20].max() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hospital": "centre"}, "north, east, south, west"),
        ({"count": -1}, "count must be 0 or more; got -1"),
        ({"size": 47}, "48 to 384"),
        ({"size": 385}, "48 to 384"),
        ({"seed": -1}, "seed"),
        ({"start": -2}, "start"),
        ({"lesion_free": 1.1}, r"\[0, 1\]"),
        ({"lesion_free": float("nan")}, "lesion_free"),
    ],
)
def test_a_setting_out_of_range_is_refused_and_named(change, words):
    good = {"hospital": "north", "count": 1, "size": 64, "seed": 0}
    with pytest.raises(SettingsError, match=words):
        make(**{**good, **change})


def test_all_faults_are_named_at_once():
    with pytest.raises(SettingsError, match=r"hospital.*count.*size"):
        make("centre", -1, 1, 0)


def test_cysts_and_masses_are_the_lesions_taken_apart_and_change_no_image():
    images, lesions = phantoms.make("west", 12, 64, 0)
    again, apart = phantoms.make("west", 12, 64, 0, labels=("mass", "cyst"))
    np.testing.assert_array_equal(again, images)
    np.testing.assert_array_equal(apart.sum(axis=1, keepdims=True), lesions)  # never both
    assert apart[:, 0].any()
    assert apart[:, 1].any()
    assert not phantoms.make("east", 12, 64, 0, labels=("cyst",))[1].any()
    with pytest.raises(SettingsError, match="labels are some of lesion, cyst, mass; got nerve"):
        phantoms.make("west", 1, 64, 0, labels=("nerve",))
