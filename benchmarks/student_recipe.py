"""What each part of a modern student's recipe adds to the paper's training, and all parts together.

Four hospitals' teachers, each trained for a short time on its own phantoms, mask the same unlabelled phantoms; their masks
are fused and images excluded once. Then students with the same network, seed and number of images seen learn from these
same pseudo masks: one by the paper's recipe (Adam, constant rate, Dice and cross-entropy alike, five augmentations), one
with each part added alone, one with all of them, and one with all of them but the strong augmentation and CutMix, which want
long trainings. All are scored on test images of all hospitals that nobody saw.

The difference to the paper's recipe is told with its standard error, over test images and over seeds together: a student that
was trained again from another seed is another student, and at these lengths that alone moves its Dice by a few percent. The
second generation has twice the steps.

    python benchmarks/student_recipe.py
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _measure import parser, print_machine, print_table, print_target
from torch import nn

from consilium.common.datasets import phantoms
from consilium.common.metrics import dice
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.soft_mask import SoftMasks, quantise
from consilium.common.study import StudentSettings
from consilium.common.training.loop import fit
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings
from consilium.server import exclusion
from consilium.server.distill import distill
from consilium.server.ensemble import pseudo_masks
from consilium.server.weighting import self_dice

U8 = npt.NDArray[np.uint8]
HOSPITALS = ("north", "east", "south", "west")
NETWORK = NetworkSettings(name="deeplabv3plus", encoder="tu-test_efficientnet", width=16)
RATE, BATCH = 3e-3, 8

PARTS: dict[str, dict[str, Any]] = {
    "dice-share 0.75": {"dice_share": 0.75},
    "adamw, decay 0.01": {"optimizer": "adamw", "weight_decay": 0.01},
    "warm-up 0.05, cosine": {"warm_up": 0.05, "schedule": "cosine"},
    "clip-norm 1": {"clip_norm": 1.0},
    "ema 0.99": {"ema": 0.99},
    "cutmix 0.5": {"cutmix": 0.5},
    "augment strong": {"augment": "strong"},
}
LONG = ("cutmix 0.5", "augment strong")
"""Parts that make the task harder, and pay in long trainings only."""
ALL = {key: value for part in PARTS.values() for key, value in part.items()}
ALL_BUT_LONG = {key: value for name, part in PARTS.items() if name not in LONG for key, value in part.items()}

RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of training, of the student
    "the paper's": ({}, {}),
    **{f"+ {name}": (part, {}) for name, part in PARTS.items()},
    "+ self-dice weights": ({}, {"image_weights": "self-dice"}),
    "+ second generation": ({}, {"generations": 2}),
    "no augmentation": ({"augment": "none"}, {}),
    "all, one generation": (ALL, {"image_weights": "self-dice"}),
    "all but strong and cutmix": (ALL_BUT_LONG, {"image_weights": "self-dice"}),
}


@dataclass(frozen=True)
class Task:
    """What every student learns from, and is scored on."""

    images: U8
    pseudo: SoftMasks
    kept: npt.NDArray[np.int64]
    test_images: U8
    test_masks: U8


@dataclass(frozen=True)
class Teacher:
    """A network that gives soft masks."""

    module: nn.Module

    def predict(self, images: U8, /) -> npt.NDArray[np.float32]:
        """Segment images."""
        return predict(self.module, images, device="cpu")


def training(budget: int, **changes: object) -> TrainingSettings:
    """Give the paper's training, with this many images, a batch and a rate that such a short one needs."""
    values = {"image_budget": budget, "batch": BATCH, "learning_rate": RATE, "device": "cpu", "threads": 1}
    return TrainingSettings.model_validate(values | changes)


def teach(size: int, budget: int) -> list[Teacher]:
    """Train a teacher at each hospital."""
    teachers = []
    for hospital in HOSPITALS:
        images, masks = phantoms.make(hospital, 60, size, seed=1)
        module = build(NETWORK, 1, 1, seed=0)
        fit(module, images, masks * np.uint8(255), training(budget, augment=False), seed=0)
        teachers.append(Teacher(module))
    return teachers


