"""How fast `fit` trains, against a bare loop with the same network, augmentation, loss and optimiser.

The bare loop has images and targets as float32 tensors in memory and does nothing but the steps. `fit` reads uint8 from
memory-mapped files, chooses images from its resumable order, seeds every step, keeps a loss curve, reports every step
and writes checkpoints. Its images per second count from its first step, checkpoints included; what it does once before
(hash the network, set up Fabric) is told beside it.

    python benchmarks/training_step.py
"""

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _measure import alternate, paired_ratio, parser, print_machine, print_table, print_target, timed

from consilium.common.datasets import phantoms
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.training.augment import Draw, augment
from consilium.common.training.loop import fit
from consilium.common.training.loss import dice_bce
from consilium.common.training.settings import TrainingSettings

TARGET = 0.95
CASES = (
    ("the demo's student", NetworkSettings(name="deeplabv3plus", encoder="resnet18", width=32), 96, 8, 30),
    ("a step of a few ms", NetworkSettings(name="unet", width=4), 64, 8, 300),
)

Pixels = npt.NDArray[np.uint8]


def bare(network: NetworkSettings, images: torch.Tensor, targets: torch.Tensor, batch: int, steps: int) -> float:
    """Train with nothing around it; gives seconds."""
    module = build(network, 1, 1, seed=0)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def train() -> None:
        for _step in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=generator)
            augmented, masks = augment(images[chosen], targets[chosen], Draw.of(batch, generator))
            loss = dice_bce(module(augmented), masks)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    return timed(train)


def whole(network: NetworkSettings, images: Pixels, targets: Pixels, batch: int, steps: int) -> tuple[float, float]:
    """Train with `fit`; gives seconds of its steps, and of the call beyond them."""
    module = build(network, 1, 1, seed=0)
    settings = TrainingSettings(image_budget=batch * steps, batch=batch, learning_rate=1e-3, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        history = []
        call = timed(
            lambda: history.append(
                fit(module, images, targets, settings, seed=0, folder=Path(folder), on_step=lambda _progress: None)
            )
        )
    return history[0].seconds, call - history[0].seconds


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--threads", type=int, default=0, help="CPU threads of both; 0 leaves torch's own choice")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print_machine()
    rows, worst = [], float("inf")
    for name, network, size, batch, steps in CASES[1:] if given.tiny else CASES:
        steps, rounds = (3, 2) if given.tiny else (steps, given.rounds)
        with tempfile.TemporaryDirectory() as folder:
            made = phantoms.make("north", 16 if given.tiny else 200, size, seed=3)
            mapped = []
            for part, array in zip(("images", "targets"), (made[0], made[1] * np.uint8(255)), strict=True):
                np.save(Path(folder) / part, array)
                mapped.append(np.load(Path(folder) / f"{part}.npy", mmap_mode="r"))
            images, targets = (torch.from_numpy(np.array(array)).float() / 255 for array in mapped)
            before: list[float] = []

            def with_fit() -> float:
                seconds, beyond = whole(network, mapped[0], mapped[1], batch, steps)
                before.append(beyond)
                return seconds

            sides = {"bare": lambda: bare(network, images, targets, batch, steps), "fit": with_fit}
            alternate(sides, 1)  # warm up
            seconds = alternate(sides, rounds)
        ratio, low, high = paired_ratio(seconds["bare"], seconds["fit"])
        worst = min(worst, ratio)
        speed = {side: f"{batch * steps / statistics.median(times):.1f}" for side, times in seconds.items()}
        rows.append(
            (
                f"{name}: {network.name} {network.width}, {size} x {size}, batches of {batch}",
                speed["bare"],
                speed["fit"],
                f"{ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{statistics.median(before):.2f} s",
            )
        )
    print_table(("training", "bare, images/s", "fit, images/s", "fit / bare", "over the rounds", "once a training"), rows)
    print(f"threads: {torch.get_num_threads()}")
    print_target(f"at least {TARGET:.2f} of the bare loop's images per second, on every row", worst >= TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
