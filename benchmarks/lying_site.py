"""What one lying site of five costs: the fused masks, and the student that learns from them.

Five simulated hospitals train their teachers on phantoms. Each teacher predicts all shared images, once. Then one site's
masks are replaced by lies (inverted, or noise), the five are fused by every method, images are excluded as in a study, and a
student is trained and tested on the pooled test images, with several seeds. The cost of a lie is how far Dice falls below that
of the same method with five honest sites. The sites' agreement is what `consilium status` and the report would show.

    python benchmarks/lying_site.py
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
from _measure import parser, print_machine, print_table, print_target, timed
from orchestration import prepare_once

from consilium.clients.settings import load_site
from consilium.clients.teachers.checkpoint import CheckpointTeacher
from consilium.common.catalogue import open_catalogue
from consilium.common.datasets import labelled
from consilium.common.metrics import dice
from consilium.common.settings import load
from consilium.common.soft_mask import SoftMasks, quantise
from consilium.common.study import FusionSettings, Study
from consilium.common.training.predict import predict
from consilium.server import agreement, exclusion
from consilium.server.distill import distill
from consilium.server.fusion.methods import method_of

POINTS = 1.0
"""Dice points that a lie may cost the student under the trimmed mean."""
METHODS = ("weighted-mean", "trimmed-mean", "median")
SITES = {
    "north": ("north", "unet", 8),
    "east": ("east", "attention-unet", 8),
    "south": ("south", "sdu-net", 16),
    "west": ("west", "panoptic-fpn", 16),
    "clinic": ("north", "unet", 8),
}
"""Of each site: whose scanner and patients, its teacher's network and width."""
BATCH = 32

Lie = Callable[[SoftMasks, np.random.Generator], SoftMasks]
LIES: dict[str, Lie] = {
    "honest": lambda masks, _rng: masks,
    "inverted": lambda masks, _rng: np.asarray(255 - masks, np.uint8),
    "noise": lambda masks, rng: rng.integers(0, 256, masks.shape).astype(np.uint8),
}


def settings_of(given: Namespace) -> dict[str, Any]:
    """The study, in TOML's spelling."""
    training = {"image-budget": given.teacher_budget, "batch": 8, "learning-rate": 2e-3, "threads": 1}
    sites = {
        name: {
            "hospital": hospital,
            "images": 8 if given.tiny else 80,
            "referrals": 0.15,
            "network": {"name": network, "width": width}
            | ({"encoder": "tu-test_byobnet"} if network == "panoptic-fpn" else {}),
            "training": training,
        }
        for name, (hospital, network, width) in SITES.items()
    }
    return {
        "name": "lying-site",
        "preset": "paper",
        "seed": 7,
        "sites": list(sites),
        "image": {"size": given.size, "channels": 1},
        "exclusion": {"alpha": 256.0, "beta": 8.0 if given.tiny else 5.0},  # as in the demo
        "student": {
            "network": {"name": "deeplabv3plus", "encoder": "tu-test_efficientnet", "width": 16},
            "training": {
                "image-budget": given.budget,
                "batch": 8,
                "learning-rate": 3e-3,
                "schedule": "cosine",
                "augment": False,
                "threads": 1,
            },
        },
        "simulation": {
            "source": "phantoms",
            "transferal-images": given.images,
            "test-images": 4 if given.tiny else 25,
            "sites": sites,
        },
    }


