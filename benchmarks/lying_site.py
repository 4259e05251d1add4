"""What one lying site of five costs: the fused masks, and the student that learns from them.

The demo's four hospitals, its images, preset and student, and a fifth hospital beside them. Each teacher answers about all
shared images once, as a site of such a study does. Then one site's masks are replaced by lies (inverted, or noise), and it says
of itself that its validation is faultless. The five are fused by every method, images are excluded and weighed as the study
says, and a student is trained and tested on the pooled test images, with several seeds. The cost of a lie is how far Dice falls
below that of the same method with five honest sites. The sites' agreement is what `consilium status` and the report would show.

    python benchmarks/lying_site.py
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
from _measure import parser, print_machine, print_table, print_target, timed
from orchestration import prepare_once

from consilium.clients.settings import load_site
from consilium.clients.site import temperature_of
from consilium.clients.teachers.checkpoint import CheckpointTeacher
from consilium.common.catalogue import open_catalogue
from consilium.common.datasets import labelled
from consilium.common.metrics import dice
from consilium.common.settings import load, read_toml
from consilium.common.soft_mask import SoftMasks, quantise
from consilium.common.study import FusionSettings, Study
from consilium.common.temperature import LOGITS_CLIP, temper
from consilium.common.training.predict import predict
from consilium.common.validation import Validation, from_card
from consilium.common.views import look
from consilium.server import agreement, consensus, exclusion
from consilium.server.distill import distill
from consilium.server.shipped import find_settings

POINTS = 1.0
"""Dice points that a lie may cost the student under the trimmed mean."""
METHODS = ("weighted-mean", "trimmed-mean", "median")
FIFTH = {"clinic": "north"}
"""The hospital that the demo has not: another teacher for the scanner and the patients of one that it has."""
BATCH = 32

Lie = Callable[[SoftMasks, np.random.Generator], SoftMasks]
LIES: dict[str, Lie] = {
    "honest": lambda masks, _rng: masks,
    "inverted": lambda masks, _rng: np.asarray(255 - masks, np.uint8),
    "noise": lambda masks, rng: rng.integers(0, 256, masks.shape).astype(np.uint8),
}


def demo() -> dict[str, Any]:
    """The demo's settings."""
    return read_toml(find_settings(Path("demo.toml")))


def settings_of(given: Namespace) -> dict[str, Any]:
    """The demo's study with a fifth site, in TOML's spelling."""
    settings = demo()
    sites = settings["simulation"]["sites"]
    sites |= {name: sites[like] for name, like in FIFTH.items()}
    settings |= {"name": "lying-site", "sites": list(sites)}
    settings["simulation"]["transferal-images"] = given.images
    settings["student"]["training"] |= {"image-budget": given.budget, "threads": 1}
    if given.tiny:
        settings["image"]["size"] = 48
        settings["student"]["image-weights"] = "none"  # masks without a target weigh nothing
        # teachers so short of training agree on nothing
        settings["exclusion"] = {"rule": "paper", "alpha": 0.0, "beta": 8.0}
        settings["simulation"]["test-images"] = 4
        for site in sites.values():
            site |= {"images": 12, "training": site["training"] | {"image-budget": 32}}
    return settings