def prepare(size: int, transferal: int, tests: int, teacher_budget: int) -> Task:
    """Train the teachers, and mask, fuse and select once for all students; tells how good the masks are."""
    unseen = [phantoms.make(h, transferal // len(HOSPITALS), size, seed=2, lesion_free=0.2) for h in HOSPITALS]
    test = [phantoms.make(h, tests // len(HOSPITALS), size, seed=3) for h in HOSPITALS]
    images, truth = (np.concatenate(part) for part in zip(*unseen, strict=True))
    test_images, test_masks = (np.concatenate(part) for part in zip(*test, strict=True))
    if teacher_budget:
        teachers = teach(size, teacher_budget)
        pseudo = pseudo_masks(teachers, images)
        own = [f"{100 * dice(quantise(each.predict(test_images)), test_masks).mean():.1f}" for each in teachers]
        together = 100 * dice(pseudo_masks(teachers, test_images), test_masks).mean()
        print(f"on {len(test_images)} test images: teachers {', '.join(own)} %, ensemble {together:.1f} %")
    else:
        pseudo = truth * np.uint8(204)
    reasons = exclusion.reasons(exclusion.statistics(pseudo), alpha=256, beta=6.0, size=size)
    kept = np.flatnonzero([not reason for reason in reasons])
    quality, sure = dice(pseudo[kept], truth[kept]), self_dice(pseudo[kept])
    print(
        f"{len(kept)} of {len(images)} images of {size} x {size} kept; their pseudo masks: Dice {100 * quality.mean():.1f} %,"
    )
    print(f"self-Dice {sure.min():.2f} to {sure.max():.2f}\n", flush=True)
    return Task(images, pseudo, kept, test_images, test_masks)


def learn(task: Task, recipe: str, budget: int, seed: int) -> tuple[npt.NDArray[np.float64], float]:
    """Train a student; gives its Dice on each test image, and seconds."""
    how, student = RECIPES[recipe]
    settings = StudentSettings(network=NETWORK, training=training(budget, **how), **student)
    started = time.perf_counter()
    module, _ = distill(task.images, task.pseudo, settings, seed=seed, kept=task.kept)
    seconds = time.perf_counter() - started
    return dice(quantise(predict(module, task.test_images, device="cpu")), task.test_masks), seconds


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=64, help="height and width of images in pixels")
    options.add_argument("--budget", type=int, default=2000, help="images a student sees")
    options.add_argument("--teacher-budget", type=int, default=800, help="images a teacher sees")
    options.add_argument("--transferal", type=int, default=320, help="unlabelled images")
    options.add_argument("--tests", type=int, default=120, help="test images")
    options.add_argument("--seeds", type=int, default=4)
    given = options.parse_args()
    torch.set_num_threads(1)
    print_machine()
    if given.tiny:
        given.size, given.budget, given.teacher_budget = 48, 16, 0
        given.transferal, given.tests, given.seeds = 16, 8, 1
    task = prepare(given.size, given.transferal, given.tests, given.teacher_budget)
    found: dict[str, list[tuple[npt.NDArray[np.float64], float]]] = {name: [] for name in RECIPES}
    for seed in range(given.seeds):
        for name in list(RECIPES)[:: 1 if seed % 2 == 0 else -1]:
            found[name].append(learn(task, name, given.budget, seed))
    values = {name: np.stack([scores for scores, _ in runs]) for name, runs in found.items()}
    base = values["the paper's"]
    base_s = sum(seconds for _, seconds in found["the paper's"])
    rows = []
    for name, scores in values.items():
        more = 100 * (scores - base)
        error = np.hypot(*(_standard_error(more.mean(axis)) for axis in (0, 1)))
        rows.append(
            (
                name,
                f"{100 * scores.mean():.1f}",
                ", ".join(f"{100 * each:.1f}" for each in scores.mean(1)),
                "" if scores is base else f"{more.mean():+.1f} +- {error:.1f}",
                f"{sum(seconds for _, seconds in found[name]) / base_s:.2f}",
            )
        )
    head = ("recipe", "Dice, %", "seed by seed", "more than the paper's", "times its seconds")
    print_table(head, rows)
    print(
        f"{given.seeds} seeds, {given.budget} images seen each, batches of {BATCH}, rate {RATE:g}; {base_s:.0f} s for the paper's"
    )
    together = values["all, one generation"].mean()
    print_target("all parts together are at least as good as the paper's recipe", bool(together >= base.mean()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
