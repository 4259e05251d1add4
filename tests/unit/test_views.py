"""Views: what comes back is upright, in place and the mean."""

import numpy as np
import pytest

from consilium.common.errors import DataError
from consilium.common.soft_mask import quantise
from consilium.common.temperature import temper
from consilium.common.views import look


def levels(images: np.ndarray) -> np.ndarray:
    """A teacher that answers with the image itself."""
    return (images / np.float32(255)).astype(np.float32)


def smooth(size: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] / size
    return (255 * np.exp(-((rows - 0.4) ** 2 + (columns - 0.55) ** 2) / 0.02)).astype(np.uint8)[None, None]


def test_one_view_is_the_teacher_bit_for_bit() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), np.uint8)
    assert (look(levels, images, "one") == levels(images)).all()


@pytest.mark.parametrize(("views", "most"), [("flip", 0.0), ("flip-scale", 0.02)])
def test_a_teacher_that_answers_with_the_image_gives_it_back_upright_and_in_place(views: str, most: float) -> None:
    image = smooth()
    assert np.abs(look(levels, image, views) - levels(image)).max() <= most


def test_the_mean_of_an_image_and_its_mirror_image_is_worked_out_by_hand() -> None:
    def left_half(images: np.ndarray) -> np.ndarray:
        answer = levels(images)
        answer[..., 2:] = 0  # sees nothing on the right
        return answer

    image = np.array([[255, 0, 0, 102]], np.uint8)[None, None].repeat(4, axis=2)
    assert look(left_half, image, "flip")[0, 0, 0].tolist() == pytest.approx([0.5, 0, 0, 0.2])


@pytest.mark.parametrize(("views", "asked"), [("one", 1), ("flip", 2), ("flip-scale", 6)])
def test_every_view_has_the_shape_of_the_image(views: str, asked: int) -> None:
    shapes = []

    def note(images: np.ndarray) -> np.ndarray:
        shapes.append(images.shape)
        return np.full((len(images), 2, *images.shape[2:]), 0.25, np.float32)

    found = look(note, np.zeros((3, 1, 20, 30), np.uint8), views)
    assert shapes == [(3, 1, 20, 30)] * asked
    assert found.shape == (3, 2, 20, 30)
    assert found == pytest.approx(0.25)


@pytest.mark.parametrize("views", ["flip", "flip-scale"])
@pytest.mark.parametrize("wrong", [3.0, -0.5, np.nan])
def test_a_broken_teacher_is_not_hidden_by_the_mean(views: str, wrong: float) -> None:
    found = look(
        lambda images: np.full(images.shape, wrong, np.float32),
        np.zeros((1, 1, 16, 16), np.uint8),
        views,
    )
    with pytest.raises(DataError, match="finite and in"):
        quantise(found)
    with pytest.raises(DataError, match="finite and in"):
        temper(found, 2.0, 1e-6)
