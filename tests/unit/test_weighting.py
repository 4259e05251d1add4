"""Self-Dice is the one worked out by hand, and a student's weights and generations follow from it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import DataError, StudyError
from consilium.common.networks.settings import NetworkSettings
from consilium.common.soft_mask import quantise
from consilium.common.study import StudentSettings
from consilium.common.training.loop import Progress
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings
from consilium.server.distill import distill, mask_again
from consilium.server.weighting import agreement_weights, image_weights, self_dice


def masks(*planes: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array(planes, np.uint8)[:, None, None, :]


def test_self_dice_is_the_one_worked_out_by_hand() -> None:
    # |y| = 255 + 153 + 51, |b| = 2 * 255, y over b = 255 + 153
    assert self_dice(masks([255, 153, 51, 0]))[0] == pytest.approx(2 * 408 / (459 + 510))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=16))
def test_self_dice_is_the_soft_dice_of_a_mask_and_its_cut(levels: list[int]) -> None:
    y = np.array(levels) / 255
    b = y > 0.5
    found = self_dice(masks(levels))[0]
    assert 0 <= found <= 1
    if b.any():
        assert found == pytest.approx(1 - np.abs(y - b).sum() / (y.sum() + b.sum()))
    else:
        assert found == 0


def test_binary_masks_are_sure_of_themselves_and_one_label_is_enough() -> None:
    binary = np.zeros((2, 2, 4, 4), np.uint8)
    binary[0, 1, 1:3, 1:3] = 255
    assert self_dice(binary).tolist() == [1.0, 0.0]
    assert self_dice(binary[:0]).shape == (0,)


def test_equal_weights_are_none_and_others_self_dice() -> None:
    some = masks([255, 100], [200, 130])
    assert image_weights("none", some) is None
    np.testing.assert_array_equal(image_weights("self-dice", some), self_dice(some))


def test_images_that_one_site_alone_saw_weigh_as_the_mean_of_the_others() -> None:
    assert agreement_weights(np.array([0.5, np.nan, 0.9])).tolist() == pytest.approx([0.5, 0.7, 0.9])
    assert agreement_weights(np.array([np.nan])).tolist() == [1.0]


def test_agreement_weighs_alone_or_times_self_dice() -> None:
    some, agreed = masks([255, 100], [200, 130]), np.array([0.5, 1.0])
    found = image_weights("agreement", some, agreed)
    assert found is not None
    assert found.tolist() == [0.5, 1.0]
    np.testing.assert_array_equal(image_weights("self-dice-agreement", some, agreed), agreed * self_dice(some))
    with pytest.raises(DataError, match="needs how far the sites agree"):
        image_weights("agreement", some)


# ---- in the student's training


def squares(count: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], ...]:
    rng = np.random.default_rng(0)
    soft = np.zeros((count, 1, 32, 32), np.uint8)
    for mask in soft[:, 0]:
        top, left = rng.integers(2, 20, 2)
        mask[top : top + 10, left : left + 10] = rng.integers(140, 256)
    return np.clip(60 + 0.4 * soft + rng.normal(0, 15, soft.shape), 0, 255).astype(np.uint8), soft


def student(**changes: object) -> StudentSettings:
    training = TrainingSettings(image_budget=16, learning_rate=1e-3, device="cpu", threads=1)
    return StudentSettings(network=NetworkSettings(name="unet", width=4), training=training, **changes)


def test_weights_by_self_dice_make_another_student() -> None:
    images, pseudo = squares(6)
    plain, weighted = (distill(images, pseudo, student(image_weights=w), seed=0)[0] for w in ("none", "self-dice"))
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), weighted.parameters(), strict=True))


def test_images_that_would_all_weigh_nothing_are_refused() -> None:
    images, pseudo = squares(3)
    with pytest.raises(StudyError, match="none of the 3 kept images has any"):
        distill(images, pseudo // 3, student(image_weights="self-dice"), seed=0)


def test_masks_of_the_second_generation_are_the_mean_of_the_students_and_the_pseudo_masks(tmp_path: Path) -> None:
    images, pseudo = squares(5)
    first, _ = distill(images, pseudo, student(), seed=0)
    kept = np.array([0, 3])
    again = mask_again(first, images, pseudo, kept, tmp_path)
    own = quantise(predict(first, images[kept], device="cpu"))
    assert np.abs(2 * again[kept].astype(int) - pseudo[kept] - own).max() <= 1
    assert not again[[1, 2, 4]].any()
    np.testing.assert_array_equal(mask_again(first, images, pseudo, kept, None), again)


def test_two_generations_resume_with_the_same_bytes_and_count_as_one_training(tmp_path: Path) -> None:
    images, pseudo = squares(6)
    two = student(generations=2, image_weights="self-dice")
    kept = np.arange(1, 6)
    told: list[Progress] = []
    wanted, history = distill(images, pseudo, two, seed=0, kept=kept, on_step=told.append)
    assert [(at.step, at.steps, at.images_seen) for at in told] == [(k, 8, 4 * k) for k in range(1, 9)]
    assert [step for step, _ in history.curve] == list(range(1, 9))
    assert history.steps == 8

    class PowerCutError(Exception):
        pass

    def cut(at: Progress) -> None:
        if at.step == 6:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        distill(images, pseudo, two, seed=0, kept=kept, folder=tmp_path, on_step=cut)
    got, later = distill(images, pseudo, two, seed=0, kept=kept, folder=tmp_path)
    assert later.curve == history.curve
    for (name, tensor), other in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    one, _ = distill(images, pseudo, student(image_weights="self-dice"), seed=0, kept=kept)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), got.parameters(), strict=True))


def test_a_student_of_hard_targets_weighs_images_by_their_soft_masks() -> None:
    """Of two images the unsure one's mask, cut, would be as sure as the other's; its weight stays less."""
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), np.uint8)
    soft = np.zeros((2, 1, 32, 32), np.uint8)
    soft[0, :, 8:24, 8:24], soft[1, :, 4:12, 4:12] = 255, 140
    training = TrainingSettings(image_budget=8, batch=2, augment="none", threads=1, learning_rate=1e-2)
    network = NetworkSettings(name="unet", width=4)
    hard = StudentSettings(network=network, training=training, targets="hard", image_weights="self-dice")
    cut = np.where(soft >= 128, np.uint8(255), np.uint8(0))
    alike = StudentSettings(network=network, training=training, image_weights="self-dice")
    weighed, unweighed = (distill(images, held, how, seed=0)[0] for held, how in ((soft, hard), (cut, alike)))
    even = StudentSettings(network=network, training=training, targets="hard")
    same = distill(images, soft, even, seed=0)[0]
    first = [predict(module, images, device="cpu") for module in (weighed, unweighed, same)]
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[1], first[2])  # two masks that are as sure as can be weigh the same
