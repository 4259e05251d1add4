"""An ablation from its first teacher to its results.

What is computed is kept in a store, as in a grid experiment: a run that was stopped, at any moment, goes on where it was, and
steps and scenarios share whatever they have in common.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from consilium.common.metrics import dice
from consilium.common.networks.settings import NetworkSettings
from consilium.common.training.settings import TrainingSettings
from consilium.common.validation import Validation
from consilium.server import consensus, exclusion, stacking, weighting
from consilium.server.ablation import fedavg, teachers
from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Place, Row, scored, write_rows
from consilium.server.ablation.scene import Scene, lay_out, share_out
from consilium.server.ablation.settings import Ablation, Recipe, ScenarioSettings
from consilium.server.ablation.teachers import Teacher
from consilium.server.experiment import stages
from consilium.server.experiment.data import DataSet, joined, prepare
from consilium.server.experiment.stages import Masks, Model, slices
from consilium.server.experiment.store import Store
from consilium.server.experiment.workplace import workplace
from consilium.server.pretrain import of_a_start

Dice = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """What is computed together: a scenario's teachers, one of its steps, or a baseline, with one seed."""

    scenario: ScenarioSettings
    seed: int
    kind: Kind
    step: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.scenario.name}/{self.step or self.kind}/{self.seed}"


def cells(settings: Ablation) -> Iterator[Cell]:
    """Give every cell: scenario by scenario and seed by seed, teachers first, then the ladder, then the other baselines."""
    for scenario in settings.scenario:
        for seed in settings.seeds_of(scenario):
            yield Cell(scenario, seed, Kind.TEACHER)
            for step in settings.steps_of(scenario):
                yield Cell(scenario, seed, Kind.STUDENT, step)
            yield Cell(scenario, seed, Kind.POOLED_DATA)
            yield Cell(scenario, seed, Kind.FEDAVG)
            yield Cell(scenario, seed, Kind.TRUE_MASKS)


@dataclass(frozen=True)
class Fusion:
    """The pseudo masks of some images in a store, and what stands behind each.

    Attributes
    ----------
    pseudo
        uint8 (N, K, H, W).
    consensus, agreement
        As of `consensus.Fused`.
    """

    pseudo: Masks
    consensus: npt.NDArray[np.bool_]
    agreement: npt.NDArray[np.float64]


