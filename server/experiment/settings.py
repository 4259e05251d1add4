"""The settings of an experiment: a grid over the stages of a study, in one file."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from consilium.common.datasets.phantoms.hospitals import HOSPITALS
from consilium.common.datasets.registry import DATA_SETS
from consilium.common.errors import SettingsError
from consilium.common.networks.settings import NetworkSettings
from consilium.common.settings import Name, NameList, Settings, parse, read_toml
from consilium.common.study import ExclusionSettings, ImageSettings, StudentSettings
from consilium.common.training.settings import TrainingSettings
from consilium.server.experiment import scales

PHANTOMS: Final = "phantoms"


class DataSettings(Settings):
    """Where the images of one name come from: a data set of the registry, or phantoms; all of it or a part."""

    data_set: str = Field(description="a data set by its name in the registry, or phantoms")
    path: str = Field("", description="its folder; may be given on the command line")
    part: tuple[float, float] = Field((0.0, 1.0), description="from and to, in [0, 1], of its groups in random order")
    limit: int = Field(0, ge=0, description="most images, chosen at random from the part; 0 is all of them")
    seed: int = Field(0, ge=0, description="decides the order of groups, the choice, and the phantoms themselves")
    hospital: str = Field("", description="phantoms: whose scanner and patients")
    count: int = Field(0, ge=0, description="phantoms: how many, before part and limit")
    first: int = Field(0, ge=0, description="phantoms: place of the first in the hospital's endless list")
    lesion_free: float = Field(0.0, ge=0, lt=1, description="phantoms: part of them without a lesion")

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        faults = []
        if self.data_set != PHANTOMS and self.data_set not in DATA_SETS:
            faults.append(f"data-set is one of {', '.join((*DATA_SETS, PHANTOMS))}; got {self.data_set!r}")
        if self.data_set == PHANTOMS and (self.hospital not in HOSPITALS or not self.count):
            faults.append(f"phantoms need a count and a hospital, one of {', '.join(HOSPITALS)}")
        if self.data_set != PHANTOMS and (self.hospital or self.count or self.first or self.lesion_free):
            faults.append("hospital, count, first and lesion-free are for phantoms only")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            faults.append(f"part is two numbers, ascending, from 0 to 1; got {self.part[0]:g} and {self.part[1]:g}")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class TeacherSettings(Settings):
    """One teacher, trained with labels."""

    network: NetworkSettings
    training: TrainingSettings = TrainingSettings(epochs=500)
    train_on: Name
    output: Literal["soft", "binary"] = "soft"
    weight: int = Field(1, ge=1, le=10_000, description="relative to the other teachers of an ensemble")


class TransferalSettings(Settings):
    """How long students are trained on one transferal data set; the student's own length where both are 0."""

    epochs: int = Field(0, ge=0)
    image_budget: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs and self.image_budget:
            raise ValueError(f"at most one of epochs and image-budget; got {self.epochs} and {self.image_budget}")
        return self

    def applied_to(self, training: TrainingSettings) -> TrainingSettings:
        """Give the training with this length."""
        if not self.epochs and not self.image_budget:
            return training
        return training.model_copy(update={"epochs": self.epochs, "image_budget": self.image_budget})


class ExclusionGrid(ExclusionSettings):
    """The thresholds, and whether they are used: each choice is a cell of its own."""

    use: tuple[bool, ...] = Field((False, True), min_length=1)


class FineTuneSettings(Settings):
    """Algorithm 2 with some labelled images of one data set; the test is on the others of that set."""

    images: int = Field(50, ge=1, description="labelled images, whole groups as far as they fit")
    training: TrainingSettings = TrainingSettings(epochs=50)
    teachers: bool = Field(True, description="fine-tune the teachers too, to compare with")
    scratch: TrainingSettings | None = Field(
        None, description="train every student on these images alone, to compare with; not where it is left out"
    )


def _by_name(value: object) -> object:
    """Let transferal data sets be given as a list of names."""
    return {name: {} for name in value} if isinstance(value, list | tuple) else value


