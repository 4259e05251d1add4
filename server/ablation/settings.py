"""The settings of an ablation: sites, scenarios, and a ladder of partial studies, in one file."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from consilium.common.networks.settings import NetworkSettings
from consilium.common.settings import Name, NameList, Settings, parse
from consilium.common.study import ExclusionSettings, FusionSettings, ImageSettings, StudentSettings
from consilium.common.training.settings import TrainingSettings
from consilium.server.experiment import scales
from consilium.server.experiment.settings import DataSettings, placed, read_scaled


class SiteSettings(Settings):
    """One hospital: how much it has, its teacher, and what may be wrong with it."""

    share: float = Field(1.0, gt=0, description="of the sites' images, relative to the other sites'")
    network: NetworkSettings
    training: TrainingSettings = TrainingSettings(epochs=500)
    kinds: tuple[str, ...] = Field(
        (), description="the only kinds of cases it sees, in the data set's words; all if empty"
    )
    logits: float = Field(1.0, gt=0, description="factor on its teacher's logits; below 1 it is under-confident")
    inverted: bool = Field(False, description="whether it takes target for background")


class ScenarioSettings(Settings):
    """A variant of the federation."""

    name: Name
    sites: dict[Name, dict[str, Any]] = Field(default_factory=dict, description="by site, what differs from `sites`")
    seeds: tuple[int, ...] = Field((), description="some of the experiment's; all if empty")
    steps: NameList = Field((), description="some of the ladder's; all if empty")


class SiteTrainingSettings(Settings):
    """How every site trains a network that the coordinator hands out, with its own labels, to answer with what comes of it."""

    image_budget: int = Field(ge=1, description="images a site sees, repeats counted")
    learning_rate: float = Field(3e-4, gt=0, description="of that; all else is as the student is trained")


class PretrainingSettings(Settings):
    """Synthetic ultrasound that the student, and every network it is compared with, sees first (`consilium pretrain`)."""

    phantoms: int = Field(1600, ge=4, description="images that are made, of four imaginary hospitals together")
    image_budget: int = Field(16_000, ge=1, description="images seen in all; all else is as the student is trained")


class StepSettings(Settings):
    """A rung of the ladder: a partial study, laid over the one it comes after."""

    name: Name
    after: str = Field("", description="the step it is laid over; the one above it in the file if empty")
    fusion: dict[str, Any] = Field(default_factory=dict)
    exclusion: dict[str, Any] = Field(default_factory=dict)
    student: dict[str, Any] = Field(default_factory=dict)
    pretraining: PretrainingSettings | None = Field(
        None, description="what the student sees before its first pseudo mask"
    )
    head_start: SiteTrainingSettings | None = Field(
        None,
        description="the sites train what the student begins with, too, and answer with that, not with their teachers",
    )
    follow_up: SiteTrainingSettings | None = Field(
        None,
        description="a second study, that goes on from the first one's student: the sites train that, and answer with it",
    )
    student_seed: int | None = Field(
        None,
        ge=0,
        description="not 0: the last student of all is trained with another seed; what chance alone does to it",
    )
    transferal: NameList | None = Field(None, description="further unlabelled data from here on; as before if left out")
    distil: bool = Field(True, description="whether a student is trained, too; else only the fused masks are measured")


class Recipe(Settings):
    """A step with everything below it: the part of a study that says what is done with the sites' masks.

    Its defaults are the paper's, and, before the first step, so is every value; further transferal data are all there are.
    """

    fusion: FusionSettings = FusionSettings()
    exclusion: ExclusionSettings = ExclusionSettings()
    student: StudentSettings = StudentSettings()
    pretraining: PretrainingSettings | None = None
    head_start: SiteTrainingSettings | None = None
    follow_up: SiteTrainingSettings | None = None
    student_seed: int = 0
    transferal: NameList

    @property
    def first(self) -> Self:
        """The study that a follow-up follows."""
        return self.model_copy(update={"follow_up": None, "student_seed": 0})

    def at_sites(self, said: SiteTrainingSettings) -> TrainingSettings:
        """Give the whole of a training at the sites."""
        length = {"epochs": 0, "image_budget": said.image_budget}
        return self.student.training.model_copy(update={**length, "learning_rate": said.learning_rate})

    def images_seen(self, images: int, sites: int) -> int:
        """Count the images that all trainings of it see: of both studies and generations, and of the sites' fine-tuning.

        Sites that have a head start train that and no teacher: neither counts.

        Parameters
        ----------
        images
            That the student is trained on.
        sites
            That fine-tune.
        """
        training = self.student.training
        seen = training.steps(images) * training.batch * self.student.generations
        if self.follow_up is None:
            return seen
        tuning = self.at_sites(self.follow_up)
        return 2 * seen + sites * tuning.steps(images) * tuning.batch


class SplitSettings(Settings):
    """What the labelled data set is shared out into, as shares of all; the sites have the rest, whole groups each."""

    test: float = Field(0.25, gt=0, lt=1, description="pooled over the sites: each gives the same part of its own")
    transferal: float = Field(0.2, gt=0, lt=1, description="whose labels nobody sees")
    validation: float = Field(0.2, gt=0, lt=1, description="of what a site has besides its test images; not trained on")
    labelled: float = Field(0.0, ge=0, lt=1, description="the coordinator's own, with their labels, to fit a stack on")

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.test + self.transferal + self.labelled >= 1:
            raise ValueError(
                f"test, transferal and labelled leave the sites something; got {self.test:g}, {self.transferal:g} and "
                f"{self.labelled:g}"
            )
        return self


class FedAvgSettings(Settings):
    """One network, averaged (McMahan et al. 2017), that sees as many images in all as the student."""

    rounds: int = Field(10, ge=1)


class Ablation(Settings):
    """A ladder of steps for every scenario and seed, and the baselines beside it."""

    kind: Literal["ablation"]
    name: Name
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0, 1, 2), min_length=1)
    image: ImageSettings = ImageSettings()
    data: dict[Name, DataSettings]
    labelled: Name = Field(description="the data set that is shared out")
    split: SplitSettings = SplitSettings()
    sites: dict[Name, SiteSettings] = Field(min_length=2)
    scenario: tuple[ScenarioSettings, ...] = Field((ScenarioSettings(name="even"),), min_length=1)
    step: tuple[StepSettings, ...] = Field(min_length=1)
    consensus: str = Field("", description="the step that is held to the targets; the last if empty")
    fedavg: FedAvgSettings = FedAvgSettings()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        steps = [step.name for step in self.step]
        further = [name for name in self.data if name != self.labelled]
        once: list[tuple[str, Sequence[Hashable]]] = [
            ("seeds", self.seeds),
            ("scenario", [one.name for one in self.scenario]),
            ("step", steps),
        ]
        named: list[tuple[str, Sequence[Hashable], Sequence[Hashable]]] = [
            ("labelled", [self.labelled], list(self.data)),
            ("consensus", [self.consensus or steps[-1]], steps),
            *((f"scenario.{one.name}.sites", list(one.sites), list(self.sites)) for one in self.scenario),
            *((f"scenario.{one.name}.seeds", one.seeds, self.seeds) for one in self.scenario),
            *((f"scenario.{one.name}.steps", one.steps, steps) for one in self.scenario),
            *((f"step.{one.name}.transferal", one.transferal or (), further) for one in self.step),
            *((f"step.{one.name}.after", [one.after], steps[:i]) for i, one in enumerate(self.step) if one.after),
        ]
        faults = [f"{where}: everything is named once" for where, listed in once if len(set(listed)) != len(listed)]
        faults += [
            f"{where} names {', '.join(strange)}, not among {', '.join(map(str, known)) or 'any'}"
            for where, names, known in named
            if (strange := sorted(str(name) for name in set(names) - set(known)))
        ]
        if not faults and not self.distils(self.judged):
            faults.append(f"step.{self.judged}.distil: the step that is held to the targets needs a student")
        if not faults:
            faults = self._faults_of_parts()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_parts(self) -> list[str]:
        """What is wrong with partial sites and studies, once they are whole."""
        faults = []
        for one in self.scenario:
            try:
                self.sites_in(one)
            except ValidationError as error:
                faults += [
                    f"scenario.{one.name}.sites.{_place(fault['loc'])}: {fault['msg']}" for fault in error.errors()
                ]
        for name in (step.name for step in self.step):
            try:
                recipe = self.recipe(name)
            except ValidationError as error:
                faults += [f"step.{name}.{_place(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
                break  # those after it have the same fault
            if recipe.head_start and not recipe.pretraining:
                faults.append(
                    f"step.{name}.head-start: the sites begin with what the student begins with, so that needs pretraining, in "
                    "this step or below"
                )
            if recipe.fusion.method == "stack" and not self.split.labelled:
                faults.append(
                    f"step.{name}.fusion.method: a stack is fitted on labelled images of the coordinator: give it a share of the "
                    "data, split.labelled"
                )
        return faults

    def sites_in(self, scenario: ScenarioSettings) -> dict[str, SiteSettings]:
        """The sites of a scenario."""
        return {
            name: SiteSettings.model_validate(
                _laid(site.model_dump(mode="json", by_alias=True), scenario.sites.get(name, {}))
            )
            for name, site in self.sites.items()
        }

    def seeds_of(self, scenario: ScenarioSettings) -> tuple[int, ...]:
        """The seeds that a scenario is computed with."""
        return scenario.seeds or self.seeds

    def steps_of(self, scenario: ScenarioSettings) -> tuple[str, ...]:
        """The names of the steps that are computed in a scenario, in the file's order."""
        return tuple(step.name for step in self.step if not scenario.steps or step.name in scenario.steps)

    @property
    def judged(self) -> str:
        """The name of the step that is held to the targets."""
        return self.consensus or self.step[-1].name

    def recipe(self, name: str) -> Recipe:
        """Give a step with all it is laid over."""
        paper = Recipe(transferal=tuple(one for one in self.data if one != self.labelled))
        held = paper.model_dump(mode="json", by_alias=True)
        for step in self._below(name):
            own = step.model_dump(include=set(Recipe.model_fields), by_alias=True, exclude_none=True)
            held = _laid(held, own)
        return Recipe.model_validate(held)

    def distils(self, name: str) -> bool:
        """Whether a step trains a student."""
        return next(step.distil for step in self.step if step.name == name)

    def below(self, name: str) -> str:
        """The step that a step is laid over; empty for the first."""
        found = self._below(name)
        return found[-2].name if len(found) > 1 else ""

    def _below(self, name: str) -> list[StepSettings]:
        """A step and all below it, the lowest first."""
        steps = {step.name: step for step in self.step}
        above = dict(zip(list(steps)[1:], steps, strict=False))
        found = [steps[name]]
        while (under := found[0].after or above.get(found[0].name, "")) and len(found) <= len(steps):
            found.insert(0, steps[under])
        return found


