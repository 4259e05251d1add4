"""The loss is right for soft masks, augmentation keeps masks on lesions, and an interrupted training ends as if it was not."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from pydantic import ValidationError
from torch import nn

from consilium.common.errors import DataError, SettingsError, StateError, StudyError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.training import loop
from consilium.common.training.augment import Draw, augment
from consilium.common.training.checkpoint import FILE_NAME
from consilium.common.training.loop import Progress, fit
from consilium.common.training.loss import DICE_OF, SMOOTH, dice_bce, paper_dice, soft_dice
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings, paper_epochs

U8 = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small to share among cores
    yield
    torch.set_num_threads(before)


def discs(count: int, size: int, seed: int = 0) -> tuple[U8, U8]:
    """Bright discs on noise, and their masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(0.3 * size, 0.7 * size, (2, count, 1, 1))
    radius = rng.uniform(0.12 * size, 0.25 * size, (count, 1, 1))
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    images = np.clip(80 + 60 * inside + rng.normal(0, 20, inside.shape), 0, 255).astype(np.uint8)
    return images[:, None], (255 * inside).astype(np.uint8)[:, None]


def plane(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[None, None]


# ---- loss


def test_dice_of_a_drawn_mask_is_the_one_worked_out_by_hand() -> None:
    probs, target = plane([1.0, 0.5], [0.0, 0.0]), plane([1.0, 0.0], [1.0, 0.0])
    # |x| = 1.5, |y| = 2, |x - y| = 0.5 + 1; eq. 1: <x, y> = 1
    assert soft_dice(probs, target).item() == pytest.approx(1.5 / (3.5 + SMOOTH))
    assert paper_dice(probs, target).item() == pytest.approx(1 - (2 * 1 + SMOOTH) / (3.5 + SMOOTH))


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=16))
def test_for_binary_targets_dice_is_equation_1(pixels: list[tuple[float, bool]]) -> None:
    probs, target = plane([p for p, _ in pixels]), plane([float(t) for _, t in pixels])
    torch.testing.assert_close(soft_dice(probs, target), paper_dice(probs, target), atol=1e-5, rtol=1e-5)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=16))
def test_dice_is_zero_at_the_soft_target_itself(pixels: list[float]) -> None:
    assert soft_dice(plane(pixels), plane(pixels)).item() == 0


def test_for_a_pixel_of_one_half_equation_1_wants_1_and_the_loss_wants_one_half() -> None:
    answers = torch.linspace(0, 1, 101)[:, None, None, None].expand(-1, 1, 8, 8)
    target = torch.full((101, 1, 8, 8), 0.5)
    assert answers[paper_dice(answers, target)[:, 0].argmin(), 0, 0, 0] == 1.0
    assert answers[soft_dice(answers, target)[:, 0].argmin(), 0, 0, 0] == 0.5
    logits = torch.logit(answers[1:-1])
    whole = [dice_bce(logits[i : i + 1], target[:1]).item() for i in range(99)]
    assert np.argmin(whole) == 49


def test_the_loss_is_each_images_own_and_weights_choose_among_them() -> None:
    logits, targets = torch.randn(2, 2, 4, 4), torch.rand(2, 2, 4, 4)
    first, second = dice_bce(logits[:1], targets[:1]), dice_bce(logits[1:], targets[1:])
    torch.testing.assert_close(dice_bce(logits, targets), (first + second) / 2)
    torch.testing.assert_close(dice_bce(logits, targets, torch.tensor([2.0, 0.0])), first)


def test_the_papers_loss_is_dice_of_equation_1_and_bce() -> None:
    logits, target = plane([0.0, 2.0]), plane([1.0, 0.3])  # sigmoid(2) = 0.8808
    x = 1 / (1 + np.exp(-2.0))
    bce = (np.log(2) - 0.3 * np.log(x) - 0.7 * np.log(1 - x)) / 2
    dice = 1 - (2 * (0.5 + 0.3 * x) + SMOOTH) / (0.5 + x + 1.3 + SMOOTH)
    assert dice_bce(logits, target, dice=DICE_OF["paper"]).item() == pytest.approx(dice + bce, rel=1e-5)
    assert dice_bce(logits, target, dice=DICE_OF["dice-bce"]).item() == dice_bce(logits, target).item()