class Bench:
    """A prepared federation: what every teacher answers about all images, and what its site says of it."""

    def __init__(self, root: Path) -> None:
        self.study = load(Study, root / "study.toml")
        self.catalogue = open_catalogue(root / "catalogue")
        self.tests = self.catalogue.indices("test")
        self.truth = labelled.open_packed(root / "test").masks
        self.masks: dict[str, SoftMasks] = {}
        self.validation: dict[str, Validation] = {}
        for site in self.study.sites:
            self._ask(site, root / "sites" / site / "site.toml")

    def _ask(self, site: str, settings: Path) -> None:
        home, images, views = load_site(settings), self.catalogue.pixels, self.study.fusion.views
        teacher = CheckpointTeacher(home.teacher, home.settings.teacher, "cpu")
        temperature = temperature_of(home, teacher.card) if self.study.fusion.calibrated else 1.0
        answers = [look(teacher.predict, images[at : at + BATCH], views) for at in range(0, len(images), BATCH)]
        self.masks[site] = quantise(temper(np.concatenate(answers), temperature, LOGITS_CLIP))
        if told := from_card(teacher.card):
            self.validation[site] = told

    def with_lie(self, liar: str, lie: str) -> dict[str, SoftMasks]:
        """All sites' masks, one of them lying."""
        return self.masks | {liar: LIES[lie](self.masks[liar], np.random.default_rng(1))}

    def fused(self, masks: dict[str, SoftMasks], method: str, liar: str = "") -> consensus.Fused:
        """The pseudo masks of all images, and what stands behind them."""
        fusion = FusionSettings.model_validate(self.study.fusion.model_dump() | {"method": method})
        told = dict(self.validation)
        if liar in told:
            told[liar] = replace(told[liar], dice=100.0, misses=0)
        return consensus.fuse(masks, fusion, told, self.study.exclusion.alpha)

    def kept(self, fused: consensus.Fused) -> npt.NDArray[np.int64]:
        """Positions of the images that the student trains on."""
        rule, size, found = self.study.exclusion, self.study.image.size, exclusion.statistics(fused.masks)
        reasons = (
            exclusion.reasons(found, alpha=rule.alpha, beta=rule.beta, size=size)
            if rule.rule == "paper"
            else exclusion.reasons_by_consensus(found, fused.consensus, alpha=rule.alpha, size=size)
        )
        return np.array([i for i in self.catalogue.indices("transferal") if not reasons[i]], np.int64)

    def score(self, masks: SoftMasks) -> float:
        """Mean Dice in percent on the pooled test images."""
        return float(100 * dice(masks, self.truth).mean())

    def student(self, fused: consensus.Fused, kept: npt.NDArray[np.int64], seed: int) -> float:
        """Train a student; gives its Dice, 0 if no image is left to train on."""
        if not len(kept):
            return 0.0
        trained, _ = distill(
            self.catalogue.pixels, fused.masks, self.study.student, seed=seed, kept=kept, agreement=fused.agreement
        )
        return self.score(quantise(predict(trained, self.catalogue.pixels[self.tests], device="cpu")))

    def agreement(self, masks: dict[str, SoftMasks]) -> dict[str, agreement.Agreement]:
        """How far each site agrees with the others."""
        counted = agreement.of_chunk({site: agreement.sample(held, (0,)) for site, held in masks.items()})
        return {site: agreement.Agreement(total / (images * 100), images) for site, (images, total) in counted.items()}


def main() -> int:
    """Prepare, measure and print."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=400, help="transferal images")
    options.add_argument("--budget", type=int, default=6000, help="images each student sees")
    options.add_argument("--seeds", type=int, default=3, help="students trained of each kind")
    options.add_argument("--liar", choices=[*demo()["sites"], *FIFTH], default="east")
    given = options.parse_args()
    if given.tiny:
        given.images, given.budget, given.seeds = 16, 16, 1
    print_machine()
    with tempfile.TemporaryDirectory() as root:
        settings = Path(root) / "study.toml"
        settings.write_text(tomli_w.dumps(settings_of(given)), "utf-8")
        took = timed(lambda: prepare_once(settings, Path(root) / "prepared"))
        bench = Bench(Path(root) / "prepared")
    print(f"prepared in {took:.0f} s: {given.images} transferal images, {len(bench.masks)} teachers; their Dice:")
    print(", ".join(f"{site} {bench.score(masks[bench.tests]):.1f}" for site, masks in bench.masks.items()) + "\n")
    print_agreement(bench, given.liar)
    return print_costs(bench, given)


def print_agreement(bench: Bench, liar: str) -> None:
    """Who is found."""
    rows = []
    for lie in LIES:
        held = bench.agreement(bench.with_lie(liar, lie))
        apart = ", ".join(agreement.stand_apart(held)) or "none"
        rows.append((lie, *(f"{held[site].mean:.1f}" for site in bench.masks), apart))
    print_table((f"agreement in percent; {liar} is", *bench.masks, "stands apart"), rows)


def print_costs(bench: Bench, given: Namespace) -> int:
    """What each lie costs under each method."""
    rows, costs = [], []
    for method in METHODS:
        usual: tuple[float, float] | None = None
        for lie in LIES:
            fused = bench.fused(bench.with_lie(given.liar, lie), method, "" if lie == "honest" else given.liar)
            kept, ensemble = bench.kept(fused), bench.score(fused.masks[bench.tests])
            students = [bench.student(fused, kept, seed) for seed in range(given.seeds)]
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
