"""How fast `fit` trains, against a bare loop with the same network, augmentation, loss and optimiser.

The bare loop has images and targets as float32 tensors in memory and does nothing but the steps. `fit` reads uint8 from
memory-mapped files, chooses images from its resumable order, seeds every step, keeps a loss curve, reports every step
and writes checkpoints. Its images per second count from its first step, checkpoints every 30 s included; what it does
once (hash the network, set up Fabric, write the last checkpoint) is told beside it.

    python benchmarks/training_step.py
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from _measure import alternate, paired_ratio, parser, print_machine, print_table, print_target, timed

from consilium.common.datasets import phantoms
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.training.augment import Draw, augment
from consilium.common.training.loop import Progress, fit
from consilium.common.training.loss import dice_bce
from consilium.common.training.settings import TrainingSettings

TARGET = 0.95
DEMO = NetworkSettings(name="deeplabv3plus", encoder="resnet18", width=32)
SMALL = NetworkSettings(name="unet", width=4)
BATCH = 8


@dataclass
class Case:
    """A network to train on phantoms that lie in a folder."""

    name: str
    network: NetworkSettings
    size: int
    steps: int
    folder: Path
    images: int = 200
    once_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        images, masks = phantoms.make("north", self.images, self.size, seed=3)
        np.save(self.folder / "images.npy", images)
        np.save(self.folder / "targets.npy", masks * np.uint8(255))
        self.mapped = [np.load(self.folder / f"{part}.npy", mmap_mode="r") for part in ("images", "targets")]
        self.tensors = [torch.from_numpy(np.array(array)).float() / 255 for array in self.mapped]

    def bare(self) -> float:
        """Train with nothing around it; gives seconds."""
        module = build(self.network, 1, 1, seed=0).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        generator = torch.Generator().manual_seed(0)
        images, targets = self.tensors

        def train() -> None:
            for _step in range(self.steps):
                chosen = torch.randint(len(images), (BATCH,), generator=generator)
                augmented, masks = augment(images[chosen], targets[chosen], Draw.of(BATCH, generator))
                loss = dice_bce(module(augmented), masks)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return timed(train)

    def fit(self) -> float:
        """Train with `fit`; gives seconds from its first step to its last."""
        module = build(self.network, 1, 1, seed=0)
        settings = TrainingSettings(image_budget=BATCH * self.steps, batch=BATCH, learning_rate=1e-3, device="cpu")
        images, targets = self.mapped
        ends: list[Progress] = []

        def keep(progress: Progress) -> None:
            ends[:] = [progress]

        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            call = timed(lambda: fit(module, images, targets, settings, seed=0, folder=Path(folder), on_step=keep))
        before_last = ends[0].seconds
        self.once_s.append(call - before_last)
        return before_last


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1, help="CPU threads of both; 0 leaves torch's own choice")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print_machine()
    rows, worst = [], float("inf")
    for name, network, size, steps in (("the demo's student", DEMO, 96, 30), ("steps of few ms", SMALL, 64, 200)):
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, network, size, 2 if given.tiny else steps, Path(folder), 8 if given.tiny else 200)
            sides = {"bare": case.bare, "fit": case.fit}
            alternate(sides, 1)  # warm up
            seconds = alternate(sides, 1 if given.tiny else given.rounds)
        ratio, low, high = paired_ratio(seconds["bare"], seconds["fit"])
        worst = min(worst, ratio)
        speed = {side: f"{BATCH * case.steps / statistics.median(times):.1f}" for side, times in seconds.items()}
        rows.append(
            (
                f"{name}: {network.name} {network.width}, {size} x {size}, batches of {BATCH}",
                speed["bare"],
                speed["fit"],
                f"{ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{statistics.median(case.once_s):.2f}",
            )
        )
    print_table(("training", "bare, images/s", "fit, images/s", "fit / bare", "over the rounds", "once, s"), rows)
    print(f"threads: {torch.get_num_threads()}")
    print_target(f"at least {TARGET:.2f} of the bare loop's images per second, on every row", worst >= TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
