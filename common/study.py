"""The settings of a study: what every site and the coordinator agree on before the first image is asked for."""

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from consilium.common.networks.settings import NetworkSettings
from consilium.common.presets import DEFAULT, Preset, keys, lay_under
from consilium.common.settings import Name, NameList, Settings, kebab
from consilium.common.training.settings import FineTuningSettings, TrainingSettings


def _split_weights(value: object) -> object:
    """Let weights be given as ``"north=2,east=1"`` too: Flower's run-config carries no tables of free keys."""
    if value == "equal":
        return {}
    if isinstance(value, str) and value != "validation":
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        return {name.strip(): number.strip() for name, _, number in pairs}
    return value


class ImageSettings(Settings):
    """The canonical form every image is brought to, by stretching (appendix A.1 of the paper)."""

    size: int = Field(384, ge=32, le=2048, description="height and width in pixels")
    channels: Literal[1, 3] = 1


class CollectSettings(Settings):
    """How soft masks are asked for."""

    chunk: int = Field(32, ge=1, le=4096, description="images in one request")
    chunks_in_flight: int = Field(
        8, ge=1, le=64, description="chunks being collected at a time; bounds memory, and keeps a site from waiting"
    )
    quorum: int = Field(0, ge=0, description="sites that must answer an image; 0 means all of them")
    deadline_s: float = Field(3600.0, gt=0, description="seconds a chunk waits for its sites")
    retries: int = Field(2, ge=0, le=100, description="times a failed request is repeated")
    connect_s: float = Field(120.0, gt=0, description="seconds to wait for all sites to connect")
    offline: NameList = Field(
        (), description="sites without a network path: they answer in files, and do not evaluate or fine-tune"
    )


class FusionSettings(Settings):
    """How the sites' soft masks become one pseudo mask."""

    method: Literal["weighted-mean", "trimmed-mean", "median", "staple", "stack"] = "weighted-mean"
    trim: int = Field(
        1, ge=1, le=100, description="trimmed-mean: how many of the lowest, and of the highest levels are left out"
    )
    weights: Annotated[
        Literal["validation"] | dict[Name, Annotated[int, Field(ge=1, le=10_000)]], BeforeValidator(_split_weights)
    ] = Field(
        default_factory=dict,
        description="weighted-mean: relative whole-number weights; a site that is not named weighs 1; or by validation Dice",
    )
    calibrated: bool = Field(False, description="sites apply the temperature that their validation images gave")
    views: Literal["one", "flip", "flip-scale"] = Field(
        "one", description="under which a site looks at each image; it answers with the mean"
    )
    gate: Literal["none", "majority"] | Annotated[int, Field(ge=1)] = Field(
        "none", description="a site that sees no target abstains for the image; how many must see one"
    )
    outliers: Literal["heard", "silent"] = Field(
        "heard", description="of an image: masks that agree with the others' less than half as far as the median site's"
    )

    @model_validator(mode="after")
    def _robust_fusions_count_sites(self) -> Self:
        if isinstance(self.weights, dict) and self.weights and self.stand_in.method != "weighted-mean":
            raise ValueError(f"weights are for the weighted-mean; in a {self.method} every site counts as one")
        return self

    @property
    def stand_in(self) -> Self:
        """What fuses where a stack cannot be applied: the weighted mean, all else alike. Of the other methods, themselves."""
        return self.model_copy(update={"method": "weighted-mean"}) if self.method == "stack" else self

    @property
    def named_weights(self) -> dict[str, int]:
        """The weights that the study itself names."""
        return {} if self.weights == "validation" else self.weights

    @property
    def asks_for_validation(self) -> bool:
        """Whether anything follows from what sites measured on images that their teachers were not trained on."""
        return self.calibrated or self.weights == "validation" or self.gate != "none"

    @property
    def least_sites(self) -> int:
        """Sites that must answer for a pseudo mask to be made."""
        return 2 * self.trim + 1 if self.method == "trimmed-mean" else 1


class ExclusionSettings(Settings):
    """When an image has no salient target (section 2 of the paper)."""

    alpha: float = Field(256.0, ge=0, description="least target pixels, stated at 384 x 384 and scaled with the area")
    beta: float = Field(2.5, ge=0, description="most gray-level entropy in bits; only where a teacher is soft")
    rule: Literal["paper", "consensus"] = Field(
        "paper", description="alpha or beta; or alpha or no quorum behind the target, however fuzzy it is"
    )
    least_set: float = Field(
        0.0, ge=0, lt=1, description="consensus: least mean weight of a set, as a share of the best set's; 0: any"
    )