@dataclass
class Ablator:
    """Computes the cells of an ablation.

    Parameters
    ----------
    settings, store
        What, and where it is kept.
    """

    settings: Ablation
    store: Store
    warnings: list[str] = field(default_factory=list)
    _data: dict[str, DataSet] = field(default_factory=dict)
    _scenes: dict[tuple[str, int], Scene] = field(default_factory=dict)
    _transferal: dict[tuple[str, ...], DataSet] = field(default_factory=dict)

    # --- what cells are made of

    def data(self, name: str) -> DataSet:
        """A data set, packed; only the labelled one has masks."""
        if name not in self._data:
            image, labelled = self.settings.image, name == self.settings.labelled
            self._data[name] = prepare(
                self.store,
                name,
                self.settings.data[name],
                size=image.size,
                channels=image.channels,
                with_masks=labelled,
            )
        return self._data[name]

    def scene(self, scenario: ScenarioSettings, seed: int) -> Scene:
        """Who has what."""
        key = (scenario.name, seed)
        if key not in self._scenes:
            whole = self.data(self.settings.labelled)
            sites = self.settings.sites_in(scenario)
            self._scenes.clear()  # they hold pixels, and are asked for one after the other
            self._transferal.clear()
            self._scenes[key] = lay_out(whole, share_out(whole.groups, whole.kinds, sites, self.settings.split, seed))
        return self._scenes[key]

    def transferal(self, scenario: ScenarioSettings, seed: int, recipe: Recipe) -> DataSet:
        """The transferal images: those of the labelled data set first, then the further data."""
        scene = self.scene(scenario, seed)
        if recipe.transferal not in self._transferal:
            sets = [scene.unlabelled, *(self.data(name) for name in recipe.transferal)]
            self._transferal[recipe.transferal] = joined("the transferal images", sets)
        return self._transferal[recipe.transferal]

    def teachers(self, scenario: ScenarioSettings, seed: int) -> dict[str, Teacher]:
        """The sites' teachers."""
        scene = self.scene(scenario, seed)
        return {
            name: teachers.teach(self.store, name, site, scene.sites[name].train, seed=seed)
            for name, site in self.settings.sites_in(scenario).items()
        }

    def answering(self, scenario: ScenarioSettings, seed: int, recipe: Recipe) -> dict[str, Teacher]:
        """Who answers about the transferal images: the teachers, or what each site made of a network of the coordinator's.

        That is the first study's student in a follow-up, else, with a head start, what the student begins with.
        """
        rivals = self.teachers(scenario, seed)
        how = recipe.follow_up or recipe.head_start
        if how is None:
            return rivals
        model = self.student(scenario, seed, recipe.first) if recipe.follow_up else self.pretrained(seed, recipe)
        if model is None:
            return rivals
        scene, training = self.scene(scenario, seed), recipe.at_sites(how)
        return {
            name: teachers.fine_tune(self.store, name, one, model, training, scene.sites[name].train, seed=seed)
            for name, one in rivals.items()
        }

    def validation(self, scenario: ScenarioSettings, seed: int, recipe: Recipe) -> dict[str, Validation]:
        """What the sites say of what answers there."""
        scene = self.scene(scenario, seed)
        return {
            name: teachers.validate(self.store, one, scene.sites[name].validation, recipe.fusion.views)
            for name, one in self.answering(scenario, seed, recipe).items()
        }

    def masks(self, scenario: ScenarioSettings, seed: int, recipe: Recipe, data: DataSet) -> dict[str, Masks]:
        """What the sites say of some images, as a step asks them."""
        validation = self.validation(scenario, seed, recipe)
        return {
            name: teachers.answer(
                self.store,
                one,
                data,
                recipe.fusion.views,
                validation[name].temperature if recipe.fusion.calibrated else 1.0,
            )
            for name, one in self.answering(scenario, seed, recipe).items()
        }

    def fused(self, scenario: ScenarioSettings, seed: int, recipe: Recipe, data: DataSet) -> Fusion:
        """The sites' masks of some images, fused as a step says."""
        validation = self.validation(scenario, seed, recipe)
        masks = self.masks(scenario, seed, recipe, data)
        facts: dict[str, Any] = {
            "masks": {name: one.digest for name, one in masks.items()},
            "fusion": recipe.fusion.model_dump(mode="json"),
            "validation": {name: asdict(one) for name, one in validation.items()},
            "alpha": recipe.exclusion.alpha,
        }
        own = self.scene(scenario, seed).labelled if recipe.fusion.method == "stack" else None
        if own is not None:
            theirs = self.masks(scenario, seed, recipe, own)
            facts["labelled"] = {"data": own.digest, "masks": {name: one.digest for name, one in theirs.items()}}

        def make(folder: Path) -> None:
            alpha = recipe.exclusion.alpha
            stacks = _stacks(theirs, own, alpha) if own is not None else None
            parts = []
            for at in slices(len(data)):
                held = {name: np.asarray(one.masks[at]) for name, one in masks.items()}
                found = consensus.fuse(held, recipe.fusion, validation, alpha)
                parts.append(stacking.applied(stacks, found, stacking.answers_of(held)) if stacks else found)
                self.store.tell(f"masks of {len(masks)} sites are fused", at.stop, len(data))
            np.save(folder / "consensus.npy", np.concatenate([part.consensus for part in parts]))
            np.save(folder / "agreement.npy", np.concatenate([part.agreement for part in parts]))
            np.save(folder / "masks.npy", np.concatenate([part.masks for part in parts]))

        kept = self.store.keep("fused", facts, make)
        return Fusion(
            Masks(kept.digest, stages.open_masks(kept.folder)),
            np.load(kept.folder / "consensus.npy"),
            np.load(kept.folder / "agreement.npy"),
        )

    def sets(self, scenario: ScenarioSettings, seed: int, recipe: Recipe) -> list[str]:
        """Which set each transferal image is of."""
        own = len(self.scene(scenario, seed).unlabelled)
        further = [name for name in recipe.transferal for _ in range(len(self.data(name)))]
        return [self.settings.labelled] * own + further

    def kept(self, fusion: Fusion, recipe: Recipe, sets: Sequence[str]) -> npt.NDArray[np.int64]:
        """The images that exclusion leaves, by position; `sets` tells which set each is of."""
        rule = recipe.exclusion
        selection = stages.select(self.store, fusion.pseudo, alpha=rule.alpha, beta=rule.beta)
        if rule.rule == "paper":
            return selection.kept
        size = fusion.pseudo.masks.shape[-1]
        reasons = exclusion.reasons_by_consensus(selection.found, fusion.consensus, alpha=rule.alpha, size=size)
        if rule.least_set:
            weights = weighting.set_weights(fusion.pseudo.masks, fusion.agreement)
            reasons = exclusion.without_far_sets(reasons, sets, weights, rule.least_set)
        return np.array([i for i, reason in enumerate(reasons) if not reason], np.int64)

    def student(self, scenario: ScenarioSettings, seed: int, recipe: Recipe) -> Model | None:
        """A step's student; None where no image is left."""
        data = self.transferal(scenario, seed, recipe)
        fusion = self.fused(scenario, seed, recipe, data)
        kept = self.kept(fusion, recipe, self.sets(scenario, seed, recipe))
        if not len(kept):
            return None
        before = self.student(scenario, seed, recipe.first) if recipe.follow_up else None
        network = before.start if before else self.network(seed, recipe)
        student = recipe.student.model_copy(update={"network": network})
        own = stages.seed_of(seed, f"student {recipe.student_seed}") if recipe.student_seed else seed
        return stages.distil(self.store, data, fusion.pseudo, student, seed=own, kept=kept, agreement=fusion.agreement)

    def network(self, seed: int, recipe: Recipe) -> NetworkSettings:
        """The student's network, with what it begins with."""
        pretrained = self.pretrained(seed, recipe)
        return pretrained.start if pretrained else recipe.student.network

    def pretrained(self, seed: int, recipe: Recipe) -> Model | None:
        """The student's network after synthetic ultrasound; None where it begins with random weights."""
        student, before = recipe.student, recipe.pretraining
        if before is None:
            return None
        training = of_a_start(student.training, before.image_budget)
        image, labels = self.settings.image, self.data(self.settings.labelled).truth.shape[1]
        shape = (image.channels, labels, image.size)
        return stages.pretrain(self.store, student.network, training, before.phantoms, shape, seed=seed)

    def pooled_data(self, scenario: ScenarioSettings, seed: int) -> Model:
        """The judged step's student, trained with all sites' labels."""
        network, training = self._reference(scenario, seed)
        data = self.scene(scenario, seed).pooled
        what = f"{network.name} learns all sites' labels"
        return stages.teach(self.store, network, training, data, seed=seed, what=what)

    def true_masks(self, scenario: ScenarioSettings, seed: int) -> Model:
        """The judged step's student, trained with the true masks of the labelled data set's transferal images."""
        network, training = self._reference(scenario, seed)
        data = self.scene(scenario, seed).unlabelled
        what = f"{network.name} learns the true masks of the unlabelled images"
        return stages.teach(self.store, network, training, data, seed=seed, what=what)

    def fedavg(self, scenario: ScenarioSettings, seed: int) -> Model:
        """The judged step's student, trained by FedAvg."""
        network, training = self._reference(scenario, seed)
        sites = {name: site.train for name, site in self.scene(scenario, seed).sites.items()}
        rounds = self.settings.fedavg.rounds
        facts = stages.training_facts(network, training, seed) | {
            "fedavg": {name: site.digest for name, site in sites.items()},
            "rounds": rounds,
        }

        def make(folder: Path) -> None:
            module = fedavg.federated(
                network,
                training,
                sites,
                rounds=rounds,
                seed=seed,
                folder=folder / "checkpoints",
                tell=lambda done, total: self.store.tell(f"{network.name} is averaged", done, total),
            )
            data = next(iter(sites.values()))
            stages.save_model(folder, module, network, data, data.truth.shape[1])

        return Model(self.store.keep("model", facts, make), network, training.device)

    def _reference(self, scenario: ScenarioSettings, seed: int) -> tuple[NetworkSettings, TrainingSettings]:
        recipe = self.settings.recipe(self.settings.judged)
        seen = recipe.images_seen(len(self.transferal(scenario, seed, recipe)), len(self.settings.sites))
        how = recipe.student.training.model_copy(update={"epochs": 0, "image_budget": seen})
        return self.network(seed, recipe), how

    # --- rows

    def rows(self, cell: Cell) -> list[Row]:
        """Compute a cell, and give what it adds to the results."""
        if cell.kind is Kind.TEACHER:
            return self._teacher_rows(cell)
        if cell.kind is Kind.STUDENT:
            return self._step_rows(cell)
        baselines = {Kind.FEDAVG: self.fedavg, Kind.POOLED_DATA: self.pooled_data, Kind.TRUE_MASKS: self.true_masks}
        model = baselines[cell.kind](cell.scenario, cell.seed)
        place = Place(cell.scenario.name, cell.seed, "", cell.kind, seconds=model.artefact.seconds)
        scene = self.scene(cell.scenario, cell.seed)
        return self._scored(place, scene, stages.evaluate(self.store, model, scene.test))

    def _teacher_rows(self, cell: Cell) -> list[Row]:
        scene = self.scene(cell.scenario, cell.seed)
        rows = []
        for name, one in self.teachers(cell.scenario, cell.seed).items():
            place = Place(cell.scenario.name, cell.seed, "", Kind.TEACHER, name, seconds=one.model.artefact.seconds)
            rows += self._scored(place, scene, self._dice(one, scene.test), self._dice(one, scene.unlabelled))
        return rows

    def _step_rows(self, cell: Cell) -> list[Row]:
        scenario, seed, recipe = cell.scenario, cell.seed, self.settings.recipe(cell.step)
        scene, data = self.scene(scenario, seed), self.transferal(scenario, seed, recipe)
        on_test, on_transferal = (self.fused(scenario, seed, recipe, one) for one in (scene.test, data))
        own = len(scene.unlabelled)  # they come first
        left = len(self.kept(on_transferal, recipe, self.sets(scenario, seed, recipe)))
        place = Place(scenario.name, seed, cell.step, Kind.ENSEMBLE, "", len(data), left)
        rows = self._scored(
            place,
            scene,
            dice(on_test.pseudo.masks, scene.test.truth),
            dice(on_transferal.pseudo.masks[:own], scene.unlabelled.truth),
        )
        rivals = self.teachers(scenario, seed)
        for name, one in self.answering(scenario, seed, recipe).items():
            if one != rivals[name]:
                theirs = Place(scenario.name, seed, cell.step, Kind.ANSWERING, name, seconds=one.model.artefact.seconds)
                rows += self._scored(theirs, scene, self._dice(one, scene.test), self._dice(one, scene.unlabelled))
        if not self.settings.distils(cell.step):
            return rows
        model = self.student(scenario, seed, recipe)
        if model is None:
            self.warnings.append(f"{cell.name}: every image was excluded, so there is no student")
            return rows
        place = replace(place, kind=Kind.STUDENT, seconds=model.artefact.seconds)
        return rows + self._scored(place, scene, stages.evaluate(self.store, model, scene.test))

    def _dice(self, teacher: Teacher, data: DataSet) -> Dice:
        return dice(teachers.answer(self.store, teacher, data, "one", 1.0).masks, data.truth)

    def _scored(self, place: Place, scene: Scene, on_test: Dice, on_unlabelled: Dice | None = None) -> list[Row]:
        """Score a model on the pooled test, on each site's own, and on the unlabelled images where it was asked about them.

        The scenario and seed of a place say which teachers are its rivals.
        """
        scenario = next(one for one in self.settings.scenario if one.name == place.scenario)
        rivals = self.teachers(scenario, place.seed)
        theirs = {name: self._dice(one, scene.test) for name, one in rivals.items()}
        best = _best(theirs)
        rows = [scored(place, POOLED, scene.test.groups, on_test, best, theirs[best])]
        for site, at in scene.slices.items():
            rows.append(scored(place, site, scene.test.groups[at], on_test[at], site, theirs[site][at]))
        if on_unlabelled is not None:
            theirs = {name: self._dice(one, scene.unlabelled) for name, one in rivals.items()}
            best = _best(theirs)
            rows.append(scored(place, UNLABELLED, scene.unlabelled.groups, on_unlabelled, best, theirs[best]))
        return rows