class Bench:
    """A prepared federation, and every teacher's soft masks of all images."""

    def __init__(self, root: Path) -> None:
        self.study = load(Study, root / "study.toml")
        self.catalogue = open_catalogue(root / "catalogue")
        self.tests = self.catalogue.indices("test")
        self.truth = labelled.open_packed(root / "test").masks
        self.masks = {site: self._predict(root / "sites" / site / "site.toml") for site in self.study.sites}

    def _predict(self, settings: Path) -> SoftMasks:
        home, images = load_site(settings), self.catalogue.pixels
        teacher = CheckpointTeacher(home.teacher, home.settings.teacher, "cpu")
        return np.concatenate(
            [quantise(teacher.predict(images[at : at + BATCH])) for at in range(0, len(images), BATCH)]
        )

    def with_lie(self, liar: str, lie: str) -> dict[str, SoftMasks]:
        """All sites' masks, one of them lying."""
        return self.masks | {liar: LIES[lie](self.masks[liar], np.random.default_rng(1))}

    def fused(self, masks: dict[str, SoftMasks], method: str) -> SoftMasks:
        """The pseudo masks."""
        fusion = method_of(FusionSettings.model_validate({"method": method}))
        parts = []
        for at in range(0, len(self.catalogue), BATCH):
            state = fusion.init((len(self.catalogue.pixels[at : at + BATCH]), *self.study.mask_shape))
            for held in masks.values():
                fusion.fold(state, held[at : at + BATCH], 1, None)
            parts.append(fusion.finish(state))
        return np.concatenate(parts)

    def kept(self, pseudo: SoftMasks) -> npt.NDArray[np.int64]:
        """Positions of the images that the student trains on."""
        limits = self.study.exclusion
        found = exclusion.statistics(pseudo)
        reasons = exclusion.reasons(found, alpha=limits.alpha, beta=limits.beta, size=self.study.image.size)
        return np.array([i for i in self.catalogue.indices("transferal") if not reasons[i]], np.int64)

    def score(self, masks: SoftMasks) -> float:
        """Mean Dice in percent on the pooled test images."""
        return float(100 * dice(masks, self.truth).mean())

    def student(self, pseudo: SoftMasks, kept: npt.NDArray[np.int64], seed: int) -> float:
        """Train a student; gives its Dice, 0 if no image is left to train on."""
        if not len(kept):
            return 0.0
        trained, _ = distill(self.catalogue.pixels, pseudo, self.study.student, seed=seed, kept=kept)
        return self.score(quantise(predict(trained, self.catalogue.pixels[self.tests], device="cpu")))

    def agreement(self, masks: dict[str, SoftMasks]) -> dict[str, agreement.Agreement]:
        """How far each site agrees with the others."""
        counted = agreement.of_chunk({site: agreement.sample(held, (0,)) for site, held in masks.items()})
        return {site: agreement.Agreement(total / (images * 100), images) for site, (images, total) in counted.items()}


def main() -> int:
    """Prepare, measure and print."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=400, help="transferal images")
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--budget", type=int, default=4000, help="images each student sees")
    options.add_argument("--teacher-budget", type=int, default=1600, help="images each teacher sees")
    options.add_argument("--seeds", type=int, default=2, help="students trained of each kind")
    options.add_argument("--liar", choices=list(SITES), default="east")
    given = options.parse_args()
    if given.tiny:
        given.images, given.size, given.budget, given.teacher_budget, given.seeds = 16, 48, 16, 32, 1
    print_machine()
    with tempfile.TemporaryDirectory() as root:
        settings = Path(root) / "study.toml"
        settings.write_text(tomli_w.dumps(settings_of(given)), "utf-8")
        took = timed(lambda: prepare_once(settings, Path(root) / "prepared"))
        bench = Bench(Path(root) / "prepared")
    print(f"prepared in {took:.0f} s: {given.images} transferal images of {given.size} pixels, 5 teachers; their Dice:")
    print(", ".join(f"{site} {bench.score(masks[bench.tests]):.1f}" for site, masks in bench.masks.items()) + "\n")
    print_agreement(bench, given.liar)
    return print_costs(bench, given)


def print_agreement(bench: Bench, liar: str) -> None:
    """Who is found."""
    rows = []
    for lie in LIES:
        held = bench.agreement(bench.with_lie(liar, lie))
        apart = ", ".join(agreement.stand_apart(held)) or "none"
        rows.append((lie, *(f"{held[site].mean:.1f}" for site in SITES), apart))
    print_table((f"agreement in percent; {liar} is", *SITES, "stands apart"), rows)


def print_costs(bench: Bench, given: Namespace) -> int:
    """What each lie costs under each method."""
    rows, costs = [], []
    for method in METHODS:
        usual: tuple[float, float] | None = None
        for lie in LIES:
            pseudo = bench.fused(bench.with_lie(given.liar, lie), method)
            kept, ensemble = bench.kept(pseudo), bench.score(pseudo[bench.tests])
            students = [bench.student(pseudo, kept, seed) for seed in range(given.seeds)]
            student = float(np.mean(students))
            usual = usual or (ensemble, student)
            if lie != "honest" and method == "trimmed-mean":
                costs.append(usual[1] - student)
            spread = f"{min(students):.1f} to {max(students):.1f}"
            fell = [f"{before - now:+.1f}" for before, now in zip(usual, (ensemble, student), strict=True)]
            rows.append((method, lie, len(kept), f"{ensemble:.1f}", fell[0], f"{student:.1f}", spread, fell[1]))
    print_table(
        ("method", f"{given.liar} is", "images kept", "fused Dice", "lost", "student Dice", "over seeds", "lost"), rows
    )
    print_target(
        f"a lying site of five costs the student at most {POINTS:g} Dice point under the trimmed mean "
        f"(here {max(costs):.1f} at most)",
        max(costs) <= POINTS,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