def test_a_trainings_loss_is_the_one_it_names() -> None:
    """On soft targets they differ; on masks of 0 and 1 they are the same, up to rounding."""
    images, targets = discs(4, 32)

    def curve(loss: str, masks: U8) -> list[float]:
        module = build(SMALL, 1, 1, 0)
        return [value for _, value in fit(module, images, masks, settings(loss=loss, augment=False), seed=0).curve]

    np.testing.assert_allclose(curve("paper", targets), curve("dice-bce", targets), rtol=1e-4)
    soft = targets // 2
    assert abs(curve("paper", soft)[0] - curve("dice-bce", soft)[0]) > 0.01


@pytest.mark.parametrize("logit", [-30.0, -5.0, 0.0, 5.0, 30.0])
def test_an_empty_target_pushes_every_pixel_down_gently(logit: float) -> None:
    logits = torch.full((1, 1, 8, 8), logit, requires_grad=True)
    dice_bce(logits, torch.zeros(1, 1, 8, 8)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert ((logits.grad >= 0) & (logits.grad < 1)).all()


# ---- augmentation


def test_image_and_mask_are_warped_together_and_masks_stay_soft() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
    mask = torch.sigmoid(12 * (0.5 - (x**2 + (1.2 * y - 0.2) ** 2).sqrt())).expand(16, 1, -1, -1)
    uniform = torch.rand(16, 7, generator=torch.Generator().manual_seed(0))
    uniform[:, 5:] = 0.5  # gamma 1 and contrast 1: what is left is geometry
    image, warped = augment(mask, mask, Draw(uniform))
    torch.testing.assert_close(image, warped, atol=1e-5, rtol=0)
    assert ((warped > 0.2) & (warped < 0.8)).any()
    assert (warped - mask).abs().max() > 0.2


def test_the_draw_in_the_middle_of_the_range_changes_nothing() -> None:
    image, mask = torch.rand(1, 1, 32, 48), torch.rand(1, 2, 32, 48)
    nothing = Draw(
        torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])
    )  # all kept, no flip, 0 degrees, gamma 1, contrast 1
    for got, wanted in zip(augment(image, mask, nothing), (image, mask), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_a_flip_is_a_flip_and_a_crop_takes_the_corner() -> None:
    image = torch.rand(1, 1, 40, 40)
    flip = Draw(torch.tensor([[1.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5]]))
    torch.testing.assert_close(augment(image, image, flip)[1], image.flip(3), atol=1e-5, rtol=0)
    corner = Draw(torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]]))
    wanted = nn.functional.interpolate(image[:, :, :28, :28], (40, 40), mode="bilinear")
    torch.testing.assert_close(
        augment(image, image, corner)[1][..., 1:-2, 1:-2], wanted[..., 1:-2, 1:-2], atol=1e-5, rtol=0
    )


def test_a_turn_keeps_distances_in_an_image_that_is_not_square() -> None:
    image = torch.zeros(1, 1, 96, 192)
    image[..., 24:72, 72:120] = 1.0  # a square about the centre
    turned = augment(image, image, Draw(torch.tensor([[1.0, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5]])))[1]  # 45 degrees
    rows, columns = torch.where(turned[0, 0] > 0.5)
    for extent in (rows.max() - rows.min(), columns.max() - columns.min()):
        assert abs(extent.item() + 1 - 48 * 2**0.5) <= 2
    assert turned.sum().item() == pytest.approx(48 * 48, rel=0.01)


