"""Soft masks: one rounding, and a coding that is lossless, bounded and frozen."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from consilium.common import planes, soft_mask
from consilium.common.errors import DataError, ErrorCode, WireError

SHAPE = (1, 5, 7)


def test_probabilities_are_rounded_to_the_nearest_level() -> None:
    given_p = np.array([0.0, 0.499 / 255, 0.501 / 255, 0.5, 1.0], np.float32)
    assert soft_mask.quantise(given_p).tolist() == [0, 0, 1, 127, 255]


def test_a_target_pixel_is_exactly_a_probability_above_one_half() -> None:
    around = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.502], np.float32)
    assert (soft_mask.quantise(around) >= soft_mask.TARGET_LEVEL).tolist() == [False, True, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.001, 1.001, 7.0])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="finite and in"):
        soft_mask.quantise(np.array([0.5, bad], np.float32))


@given(st.integers(1, 128).map(lambda half: 2 * half))
def test_reduced_levels_are_that_many_keep_the_ends_and_never_move_a_pixel_across_the_threshold(levels: int) -> None:
    reduced = soft_mask.reduce_levels(np.arange(256, dtype=np.uint8), levels)
    assert len(np.unique(reduced)) == levels
    assert (reduced[0], reduced[255]) == (0, 255)
    assert np.abs(reduced.astype(int) - np.arange(256)).max() <= 255 / (levels - 1) / 2 + 1
    assert ((reduced >= soft_mask.TARGET_LEVEL) == (np.arange(256) >= soft_mask.TARGET_LEVEL)).all()


@pytest.mark.parametrize("levels", [0, 1, 3, 255, 258])
def test_an_odd_number_of_levels_would_move_the_threshold_and_is_refused(levels: int) -> None:
    with pytest.raises(DataError, match="even number from 2 to 256"):
        soft_mask.reduce_levels(np.zeros((1, 2, 2), np.uint8), levels)


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
def test_coding_is_lossless(mask: np.ndarray) -> None:
    assert (planes.decode(planes.encode(mask), mask.shape) == mask).all()


def test_the_coding_is_frozen() -> None:
    mask = np.arange(35, dtype=np.uint8).reshape(SHAPE) * 7
    coded = bytes.fromhex("78016360070343063030640003430630306400030012b400ef")
    assert zlib.decompress(soft_mask.encode(mask)) == zlib.decompress(coded)  # deflate may differ between libraries
    assert zlib.decompress(coded)[:8].hex() == "0007070707070731"  # a ramp: a constant, and what starts the next row
    assert (soft_mask.decode(coded, SHAPE) == mask).all()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_never_crash(data: bytes) -> None:
    try:
        decoded = soft_mask.decode(data, SHAPE)
    except WireError as error:
        assert error.code is ErrorCode.BAD_MASK  # noqa: PT017 - both outcomes are legal; neither may be another error
    else:
        assert decoded.shape == SHAPE


@pytest.mark.parametrize(
    "data",
    [
        zlib.compress(bytes(34)),
        zlib.compress(bytes(36)),
        zlib.compress(bytes(10**8)),
        zlib.compress(bytes(35)) + b"x",
        zlib.compress(bytes(35))[:-1],
        b"",
    ],
    ids=["short", "long", "a bomb", "trailing bytes", "cut off", "nothing"],
)
def test_a_mask_that_is_not_exactly_of_its_shape_is_refused(data: bytes) -> None:
    with pytest.raises(WireError) as refused:
        soft_mask.decode(data, SHAPE)
    assert refused.value.code is ErrorCode.BAD_MASK
