"""The training options that the paper does not have: off they change no bit, on they do what they say and resume."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from consilium.clients.settings import SiteSettings, teacher_digest
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.settings import parse
from consilium.common.training import loop
from consilium.common.training.augment import Draw, augment
from consilium.common.training.average import Average
from consilium.common.training.cutmix import AREA, Mix, cutmix
from consilium.common.training.distort import Distortion, distort
from consilium.common.training.loop import Progress, fit
from consilium.common.training.loss import SMOOTH, dice_bce
from consilium.common.training.settings import TrainingSettings

U8 = npt.NDArray[np.uint8]
SMALL = NetworkSettings(name="unet", width=4)
EVERYTHING = {
    "dice_share": 0.75,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "warm_up": 0.2,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "ema": 0.9,
    "augment": "strong",
    "cutmix": 0.7,
    "augment_until": 0.6,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**changes: object) -> TrainingSettings:
    values = {"image_budget": 24, "batch": 4, "learning_rate": 1e-3, "device": "cpu", "threads": 1}
    return TrainingSettings.model_validate({**values, **changes})


def squares(count: int, size: int = 32) -> tuple[U8, U8]:
    """Bright squares on noise, and soft masks of them."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, 1, size, size), np.uint8)
    for mask in masks[:, 0]:
        top, left = rng.integers(2, size // 2, 2)
        mask[top : top + size // 3, left : left + size // 3] = rng.integers(160, 256)
    noise = rng.normal(0, 15, masks.shape)
    return np.clip(60 + 0.4 * masks + noise, 0, 255).astype(np.uint8), masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- nothing changes unless asked for


def test_without_options_training_is_the_papers_to_the_last_bit() -> None:
    """Adam on the mean of Dice and binary cross-entropy, the five augmentations, and nothing else."""
    images, targets = squares(6)
    weights = np.linspace(0.5, 1.5, 6)
    trained = build(SMALL, 1, 1, seed=1)
    fit(
        trained,
        images,
        targets,
        TrainingSettings(image_budget=24, device="cpu", threads=1),
        seed=7,
        image_weights=weights,
    )
    plain = build(SMALL, 1, 1, seed=1).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4, fused=True)
    order = np.concatenate([np.random.default_rng([7, 0, epoch]).permutation(6) for epoch in range(4)])
    for step in range(6):
        chosen = order[4 * step : 4 * step + 4]
        word = int(np.random.SeedSequence((7, 1, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        x, y = (torch.from_numpy(array[chosen]).float().div_(255) for array in (images, targets))
        x, y = augment(x, y, Draw.of(4, generator(word)))
        logits = plain(x)
        p = torch.sigmoid(logits)
        dice = (p - y).abs().sum((2, 3)) / (p.sum((2, 3)) + y.sum((2, 3)) + SMOOTH)
        bce = functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean((1, 2, 3))
        share = torch.from_numpy((weights / weights.mean()).astype(np.float32)[chosen])
        ((dice.mean(1) + bce) * share).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, wanted), got in zip(plain.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(wanted, got), name


@pytest.mark.parametrize(("told", "meant"), [(True, "paper"), (False, "none"), ("strong", "strong")])
def test_augmentation_can_be_switched_or_named(told: object, meant: str) -> None:
    assert settings(augment=told).augment == meant
    assert TrainingSettings(epochs=1).augment == "paper"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"weight_decay": 0.1}, "weight-decay needs"),
        ({"cutmix": 0.5, "batch": 1}, "batch of 2"),
        ({"augment": "weak"}, "none"),
        ({"ema": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        settings(**changes)


# ---- loss, rate, optimiser


@given(st.floats(0, 1, width=32))
def test_a_share_of_dice_lies_between_cross_entropy_alone_and_dice_alone(share: float) -> None:
    logits, targets = torch.randn(3, 2, 4, 4, generator=generator()), torch.rand(3, 2, 4, 4, generator=generator(1))
    alone = {s: dice_bce(logits, targets, dice_share=s).item() for s in (0.0, 1.0)}
    mixed = dice_bce(logits, targets, dice_share=share).item()
    assert mixed == pytest.approx(share * alone[1.0] + (1 - share) * alone[0.0], rel=1e-5)
    assert dice_bce(logits, targets, dice_share=0.5).item() == dice_bce(logits, targets).item()


def test_three_quarters_of_dice_still_want_the_soft_target_itself() -> None:
    target = torch.tensor([[0.1, 0.5], [0.8, 1.0]])[None, None]
    at_target = torch.logit(target.clamp(1e-4, 1 - 1e-4)).requires_grad_()
    loss = dice_bce(at_target, target, dice_share=0.75)
    for nudge in torch.randn(20, 1, 1, 2, 2, generator=generator()):
        assert dice_bce(at_target + 0.1 * nudge, target, dice_share=0.75) > loss


def test_the_rate_rises_in_equal_parts_and_then_falls_along_the_cosine() -> None:
    chosen = settings(warm_up=0.4, schedule="cosine", learning_rate=1.0)
    rates = [chosen.rate(step, 10) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)])
    assert [settings(warm_up=0.4, learning_rate=1.0).rate(step, 10) for step in (3, 4, 9)] == [1.0, 1.0, 1.0]


def test_weight_decay_shrinks_kernels_and_spares_biases_and_normalisations() -> None:
    """At AdamW the decay is the rate's part of the weight itself, whatever the gradient: here without one."""
    images, targets = squares(4)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    idle = nn.Conv2d(3, 3, 1)

    class WithIdle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = module, idle

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.used(x) + 0 * (self.idle.weight.sum() + self.idle.bias.sum())
            return logits

    before = {name: tensor.clone() for name, tensor in idle.state_dict().items()}
    fit(WithIdle(), images, targets, settings(optimizer="adamw", weight_decay=0.5, learning_rate=0.1), seed=0)
    torch.testing.assert_close(idle.weight, before["weight"] * 0.95**6)
    torch.testing.assert_close(idle.bias, before["bias"])


def test_a_clipped_gradient_has_the_norm_that_was_set() -> None:
    images, targets = squares(4)
    norms: list[float] = []

    class Watch(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    module = Watch(1, 1, 1)
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, closure: None = None) -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()))
        original(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        fit(module, images, targets, settings(clip_norm=1e-3), seed=0)
    assert norms == pytest.approx([1e-3] * 6, rel=1e-3)


# ---- averaged weights


class Counter(nn.Module):
    """A weight, a running mean and a counter, to be set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_the_average_is_the_one_worked_out_by_hand() -> None:
    module = Counter()
    average = Average(module, decay=0.25)
    for steps, value in ((1, 11.0), (2, 11.0), (9, 1.0)):
        module.load_state_dict(
            {"weight": torch.tensor([value]), "mean": torch.tensor([2 * value]), "count": torch.tensor(steps)}
        )
        average.update(steps)
    # the decays are 2/11, 3/12 and 0.25 (not 10/19): 0 -> 9 -> 10.5 -> 3.375
    average.put()
    assert module.weight.item() == pytest.approx(3.375)
    assert module.get_buffer("mean").item() == pytest.approx(6.75)
    assert module.get_buffer("count").item() == 9


def test_what_is_left_after_training_is_the_average_and_training_itself_is_the_same() -> None:
    images, targets = squares(6)
    states: list[dict[str, torch.Tensor]] = []
    newest = build(SMALL, 1, 1, 0)

    def keep(_at: Progress) -> None:
        states.append({name: tensor.clone() for name, tensor in newest.state_dict().items()})

    start = {name: tensor.clone() for name, tensor in newest.state_dict().items()}
    fit(newest, images, targets, settings(), seed=0, on_step=keep)
    averaged = build(SMALL, 1, 1, 0)
    curve = fit(averaged, images, targets, settings(ema=0.4), seed=0).curve
    assert curve == fit(build(SMALL, 1, 1, 0), images, targets, settings(), seed=0).curve
    wanted = start
    for t, state in enumerate(states, 1):
        decay = min(0.4, (1 + t) / (10 + t))
        wanted = {
            name: torch.lerp(old, state[name], 1 - decay) if old.is_floating_point() else state[name]
            for name, old in wanted.items()
        }
    for name, tensor in averaged.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], msg=name)


# ---- CutMix


def test_mixed_pixels_are_another_images_in_image_and_mask_alike() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 40, 60)
    mix = Mix.of(6, 1.0, generator())
    assert (mix.partners != mix.rows).all()
    assert sorted(mix.partners.tolist()) == list(range(6))
    mixed, masks, weights = cutmix(images, images.expand(6, 2, 40, 60) / 10, torch.arange(6.0), mix)
    assert weights is not None
    for i, partner in enumerate(mix.partners.tolist()):
        assert set(mixed[i].unique().tolist()) == {float(i), float(partner)}
        torch.testing.assert_close(masks[i], mixed[i].expand(2, 40, 60) / 10)
        box = mixed[i, 0] == partner
        rows, columns = torch.where(box)
        extent = (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
        assert box.sum() == extent[0] * extent[1], "a box, whole and within the image"
        area = box.float().mean().item()
        assert AREA[0] - 0.03 < area < AREA[1] + 0.03
        assert weights[i].item() == pytest.approx((1 - area) * i + area * partner, abs=1e-5)


@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(1, 4))
def test_a_part_of_the_batch_is_mixed_as_the_whole_batch_would_be(seed: int, probability: float, parts: int) -> None:
    count = 4 * parts
    images, targets = (
        torch.rand(count, 1, 8, 8, generator=generator(1)),
        torch.rand(count, 2, 8, 8, generator=generator(2)),
    )
    weights = torch.rand(count, generator=generator(3))
    mix = Mix.of(count, probability, generator(seed))
    assert mix.needed.tolist() == list(range(count)), "one process needs its own images and no others"
    whole = cutmix(images, targets, weights, mix)
    for first in range(0, count, 4):
        part = mix.part(slice(first, first + 4))
        need = part.needed
        got = cutmix(images[need], targets[need], weights[need], part)
        for wanted, piece in zip(whole, got, strict=True):
            assert wanted is not None
            assert piece is not None
            assert torch.equal(wanted[first : first + 4], piece)


def test_nothing_is_mixed_with_probability_0() -> None:
    images = torch.rand(4, 1, 8, 8)
    mixed, masks, weights = cutmix(images, images, None, Mix.of(4, 0.0, generator()))
    assert torch.equal(mixed, images)
    assert torch.equal(masks, images)
    assert weights is None


# ---- strong augmentation


def middle(**columns: float) -> Distortion:
    """Numbers that change nothing, but for those given."""
    names = ("gamma", "contrast", "whether", "blur", "speckle", "noise")
    values = {"gamma": 3 / 7, "contrast": 0.5, "whether": 0.9, "blur": 0.0, "speckle": 0.0, "noise": 0.0} | columns
    return Distortion(torch.tensor([[values[name] for name in names]]), torch.tensor([5]))


def test_gray_changes_as_drawn_and_not_otherwise() -> None:
    image = torch.rand(1, 1, 64, 64, generator=generator())
    torch.testing.assert_close(distort(image, middle()), image, atol=1e-6, rtol=0)
    torch.testing.assert_close(distort(image, middle(gamma=1.0)), image**1.4, atol=1e-6, rtol=0)
    flat = torch.full((1, 1, 64, 64), 0.5)
    torch.testing.assert_close(distort(flat, middle(whether=0.1, blur=1.0)), flat, msg="a blur of a constant is it")
    assert (distort(flat, middle(noise=1.0)) - flat).std().item() == pytest.approx(0.05, rel=0.1)
    assert (distort(flat, middle(speckle=1.0)) - flat).std().item() == pytest.approx(0.15, rel=0.1)
    black = torch.zeros(1, 1, 64, 64)
    assert torch.equal(distort(black, middle(speckle=1.0)), black), "no echo, no speckle"


def test_a_blur_spreads_a_point_into_a_gaussian_of_the_drawn_width() -> None:
    point = torch.zeros(1, 1, 384, 384)
    point[..., 192, 192] = 1.0
    spread = distort(point, middle(whether=0.1, blur=1.0))[0, 0]
    across = torch.arange(384) - 192.0
    assert spread.sum().item() == pytest.approx(1.0, rel=1e-3)
    assert (spread.sum(0) @ across**2).sqrt().item() == pytest.approx(2.304, rel=0.03)
    sharp = Distortion(middle(whether=0.1, blur=1.0).uniform.repeat(2, 1), torch.tensor([5, 5]))
    sharp.uniform[1, 2] = 0.9
    torch.testing.assert_close(distort(point.repeat(2, 1, 1, 1), sharp)[1], point[0], msg="its neighbour stays sharp")


def test_a_part_of_the_batch_is_distorted_as_in_the_whole_and_stays_in_range() -> None:
    images = torch.rand(8, 3, 32, 48, generator=generator())
    draw = Distortion.of(8, generator(1))
    whole = distort(images, draw)
    assert 0 <= whole.min() <= whole.max() <= 1
    rows = torch.tensor([5, 2])
    torch.testing.assert_close(distort(images[rows], draw.part(rows)), whole[rows])
    gray = distort(images[:, :1].expand(-1, 3, -1, -1), draw)
    torch.testing.assert_close(gray[:, 0], gray[:, 2], msg="gray stays gray")


# ---- all together


def test_an_interrupted_training_with_every_option_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CURVE_POINTS", 2)
    images, targets = squares(7)

    class PowerCutError(Exception):
        pass

    def train(folder: Path | None = None, until: int = 99) -> tuple[nn.Module, tuple[tuple[int, float], ...]]:
        def on_step(at: Progress) -> None:
            if at.step == until:
                raise PowerCutError

        module = build(SMALL, 1, 1, seed=3)
        chosen = settings(**EVERYTHING, checkpoint_every_s=0.0)
        weights = np.linspace(0, 1, 7)
        history = fit(module, images, targets, chosen, seed=9, image_weights=weights, folder=folder, on_step=on_step)
        return module, history.curve

    wanted, curve = train()
    for step in (2, 5):
        with pytest.raises(PowerCutError):
            train(tmp_path, step)
    for _ in range(2):  # the second time there is nothing left to do, and the average is given again
        got, again = train(tmp_path)
        assert again == curve
        for (name, tensor), other in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name


@pytest.mark.parametrize(
    "option", ["dice_share", "optimizer", "warm_up", "clip_norm", "ema", "augment", "cutmix", "augment_until"]
)
def test_each_option_makes_another_student(option: str) -> None:
    images, targets = squares(4)
    modules = [build(SMALL, 1, 1, 0) for _ in range(2)]
    changed = {option: EVERYTHING[option]} | ({"weight_decay": 0.01} if option == "optimizer" else {})
    changed |= {name: value for name, value in {"clip_norm": 0.01, "warm_up": 0.5}.items() if name == option}
    for module, changes in zip(modules, ({}, changed), strict=True):
        fit(module, images, targets, settings(image_budget=16, **changes), seed=0)
    assert any(not torch.equal(a, b) for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True))


def test_a_setting_that_came_later_is_in_no_digest_while_it_is_at_its_default() -> None:
    """A teacher trained before the setting was there, known by its digest, is not to be trained again for it."""
    elsewhere = {"device", "threads", "checkpoint_every_s"}
    assert settings().indecisive() == elsewhere | {"augment_until"}
    assert settings(augment_until=0.5).indecisive() == elsewhere
    site = parse(SiteSettings, {"name": "x", "teacher": {"network": {"name": "unet"}}}, "x")
    assert teacher_digest(site) == "ceabac156b2d843fee9833f289c40faee003bdd976fc502100432487a9dc2ef4"


def test_the_last_steps_see_images_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, of which seven are augmented and mixed."""
    seen: list[torch.Tensor] = []

    def watched(logits: torch.Tensor, targets: torch.Tensor, *how: Any) -> torch.Tensor:
        seen.append(targets)
        return dice_bce(logits, targets, *how)

    monkeypatch.setattr(loop, "dice_bce", watched)
    images, targets = squares(4)
    chosen = settings(image_budget=40, augment_until=0.7, augment="strong", cutmix=1.0)
    fit(build(SMALL, 1, 1, 0), images, targets, chosen, seed=0)
    whole = sorted(targets.reshape(4, -1).tolist())
    as_they_are = [sorted((255 * batch).round().int().reshape(4, -1).tolist()) == whole for batch in seen]
    assert as_they_are == [False] * 7 + [True] * 3


WORKER = """
import json, sys, numpy as np, torch
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.training.loop import fit
from consilium.common.training.settings import TrainingSettings
data = np.load(sys.argv[1])
module = build(NetworkSettings(name="unet", width=4, norm="group"), 1, 1, seed=0)
settings = TrainingSettings.model_validate(json.loads(sys.argv[3]))
history = fit(module, data["images"], data["targets"], settings, seed=0, image_weights=data["weights"])
np.savez(f"{sys.argv[2]}/{torch.distributed.get_rank()}.npz", loss=[l for _, l in history.curve],
         **{n: t.numpy() for n, t in module.state_dict().items()})
"""


def test_two_processes_with_every_option_train_like_one(tmp_path: Path) -> None:
    images, targets = squares(6)
    weights = np.linspace(0.5, 1, 6)
    chosen = settings(**EVERYTHING)
    np.savez(tmp_path / "data.npz", images=images, targets=targets, weights=weights)
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, tmp_path / "worker.py", tmp_path / "data.npz", tmp_path, chosen.model_dump_json()],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    first, second = np.load(tmp_path / "0.npz"), np.load(tmp_path / "1.npz")
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    module = build(NetworkSettings(name="unet", width=4, norm="group"), 1, 1, seed=0)
    alone = fit(module, images, targets, chosen, seed=0, image_weights=weights)
    np.testing.assert_allclose(first["loss"], [loss for _, loss in alone.curve], rtol=1e-3)
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(first[name], tensor.numpy(), rtol=0.02, atol=2e-3)