def run(
    settings: Ablation, root: Path, *, artefacts: Path | None = None, console: Console | None = None
) -> tuple[Ablator, list[Row]]:
    """Compute every cell that is not there yet, and write the results anew after each; gives them.

    Parameters and errors are those of `consilium.server.experiment.run.run`.
    """
    todo = list(cells(settings))
    with workplace(settings, root, len(todo), artefacts=artefacts, console=console) as place:
        work = Ablator(settings, place.store)
        rows = place.compute(todo, work.rows, write_rows, _found)
    return work, rows


def _stacks(masks: Mapping[str, Masks], data: DataSet, alpha: float) -> stacking.Stacks:
    """A stack for each label, fitted on the coordinator's images."""
    answers = stacking.answers_of({name: np.asarray(one.masks) for name, one in masks.items()})
    truth = np.asarray(data.truth)
    return stacking.fit(answers, truth, alpha, [f"label {label}" for label in range(truth.shape[1])])


def _best(values: Mapping[str, Dice]) -> str:
    return max(values, key=lambda name: float(values[name].mean()))


def _found(rows: Sequence[Row]) -> str:
    """What a cell found, for people: the mean on the pooled test, by kind."""
    told: dict[str, list[float]] = {}
    for row in rows:
        if row.part == POOLED:
            told.setdefault(row.model or row.kind, []).append(row.dice_mean)
    return ", ".join(f"{name} {fmean(values):.1f}" for name, values in told.items())