class Experiment(Settings):
    """A grid: ensembles x transferal data sets x students x exclusion x seeds."""

    name: Name
    tables: tuple[Literal[2, 3, 4, 5, 6, 7], ...] = Field((), description="the paper's tables to render")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0,), min_length=1)
    image: ImageSettings = ImageSettings()
    data: dict[Name, DataSettings]
    teachers: dict[Name, TeacherSettings] = Field(min_length=1)
    ensembles: tuple[NameList, ...] = Field(
        (), description="teachers whose masks are fused; each teacher alone if empty"
    )
    transferal: Annotated[dict[Name, TransferalSettings], BeforeValidator(_by_name)] = Field(default_factory=dict)
    students: dict[Name, StudentSettings] = Field(default_factory=dict)
    exclusion: ExclusionGrid = ExclusionGrid()
    tests: NameList = ()
    fine_tune: dict[Name, FineTuneSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        named: list[tuple[str, Iterable[str], str, Iterable[str]]] = [
            *((f"teachers.{name}.train-on", (one.train_on,), "data", self.data) for name, one in self.teachers.items()),
            *((f"ensembles {i}", names, "teachers", self.teachers) for i, names in enumerate(self.ensembles, 1)),
            ("transferal", self.transferal, "data", self.data),
            ("tests", self.tests, "data", self.data),
            ("fine-tune", self.fine_tune, "data", self.data),
        ]
        once: list[tuple[str, Sequence[Hashable]]] = [
            ("seeds", self.seeds),
            ("tests", self.tests),
            ("exclusion.use", self.exclusion.use),
            ("ensembles", self.ensembles),
            *((f"ensembles {i}", names) for i, names in enumerate(self.ensembles, 1)),
        ]
        faults = [
            f"{where} names {', '.join(unknown)}, not among the {kind} {', '.join(known)}"
            for where, names, kind, known in named
            if (unknown := sorted(set(names) - set(known)))
        ]
        faults += [f"{where}: everything is named once" for where, listed in once if len(set(listed)) != len(listed)]
        if any(not names for names in self.ensembles):
            faults.append("ensembles: each names a teacher or more")
        if self.students and not (self.tests or self.fine_tune):
            faults.append("students are tested on something: give tests or fine-tune")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def fused(self) -> tuple[tuple[str, ...], ...]:
        """The ensembles: lists of teachers."""
        return self.ensembles or tuple((name,) for name in self.teachers)

    @property
    def with_labels(self) -> frozenset[str]:
        """The data whose masks are used."""
        taught = {teacher.train_on for teacher in self.teachers.values()}
        return frozenset(taught | set(self.tests) | set(self.fine_tune))


def load(path: Path, scale: scales.Name = "full", data: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment, at a scale.

    Parameters
    ----------
    path
        The file; its tables ``[scale.small]`` and ``[scale.tiny]`` hold what else differs at these scales.
    scale
        ``full`` is the file as it is; see `scales`.
    data
        ``NAME=PATH``, or ``NAME=SET:PATH`` with another data set of the registry. NAME is one of the file's, or a data set of
        the registry for all of the file's that are parts of it.

    Raises
    ------
    SettingsError
        With every fault of the file, or of the command line.
    """
    document, own = read_scaled(path)
    full = parse(Experiment, document, str(path))
    document = scales.merged(full.model_dump(mode="json", by_alias=True), {"data": placed(full.data, data)})
    if scale != "full":
        document = scales.merged(scales.applied(document, scales.SCALES[scale]), own.get(scale, {}))
    return parse(Experiment, document, f"{path} at scale {scale}")


def read_scaled(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read an experiment's file: the document, and by scale what is to be laid over it.

    Raises
    ------
    SettingsError
        If it is no TOML file, or its tables of scales are not what they should be.
    """
    document = read_toml(path)
    own = document.pop("scale", {})
    if not isinstance(own, dict) or (strange := sorted(set(own) - set(scales.SCALES))):
        told = ", ".join(strange) if isinstance(own, dict) else repr(own)
        raise SettingsError(f"{path}: [scale] holds the tables {' and '.join(scales.SCALES)}; got {told}")
    return document, own


def placed(known: Mapping[str, DataSettings], given: Sequence[str]) -> dict[str, dict[str, str]]:
    """Say where data is, by what a command line says of it: what is to be laid over a document's ``data``.

    Parameters
    ----------
    known
        The document's data sets.
    given
        As for `load`.

    Raises
    ------
    SettingsError
        If a text is not of that form, or names nothing known.
    """
    found: dict[str, dict[str, str]] = {}
    for text in given:
        name, equals, place = text.partition("=")
        names = [name] if name in known else [key for key, one in known.items() if one.data_set == name]
        if not equals or not place or not names:
            raise SettingsError(
                f"--data is NAME=PATH or NAME=SET:PATH, NAME one of {', '.join(known)} or their data sets; got {text!r}"
            )
        data_set, colon, folder = place.partition(":")
        swapped = bool(colon) and data_set in DATA_SETS
        value = {"path": str(Path(folder if swapped else place).expanduser().resolve())}
        found |= dict.fromkeys(names, value | ({"data-set": data_set} if swapped else {}))
    return found
