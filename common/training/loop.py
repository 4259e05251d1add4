"""The training loop: one process or many, CPU or GPU, interrupted or not, the same training.

Every random choice follows from the seed and the number of the step or epoch, never from what happened before, so a
training that was resumed does what it would have done undisturbed: on a CPU, with the same number of threads, to the
last bit. (torch's CPU kernels add in an order that depends on the number of threads only; GPU kernels promise nothing.)
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from consilium.common.errors import DataError, SettingsError, StudyError
from consilium.common.soft_mask import TARGET_LEVEL
from consilium.common.training import checkpoint
from consilium.common.training.augment import Draw, augment
from consilium.common.training.average import Average
from consilium.common.training.checkpoint import Curve, TrainingState
from consilium.common.training.cutmix import Mix, cutmix
from consilium.common.training.device import choose_device, to_unit
from consilium.common.training.distort import Distortion, distort
from consilium.common.training.loss import DICE_OF, dice_bce
from consilium.common.training.settings import TrainingSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # loads torch's compiler: a second that whoever does not train need not wait

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else a line about precision for every training

CURVE_POINTS: Final = 200
_ORDER, _AUGMENTATION, _DROPOUT, _DISTORTION, _CUTMIX = range(5)  # independent streams of one seed


@dataclass(frozen=True)
class Progress:
    """Where a training is."""

    step: int
    """Steps done, of `steps`."""
    steps: int
    images_seen: int
    loss: float | None
    """The newest point of the loss curve."""
    seconds: float
    """Since this process began or resumed the training."""


@dataclass(frozen=True)
class History:
    """How a training went."""

    curve: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the point before), about 200 points, of resumed trainings too."""
    steps: int
    resumed_at: int
    """The step this process went on from; 0 if it began."""
    seconds: float
    """Of this process alone."""