def test_augmentation_stays_in_range_and_its_generator_decides_it() -> None:
    image, mask = torch.rand(8, 3, 32, 32), torch.rand(8, 2, 32, 32)
    draws = [Draw.of(8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    results = [torch.cat(augment(image, mask, draw), 1) for draw in draws]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert 0 <= results[0].min() <= results[0].max() <= 1
    half = torch.cat(augment(image[4:], mask[4:], draws[0].part(slice(4, 8))), 1)
    torch.testing.assert_close(half, results[0][4:])


# ---- the loop

SMALL = NetworkSettings(name="unet", width=4)
WITH_DROPOUT = NetworkSettings(name="deeplabv3plus", encoder="tu-test_efficientnet", width=4)


def settings(**changes: object) -> TrainingSettings:
    values = {"image_budget": 24, "batch": 4, "learning_rate": 1e-3, "device": "cpu", "threads": 1}
    return TrainingSettings.model_validate({**values, **changes})


class PowerCutError(Exception):
    """Ends a training in the middle."""


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise PowerCutError

    return on_step


@pytest.mark.parametrize("network", [SMALL, WITH_DROPOUT], ids=["unet", "deeplab-with-dropout"])
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, network: NetworkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CURVE_POINTS", 2)  # so that the interruptions fall between two points of the curve
    images, targets = discs(7, 64)
    chosen, weights = np.array([0, 1, 2, 4, 6]), np.linspace(0, 1, 7)
    often = settings(checkpoint_every_s=0.0)

    def train(
        on_step: Callable[[Progress], None] | None = None, folder: Path | None = None
    ) -> tuple[nn.Module, tuple[tuple[int, float], ...]]:
        module = build(network, 1, 1, seed=3)
        history = fit(
            module,
            images,
            targets,
            often,
            seed=9,
            indices=chosen,
            image_weights=weights,
            folder=folder,
            on_step=on_step,
        )
        return module, history.curve

    wanted, wanted_curve = train()
    for step in (2, 5):
        with pytest.raises(PowerCutError):
            train(interrupt_at(step), tmp_path)
    torch.rand(11)  # whatever the process has drawn in between does not matter
    got, curve = train(folder=tmp_path)
    assert curve == wanted_curve
    for (name, tensor), other in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    steps: list[int] = []
    train(lambda progress: steps.append(progress.step), tmp_path)
    assert steps == [], "a finished training has nothing left to do"


def test_an_interrupted_training_in_half_precision_goes_on_with_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16-mixed asks for a GPU; the CPU has the same scaler, so that here it stands in for one."""
    images, targets = discs(4, 32)
    often = settings(precision="16-mixed", checkpoint_every_s=0.0)

    def train(
        on_step: Callable[[Progress], None] | None = None, folder: Path | None = None
    ) -> tuple[nn.Module, dict[str, object]]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=2)  # it falls and rises
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        monkeypatch.setattr(loop, "_fabric", lambda _settings: fabric)
        module = build(SMALL, 1, 1, seed=3)
        fit(module, images, targets, often, seed=9, folder=folder, on_step=on_step)
        return module, scaler.state_dict()

    wanted, wanted_scale = train()
    for step in (2, 5):
        with pytest.raises(PowerCutError):
            train(interrupt_at(step), tmp_path)
    got, scale = train(folder=tmp_path)
    assert scale == wanted_scale
    for (name, tensor), other in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_hard_targets_are_the_soft_ones_cut_at_one_half(tmp_path: Path) -> None:
    images, masks = discs(6, 32)
    soft = np.where(masks > 0, np.uint8(128), np.uint8(127))  # on either side of one half, and nothing else
    trained = []
    for name, targets, hard in (("cut before", masks, False), ("cut by fit", soft, True), ("soft", soft, False)):
        module = build(NetworkSettings(name="unet", width=4), 1, 1, 0)
        fit(
            module, images, targets, settings(image_budget=8, augment="none"), seed=1, hard=hard, folder=tmp_path / name
        )
        trained.append(predict(module, images, device="cpu"))
    np.testing.assert_array_equal(trained[0], trained[1])
    assert not np.array_equal(trained[0], trained[2])
    with pytest.raises(StateError):  # another training than the soft one that lies there
        fit(
            build(NetworkSettings(name="unet", width=4), 1, 1, 0),
            images,
            soft,
            settings(image_budget=8, augment="none"),
            seed=1,
            hard=True,
            folder=tmp_path / "soft",
        )


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    images, targets = discs(4, 32)
    fit(build(SMALL, 1, 1, 0), images, targets, settings(), seed=0, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    for changes, seed, network_seed in (({"learning_rate": 1e-4}, 0, 0), ({}, 1, 0), ({}, 0, 1)):
        with pytest.raises(StateError, match="other settings"):
            fit(build(SMALL, 1, 1, network_seed), images, targets, settings(**changes), seed=seed, folder=tmp_path)
    assert fit(build(SMALL, 1, 1, 0), images, targets, settings(threads=0), seed=0, folder=tmp_path).resumed_at == 6
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StateError, match="damaged"):
        fit(build(SMALL, 1, 1, 0), images, targets, settings(), seed=0, folder=tmp_path)


def test_training_leaves_the_random_state_the_threads_and_the_mode_as_they_were() -> None:
    images, targets = discs(4, 32)
    module = build(SMALL, 1, 1, 0).eval()
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    fit(module, images, targets, settings(), seed=0)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert not module.training


def test_a_network_learns_to_find_discs() -> None:
    images, targets = discs(48, 32)
    module = build(NetworkSettings(name="unet", width=8), 1, 1, seed=0)
    history = fit(module, images, targets, settings(image_budget=1200, batch=8, learning_rate=3e-3), seed=0)
    assert len(history.curve) == history.steps == 150
    unseen, truth = discs(16, 32, seed=1)
    found, disc = predict(module, unseen, batch=5, device="cpu") > 0.5, truth > 127
    assert (2 * (found & disc).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + disc.sum((1, 2, 3)))).mean() > 0.85


def test_an_epoch_sees_every_image_once_and_epochs_differ() -> None:
    seen: list[float] = []

    class Watch(nn.Conv2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.extend((images.mean((1, 2, 3)) * 255).round().tolist())
            return super().forward(images)

    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 32, 32), np.uint8)
    chosen = np.array([1, 2, 3, 5, 7, 8])
    progress: list[Progress] = []
    fit(
        Watch(1, 1, 1),
        images,
        images,
        settings(image_budget=0, epochs=3, augment=False),
        seed=0,
        indices=chosen,
        on_step=progress.append,
    )
    epochs = [seen[0:6], seen[6:12], seen[12:18]]
    assert all(sorted(epoch) == chosen.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert len(seen) == 20, "18 images are wanted; the fifth batch of four is filled up"
    assert [p.images_seen for p in progress] == [4, 8, 12, 16, 20]


def test_a_loss_that_is_no_number_ends_the_training_and_spares_the_checkpoint(tmp_path: Path) -> None:
    images, targets = discs(4, 32)
    module = build(SMALL, 1, 1, 0)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(StudyError, match="learning-rate"):
        fit(module, images, targets, settings(checkpoint_every_s=0.0), seed=0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    images, targets = discs(4, 32)
    module = build(SMALL, 1, 1, 0)
    for arguments in (
        (images, targets[:3]),
        (images, targets[..., :16]),
        (images / 255, targets),
        (images[:0], targets[:0]),
    ):
        with pytest.raises(DataError):
            fit(module, *arguments, settings(), seed=0)
    for bad in (np.zeros(4), np.ones(3), np.array([1, 1, 1, np.nan]), np.array([1.0, 1, 1, -1])):
        with pytest.raises(DataError, match="weights"):
            fit(module, images, targets, settings(), seed=0, image_weights=bad)
    with pytest.raises(DataError, match="positions"):
        fit(module, images, targets, settings(), seed=0, indices=np.array([4]))
    with pytest.raises(SettingsError, match="16-mixed"):
        fit(module, images, targets, settings(precision="16-mixed"), seed=0)


def test_mixed_precision_trains_on_a_cpu() -> None:
    images, targets = discs(4, 32)
    module = build(SMALL, 1, 1, 0)
    history = fit(module, images, targets, settings(precision="bf16-mixed"), seed=0)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert np.isfinite(history.curve[-1][1])


@pytest.mark.parametrize(("epochs", "budget"), [(0, 0), (1, 1), (-1, 0)])
def test_exactly_one_length_is_given(epochs: int, budget: int) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings(epochs=epochs, image_budget=budget)


@pytest.mark.parametrize(("length", "steps"), [({"epochs": 3}, 6), ({"image_budget": 8}, 2), ({"image_budget": 9}, 3)])
def test_a_length_is_rounded_up_to_whole_batches(length: dict[str, int], steps: int) -> None:
    assert TrainingSettings.model_validate({**length, "batch": 4}).steps(image_count=7) == steps


@pytest.mark.parametrize(("images", "papers"), [(697, 500), (1237, 500), (3830, 175), (11_143, 60), (25_331, 30)])
def test_the_papers_epochs_follow_from_the_number_of_images(images: int, papers: int) -> None:
    assert paper_epochs(images) == pytest.approx(papers, rel=0.09)
    assert TrainingSettings(epochs="paper").on(images).epochs == paper_epochs(images)


def test_the_papers_epochs_hold_for_any_number_of_images() -> None:
    assert [paper_epochs(images) for images in (0, 1, 1400, 2800, 17_125, 10**9)] == [500, 500, 500, 250, 41, 1]
    assert TrainingSettings(epochs="paper").steps(2800) == 2800 * 250 // 4


def test_images_left_out_shorten_the_papers_training_and_not_its_epochs() -> None:
    """2,800 images before exclusion, 1,400 after: 250 epochs, as without exclusion."""
    assert TrainingSettings(epochs="paper").on(2800).steps(1400) == 1400 * 250 // 4


def test_predict_gives_probabilities_whatever_the_batch_and_leaves_the_mode() -> None:
    images, _ = discs(5, 40)
    module = build(SMALL, 1, 2, 0).train()
    whole = predict(module, images, batch=5)
    assert module.training
    assert whole.shape == (5, 2, 40, 40)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(predict(module, images, batch=2), whole, atol=1e-6)
    by_hand = torch.sigmoid(module.eval()(torch.from_numpy(images) / 255)).detach().numpy()
    np.testing.assert_allclose(whole, by_hand, atol=1e-6)


WORKER = """
import sys, numpy as np, torch
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.training.loop import fit
from consilium.common.training.settings import TrainingSettings, paper_epochs
data = np.load(sys.argv[1])
module = build(NetworkSettings(name="unet", width=4, norm="group"), 1, 1, seed=0)
settings = TrainingSettings(image_budget=24, batch=4, device="cpu", threads=1)
history = fit(module, data["images"], data["targets"], settings, seed=0)
rank = torch.distributed.get_rank()
np.savez(f"{sys.argv[2]}/{rank}.npz", *[p.detach().numpy() for p in module.parameters()], loss=[l for _, l in history.curve])
"""


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    images, targets = discs(6, 32)
    np.savez(tmp_path / "data.npz", images=images, targets=targets)
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, tmp_path / "worker.py", tmp_path / "data.npz", tmp_path],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    first, second = np.load(tmp_path / "0.npz"), np.load(tmp_path / "1.npz")
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    module = build(NetworkSettings(name="unet", width=4, norm="group"), 1, 1, seed=0)
    alone = fit(module, images, targets, settings(learning_rate=1e-4), seed=0)
    np.testing.assert_allclose(first["loss"], [loss for _, loss in alone.curve], rtol=1e-3)