class StudentSettings(Settings):
    """The one network the server trains."""

    network: NetworkSettings = NetworkSettings(name="deeplabv3plus")
    training: TrainingSettings = TrainingSettings(epochs="paper")
    image_weights: Literal["none", "self-dice", "agreement", "self-dice-agreement"] = Field(
        "none",
        description="of the images in the loss: equal, how sure each pseudo mask is of itself, how the sites agree",
    )
    targets: Literal["soft", "hard"] = Field(
        "soft", description="what is learned: the pseudo masks, or the same cut at one half"
    )
    generations: Literal[1, 2] = Field(
        1, description="2: a second, fresh student learns from the pseudo masks and the first student's own, averaged"
    )
    onnx: bool = Field(
        True, description="whether student.onnx is written, too, for those who run the student without torch"
    )


class FineTuneSettings(FineTuningSettings):
    """Algorithm 2: the student is trained on, at a site, on that site's labels; the result stays there."""

    sites: NameList = ()


class Study(Settings):
    """One run of the whole thing.

    Every default here is the paper's, where it names one: ``configs/paper.toml``. Under what a file says lies its preset,
    though, and that is ``consensus`` unless it says ``preset = "paper"``.

    The digest of these settings names the study on the wire; changing any of them makes another study.
    """

    name: Name
    preset: Preset = Field(
        DEFAULT, description="what is not said is: as in the paper; or as the consensus of sites needs it"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    sites: NameList = Field(min_length=1, description="the sites that take part")
    labels: NameList = Field(("lesion",), min_length=1, description="the mask's channels, in order")
    image: ImageSettings = ImageSettings()
    collect: CollectSettings = CollectSettings()
    fusion: FusionSettings = FusionSettings()
    exclusion: ExclusionSettings = ExclusionSettings()
    student: StudentSettings = StudentSettings()
    fine_tune: FineTuneSettings = FineTuneSettings()

    @model_validator(mode="before")
    @classmethod
    def _lay_preset_under(cls, values: Any) -> Any:
        return lay_under(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites: every site is named once")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: every label is named once")
        for where, names in (
            ("collect.offline", self.collect.offline),
            ("fine-tune.sites", self.fine_tune.sites),
            ("fusion.weights", self.fusion.named_weights),
        ):
            strangers = sorted(set(names) - set(self.sites))
            if strangers:
                raise ValueError(f"{where} names {', '.join(strangers)}, not among the sites {', '.join(self.sites)}")
        if isinstance(self.fusion.gate, int) and self.fusion.gate > len(self.sites):
            raise ValueError(f"fusion.gate is at most the number of sites, {len(self.sites)}; got {self.fusion.gate}")
        if self.collect.quorum > len(self.sites):
            raise ValueError(f"collect.quorum is at most the number of sites, {len(self.sites)}")
        if self.quorum < self.fusion.least_sites:
            raise ValueError(
                f"fusion.trim = {self.fusion.trim} leaves out {self.fusion.trim} sites' levels on either side, and needs at "
                f"least {self.fusion.least_sites} sites, and a collect.quorum of as many; got {len(self.sites)} sites and a "
                f"quorum of {self.quorum}"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the settings in canonical JSON."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def quorum(self) -> int:
        """Sites that must answer an image."""
        return self.collect.quorum or len(self.sites)

    @property
    def online(self) -> tuple[str, ...]:
        """Sites that are asked over the network."""
        return tuple(site for site in self.sites if site not in self.collect.offline)

    @property
    def tuning(self) -> tuple[str, ...]:
        """Sites that are asked to fine-tune the student: those named for it that can be reached."""
        return tuple(site for site in self.fine_tune.sites if site not in self.collect.offline)

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """Shape (K, H, W) of every soft mask of this study."""
        return (len(self.labels), self.image.size, self.image.size)


EQUAL: Final = "equal"
"""Of `fusion.weights`: no site is named, as text."""

RunConfig = dict[str, bool | int | float | str]


def to_run_config(study: Study) -> RunConfig:
    """Flatten a study into Flower's run-config: dotted kebab-case keys, scalars only."""
    flat: RunConfig = {}

    def put(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and prefix != "fusion.weights":
            for key, inner in value.items():
                put(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, dict):
            flat[prefix] = ",".join(f"{name}={number}" for name, number in value.items()) or EQUAL
        elif isinstance(value, list):
            flat[prefix] = ",".join(value)
        else:
            flat[prefix] = value

    put("", study.model_dump(mode="json", by_alias=True))
    return flat


def from_run_config(config: RunConfig) -> dict[str, Any]:
    """Unflatten the study's part of a run-config into the nested form `Study` is read from."""
    top = {kebab(name) for name in Study.model_fields}
    unsaid = keys()  # Flower wants a value for every key: an empty text leaves these to the preset
    nested: dict[str, Any] = {}
    for key, value in config.items():
        head, *rest = key.split(".")
        if head not in top or (value == "" and key in unsaid):
            continue
        here = nested
        for part in [head, *rest][:-1]:
            here = here.setdefault(part, {})
        here[key.split(".")[-1]] = value
    return nested