@dataclass(frozen=True)
class TrainingData:
    """Images and their soft masks, as `fit` takes them."""

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None
    hard: bool
    """Whether targets are cut at one half."""

    def batch(self, chosen: npt.NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gather images, targets (both in [0, 1]) and weights on a device."""
        weights = None if self.weights is None else torch.from_numpy(self.weights[chosen]).to(device)
        targets = self.targets[chosen]
        if self.hard:
            targets = np.where(targets >= TARGET_LEVEL, np.uint8(255), np.uint8(0))
        return to_unit(self.images[chosen], device), to_unit(targets, device), weights


def fit(
    module: nn.Module,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.uint8],
    settings: TrainingSettings,
    *,
    seed: int,
    indices: npt.NDArray[np.int64] | None = None,
    image_weights: npt.NDArray[np.floating] | None = None,
    hard: bool = False,
    folder: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> History:
    """Train a network, in place.

    Under ``torchrun`` every process calls this with the same arguments: each takes its share of every batch, gradients
    are averaged, process 0 writes checkpoints and reports progress; batch normalisation sees a process's share.

    Parameters
    ----------
    module
        Maps images (n, C, H, W) in [0, 1] to logits (n, K, H, W); on the CPU, where it is afterwards too.
    images
        uint8, (N, C, H, W); may be memory-mapped.
    targets
        uint8, (N, K, H, W), ``round(255 * probability)``; may be memory-mapped.
    settings
        How to train.
    seed
        At least 0; decides the order of the images, the augmentation and dropout.
    indices
        The images to train on, by position; all of them if not given.
    image_weights
        (N,), at least 0: relative weight of each image in the loss.
    hard
        Cut the targets at one half: a pixel is target, or it is not.
    folder
        For the checkpoint; a training found there is gone on with. Without it nothing is written.
    on_step
        Called after each step; what it raises ends the training.

    Returns
    -------
    History
        The loss curve and how long it took.

    Raises
    ------
    DataError
        If the arrays do not belong together or there is no image.
    SettingsError
        If the settings do not suit the machine or the number of processes.
    StateError
        If the folder holds another training's checkpoint, or a damaged one.
    StudyError
        If the loss is no longer a number.
    """
    data = _checked(images, targets, indices, image_weights, hard)
    fabric = _fabric(settings)
    with _torch_state(settings.threads, fabric.device):
        was_training = module.training
        optimizer = _optimizer(module, settings)
        digest = _digest(module, data, settings, seed)
        found = checkpoint.load(folder, digest) if folder else None
        try:
            run = _Run(fabric, module, optimizer, data, settings, seed, digest, folder)
            return run.train(found, on_step)
        finally:
            _lay_out(module.to("cpu"), torch.contiguous_format).train(was_training)


class _Run:
    """One process's part of one training."""

    def __init__(
        self,
        fabric: "Fabric",
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: TrainingData,
        settings: TrainingSettings,
        seed: int,
        digest: str,
        folder: Path | None,
    ) -> None:
        self.fabric, self.data, self.settings, self.seed, self.digest = fabric, data, settings, seed, digest
        self.plain_module, self.plain_optimizer = module, optimizer
        _lay_out(module, torch.channels_last)  # most networks train faster so on a CPU, none slower that was tried
        self.module, self.optimizer = fabric.setup(module, optimizer)
        self.folder = folder if fabric.is_global_zero else None
        self.steps = settings.steps(len(data.indices))
        self.order = _Order(data.indices, seed)
        self.average = Average(module, settings.ema) if settings.ema else None
        share = settings.batch // fabric.world_size
        self.share = torch.arange(fabric.global_rank * share, (fabric.global_rank + 1) * share)

    def train(self, found: TrainingState | None, on_step: Callable[[Progress], None] | None) -> History:
        curve, first = Curve(), 0
        if found:  # only now: the optimiser's state goes to where the weights are
            checkpoint.restore(found, self.plain_module, self.plain_optimizer)
            if found.precision:
                self.fabric.strategy.precision.load_state_dict(found.precision)
            if self.average:
                self.average.restore(found.average)
            curve, first = found.curve, found.step
        self.module.train()
        pending = torch.tensor(curve.pending_sum, dtype=torch.float64, device=self.fabric.device)
        stride = max(1, self.steps // CURVE_POINTS)
        started = saved = time.monotonic()
        for step in range(first, self.steps):
            pending += self._step(step)
            curve.pending_steps += 1
            done = step + 1
            if done % stride == 0 or done == self.steps:
                mean = float(self._over_processes(pending)) / curve.pending_steps
                _refuse_non_finite(mean, done, self.settings)
                curve.points.append((done, mean))
                curve.pending_steps = 0
                pending.zero_()
            now = time.monotonic()
            if self.folder and (done == self.steps or now - saved >= self.settings.checkpoint_every_s):
                curve.pending_sum = float(pending)
                _refuse_non_finite(curve.pending_sum, done, self.settings)
                self._save(self.folder, done, curve)
                saved = time.monotonic()
            if on_step and self.fabric.is_global_zero:
                loss = curve.points[-1][1] if curve.points else None
                on_step(Progress(done, self.steps, done * self.settings.batch, loss, now - started))
        if self.average:
            self.average.put()
        return History(tuple(curve.points), self.steps, first, time.monotonic() - started)

    def _step(self, step: int) -> Tensor:
        images, targets, weights = self._batch(step)
        _seed_torch(_number(self.seed, _DROPOUT, step, self.fabric.global_rank), self.fabric.device)
        settings = self.settings
        loss = dice_bce(self.module(images), targets, weights, DICE_OF[settings.loss], settings.dice_share)
        self.fabric.backward(loss)
        if settings.clip_norm:
            # a gradient that is not finite shows in the loss, or is mixed precision's to skip
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
            )
        for group in self.plain_optimizer.param_groups:
            group["lr"] = settings.rate(step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(step + 1)
        return loss.detach()

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gather this process's share of a step's batch, augmented and mixed."""
        settings, device = self.settings, self.fabric.device
        augments = settings.augments(step, self.steps)
        mix, rows = None, self.share
        if settings.cutmix and augments:
            mix = Mix.of(settings.batch, settings.cutmix, self._generator(_CUTMIX, step)).part(self.share)
            rows = mix.needed
        chosen = self.order.positions(step * settings.batch, settings.batch)
        images, targets, weights = self.data.batch(chosen[rows.numpy()], device)
        if settings.augment != "none" and augments:
            draw = Draw.of(settings.batch, self._generator(_AUGMENTATION, step)).part(rows)
            images, targets = augment(images, targets, draw)
        if settings.augment == "strong" and augments:
            images = distort(images, Distortion.of(settings.batch, self._generator(_DISTORTION, step)).part(rows))
        return cutmix(images, targets, weights, mix) if mix else (images, targets, weights)

    def _generator(self, stream: int, step: int) -> torch.Generator:
        """Give random numbers for a whole batch, the same in every process."""
        return torch.Generator().manual_seed(_number(self.seed, stream, step))

    def _over_processes(self, value: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return value
        mean = self.fabric.all_reduce(value, reduce_op="mean")
        return mean if isinstance(mean, Tensor) else torch.as_tensor(mean)

    def _save(self, folder: Path, step: int, curve: Curve) -> None:
        weights, moments = self.plain_module.state_dict(), self.plain_optimizer.state_dict()
        average = self.average.tensors if self.average else {}
        precision = self.fabric.strategy.precision.state_dict()
        checkpoint.save(TrainingState(self.digest, step, weights, moments, curve, average, precision), folder)


class _Order:
    """The images of all epochs as one stream: each epoch a new permutation, decided by seed and epoch."""

    def __init__(self, indices: npt.NDArray[np.int64], seed: int) -> None:
        self.indices, self.seed = indices, seed
        self._epoch, self._permutation = -1, indices

    def positions(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give `count` images of the stream from `start` on."""
        parts, end = list[npt.NDArray[np.int64]](), start + count
        while start < end:
            epoch, offset = divmod(start, len(self.indices))
            parts.append(self._of(epoch)[offset : offset + end - start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _of(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, _ORDER, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(self.indices)
        return self._permutation


def _number(*words: int) -> int:
    """Mix a seed, a stream and a counter into 63 independent bits."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _checked(
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.uint8],
    indices: npt.NDArray[np.int64] | None,
    image_weights: npt.NDArray[np.floating] | None,
    hard: bool,
) -> TrainingData:
    count = len(images)
    for name, array in (("images", images), ("targets", targets)):
        if array.ndim != 4 or array.dtype != np.uint8:
            raise DataError(f"{name} are uint8 of shape (n, channels, H, W); got {array.dtype}, {array.shape}")
    if len(targets) != count or targets.shape[2:] != images.shape[2:]:
        raise DataError(f"each image needs a target of its size; got {images.shape} and {targets.shape}")
    chosen = np.arange(count) if indices is None else np.asarray(indices, np.int64)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
        raise DataError(f"training needs one image or more, by positions 0 to {count - 1}; got {len(chosen)} positions")
    if image_weights is None:
        return TrainingData(images, targets, chosen, None, hard)
    weights = np.asarray(image_weights, np.float64)
    if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights[chosen].any():
        raise DataError(f"image weights are {count} finite numbers of at least 0, not all 0; got shape {weights.shape}")
    return TrainingData(images, targets, chosen, (weights / weights[chosen].mean()).astype(np.float32), hard)


def _optimizer(module: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    # the fused step undoes 16-mixed's scaling by itself, too late for clipping
    fused = not (settings.clip_norm and settings.precision == "16-mixed")
    if settings.optimizer == "adam":
        return torch.optim.Adam(module.parameters(), lr=settings.learning_rate, fused=fused)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=fused)


def _fabric(settings: TrainingSettings) -> "Fabric":
    """Join the processes torchrun started, or be the only one; never start others."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    started = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
    local, world = int(started.get("LOCAL_WORLD_SIZE", 1)), int(started.get("WORLD_SIZE", 1))
    if settings.batch % world:
        raise SettingsError(f"batch is a multiple of the number of processes, {world}; got {settings.batch}")
    device = choose_device(settings.device)
    if device.type == "cpu" and settings.precision == "16-mixed":
        raise SettingsError("precision 16-mixed needs a GPU; use bf16-mixed or 32-true")
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=settings.precision,
        plugins=LightningEnvironment() if world == 1 else None,  # else a Slurm or MPI job around us would be joined
    )
    fabric.launch()
    return fabric


def _lay_out(module: nn.Module, form: torch.memory_format) -> nn.Module:
    """Put a network's planes into a memory format, in place."""
    return module.to(memory_format=form)  # type: ignore[call-overload, no-any-return]  # torch's types lack it


def _seed_torch(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def _torch_state(threads: int, device: torch.device) -> Iterator[None]:
    """Leave torch's random state and thread count as they were."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _digest(module: nn.Module, data: TrainingData, settings: TrainingSettings, seed: int) -> str:
    """Name the training: SHA-256, in hex, of all that decides its result but the pixels."""
    facts: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", by_alias=False, exclude=settings.indecisive()),
        "seed": seed,
        "shapes": [data.images.shape, data.targets.shape],
        "indices": _sha256(data.indices.tobytes()),
        "weights": None if data.weights is None else _sha256(data.weights.tobytes()),
        "network": {name: _sha256(_bytes_of(tensor)) for name, tensor in module.state_dict().items()},
    }
    if data.hard:  # soft ones keep the name that they had before there was a choice
        facts["hard"] = True
    return _sha256(json.dumps(facts, sort_keys=True).encode())


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return flat.data


def _refuse_non_finite(loss: float, step: int, settings: TrainingSettings) -> None:
    if not math.isfinite(loss):
        raise StudyError(
            f"the loss must stay a number; by step {step} it was {loss}. Lower learning-rate "
            f"({settings.learning_rate:g}) or use precision 32-true (now {settings.precision}); "
            "a checkpoint from before is kept"
        )