def load(path: Path, scale: scales.Name = "full", data: tuple[str, ...] = ()) -> Ablation:
    """Read an ablation, at a scale; parameters and errors as of `consilium.server.experiment.settings.load`."""
    document, own = read_scaled(path)
    full = parse(Ablation, document, str(path))
    document = scales.merged(document, {"data": placed(full.data, data)})
    if scale != "full":
        document = applied(parse(Ablation, document, str(path)), SCALES[scale])
        document = scales.merged(document, own.get(scale, {}))
    return parse(Ablation, document, f"{path} at scale {scale}")


_TINY: Final = TrainingSettings(image_budget=160, batch=8, learning_rate=5e-3, threads=1)

SCALES: Final[Mapping[str, scales.Scale]] = MappingProxyType(
    {
        "small": scales.SCALES["small"],
        "tiny": replace(
            scales.SCALES["tiny"],
            limit=80,
            phantoms=80,
            teacher=_TINY,
            student=_TINY,
        ),
    }
)
"""Those of the grids; but a data set that is shared out needs more images than one that is not."""

_LENGTHS: Final = ("epochs", "image-budget")
_SCALED: Final = (*_LENGTHS, "batch", "learning-rate", "threads", "precision")


def applied(settings: Ablation, scale: scales.Scale) -> dict[str, Any]:
    """Give an ablation's document at a scale.

    Sizes, networks, and how long and how fast is trained become the scale's, for all steps alike; what the ladder is about
    stays: fusion, exclusion, weights, loss, averages, augmentation.
    """
    made: dict[str, Any] = settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    made["image"]["size"] = scale.size
    for data in made["data"].values():
        data["limit"] = min(data["limit"] or scale.limit, scale.limit)
        if scale.phantoms:
            scales.become_phantoms(data, scale)
    for site in made["sites"].values():
        scales.shrink(site["network"], scale)
        site["training"] = _laid(site["training"], _speed(scale.teacher))
    for scenario in made["scenario"]:
        for site in scenario["sites"].values():
            _without_length(site)
    for place, step in enumerate(made["step"]):
        _without_length(step["student"])
        for part in ("pretraining", "head-start", "follow-up"):
            if part in step:
                step[part]["image-budget"] = scale.student.image_budget
        if "pretraining" in step and scale.phantoms:
            step["pretraining"]["phantoms"] = scale.phantoms
        network = step["student"].get("network", {} if place else StudentSettings().network.model_dump(by_alias=True))
        if "name" in network:
            whole = NetworkSettings.model_validate(network).model_dump(mode="json", by_alias=True)
            scales.shrink(whole, scale)
            step["student"]["network"] = whole
        if not place:
            step["student"] = _laid(step["student"], {"training": _speed(scale.student)})
    return made


def _speed(training: TrainingSettings) -> dict[str, Any]:
    held = training.model_dump(mode="json", by_alias=True)
    return {key: held[key] for key in _SCALED}


def _without_length(part: dict[str, Any]) -> None:
    for key in _SCALED:
        part.get("training", {}).pop(key, None)


def _laid(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one document over another; of a training's two lengths, the upper one's alone counts."""
    held = scales.merged(below, over)
    for inner in _trainings(over):
        given = [key for key in _LENGTHS if inner.get(key)]
        if len(given) == 1:
            training = held["training"] if "training" in held else held["student"]["training"]
            training[next(key for key in _LENGTHS if key != given[0])] = 0
    return held


def _trainings(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The training of a site, or of a step's student, where a document says something of it."""
    found = part.get("training", part.get("student", {}).get("training"))
    return [found] if isinstance(found, dict) else []


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part).replace("_", "-") for part in loc)
