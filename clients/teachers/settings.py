"""What a site says of its teacher in ``[teacher]``: one model for each kind of teacher. Imports no torch.

Every kind but our own checkpoint says how its input is made (`size`, `channels`, for tensors `normalisation`) and what its
output means (`output`, `output_channels`). Paths are relative to the settings file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from consilium.clients.policy import Output
from consilium.common.networks.settings import NetworkSettings
from consilium.common.settings import Settings
from consilium.common.temperature import TEMPERATURES

Meaning = Literal["logits", "softmax-logits", "probabilities", "binary", "classes"]
Normalisation = Literal["unit", "raw", "zscore", "min-max", "mean-std"]
Orientation = Literal[
    "upright",
    "transposed",
    "flipped-up-down",
    "flipped-left-right",
    "turned-90",
    "turned-180",
    "turned-270",
    "anti-transposed",
]
Shape = tuple[int, int]

NORMALISATIONS: Final[tuple[Normalisation, ...]] = get_args(Normalisation)
_SIDE: Final = range(16, 4097)
_IMPORT_PATH: Final = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _shape(value: object) -> object:
    """``"native"`` is no shape, a number a square; both else are height and width."""
    if value == "native":
        return None
    pair = [value, value] if isinstance(value, int) else value
    if value is None or (isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_side(one) for one in pair)):
        return pair
    raise ValueError(
        f'"native", one number of pixels or [height, width], each a whole number from {_SIDE.start} to {_SIDE.stop - 1}'
    )


def _is_side(value: object) -> bool:
    return type(value) is int and value in _SIDE


Size = Annotated[Shape | None, BeforeValidator(_shape)]
Channels = Literal[1, 3]
ImportPath = Annotated[str, Field(pattern=_IMPORT_PATH)]


class _Tempered(Settings):
    temperature: float = Field(
        1.0, ge=TEMPERATURES[0], le=TEMPERATURES[1], description="divides the logits; 1 leaves masks as they are"
    )


class CheckpointSettings(_Tempered):
    """A teacher trained by ``consilium-site train``."""

    kind: Literal["checkpoint"] = "checkpoint"
    network: NetworkSettings = NetworkSettings(name="unet")
    size: int = Field(384, ge=32, le=2048, description="height and width the teacher works at, in pixels")
    channels: Channels = 1
    output: Output = Field("soft", description="whether it offers soft masks or only binary ones")
    folder: str = Field("teacher", description="where it is kept")

    @property
    def offers(self) -> Output:
        """Which masks it can give."""
        return self.output

    @property
    def has_logits(self) -> bool:
        """Whether probabilities close to 0 and 1 are told apart."""
        return True

    def files(self, folder: Path) -> tuple[Path, ...]:
        """Give the files that decide what it answers; ``folder`` is that of the settings file."""
        return (folder / self.folder / "student.safetensors",)


class ForeignSettings(_Tempered):
    """What every teacher from elsewhere has."""

    size: Size = Field(None, description="height and width of its input; native: the study's")
    channels: Channels = 1
    output: Meaning = Field(description="what its numbers mean")
    output_channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="for each label its channel or class; none: one channel a label, or classes from 1 on"
    )
    output_inverted: bool = Field(False, description="whether its masks show the background")
    output_orientation: Orientation = Field("upright", description="how its masks lie; they are laid upright")
    batch: int = Field(1, ge=1, le=256, description="images given at a time")

    @model_validator(mode="after")
    def _can_be_tempered(self) -> Self:
        if self.offers == "binary" and self.temperature != 1.0:
            raise ValueError(f'temperature: binary masks (output = "{self.output}") have none; leave it out')
        return self

    @property
    def offers(self) -> Output:
        """Which masks it can give."""
        return "binary" if self.output in ("binary", "classes") else "soft"

    @property
    def has_logits(self) -> bool:
        """Whether probabilities close to 0 and 1 are told apart."""
        return self.output in ("logits", "softmax-logits")

    def files(self, folder: Path) -> tuple[Path, ...]:  # noqa: ARG002 - of the other kinds
        """Give the files that decide what it answers, as far as they are known."""
        return ()


class TensorSettings(ForeignSettings):
    """A teacher that is given normalised numbers."""

    size: Size = Field(description="height and width of its input; native: the study's")
    normalisation: Normalisation = "unit"
    mean: tuple[float, ...] = Field((), description="mean-std: of pixel / 255; one for all channels, or one for each")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((), description="mean-std: as mean")
    channels_last: bool = Field(False, description="whether images and masks are (n, H, W, C)")

    @model_validator(mode="after")
    def _says_mean_and_std(self) -> Self:
        given = {len(self.mean), len(self.std)}
        if self.normalisation != "mean-std" and given != {0}:
            raise ValueError('mean and std belong to normalisation = "mean-std"')
        if self.normalisation == "mean-std" and not (len(given) == 1 and given <= {1, self.channels}):
            raise ValueError('normalisation = "mean-std" needs mean and std, one number each or one for each channel')
        return self


class FileSettings(TensorSettings):
    """A teacher that is one file."""

    file: str = Field(min_length=1)

    def files(self, folder: Path) -> tuple[Path, ...]:
        """See `ForeignSettings.files`."""
        return (folder / self.file,)


class OnnxSettings(FileSettings):
    """A network in ONNX."""

    kind: Literal["onnx"]
    input_name: str = Field("", description="empty: its only input")
    output_name: str = Field("", description="empty: its first output")


class TorchExportSettings(FileSettings):
    """A program of ``torch.export``."""

    kind: Literal["torch-export"]


class TorchScriptSettings(FileSettings):
    """A network in TorchScript."""

    kind: Literal["torchscript"]


class ModuleSettings(TensorSettings):
    """A torch module that Python code makes."""

    kind: Literal["module"]
    factory: ImportPath = Field(description="pkg.mod:name, called with the arguments, returns the module")
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str = Field("", description=".safetensors, or a state dict that torch.save wrote; empty: has its weights")
    code: str = Field("", description="folder that Python also searches")

    def files(self, folder: Path) -> tuple[Path, ...]:
        """See `ForeignSettings.files`."""
        return (folder / self.weights,) if self.weights else ()


class MonaiBundleSettings(TensorSettings):
    """A MONAI bundle; its own transforms are not used."""

    kind: Literal["monai-bundle"]
    folder: str = Field(min_length=1)
    config: str = Field("configs/inference.json", description="in the bundle")
    network: str = Field("network_def", description="key of the network in the config")
    weights: str = Field("models/model.pt", description="in the bundle")

    def files(self, folder: Path) -> tuple[Path, ...]:
        """See `ForeignSettings.files`."""
        return folder / self.folder / self.config, folder / self.folder / self.weights


class NnunetSettings(ForeignSettings):
    """A results folder of nnU-Net v2, with its own preprocessing; 2-D."""

    kind: Literal["nnunet"]
    folder: str = Field(min_length=1, description="holds dataset.json, plans.json and fold_*/")
    size: Size = Field(description="what images are stretched to; native: the study's")
    output: Literal["probabilities"] = "probabilities"
    output_channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="for each label its channel; none: that of its name in dataset.json"
    )
    folds: tuple[Literal["all"] | Annotated[int, Field(ge=0)], ...] = Field((), description="none: all that are there")
    checkpoint: str = Field("checkpoint_final.pth", min_length=1, description="in each fold's folder")
    mirrored: bool = Field(True, description="whether mirror images are asked about, too, as nnU-Net does")

    @property
    def has_logits(self) -> bool:
        """Its probabilities are computed from logits, and not rounded."""
        return True

    def checkpoints(self, folder: Path) -> tuple[Path, ...]:
        """Give the files of the folds, whether they are there or not; ``fold_all`` where there is no other."""
        results = folder / self.folder
        numbers = (path.parent.name.removeprefix("fold_") for path in results.glob(f"fold_*/{self.checkpoint}"))
        found = sorted(int(number) for number in numbers if number.isdecimal())
        folds: Sequence[int | str] = self.folds or found or ("all",)
        return tuple(results / f"fold_{fold}" / self.checkpoint for fold in folds)

    def files(self, folder: Path) -> tuple[Path, ...]:
        """See `ForeignSettings.files`."""
        results = folder / self.folder
        return results / "dataset.json", results / "plans.json", *self.checkpoints(folder)


class ServedSettings(TensorSettings):
    """A model behind the Open Inference Protocol v2 over gRPC: Triton, KServe, OpenVINO Model Server and others."""

    kind: Literal["served"]
    address: str = Field(pattern=r"^[^\s/]+:\d{1,5}$", description="host:port")
    model: str = Field(min_length=1)
    version: str = Field("", description="empty: the server's choice")
    input_name: str = Field("", description="empty: its only input")
    output_name: str = Field("", description="empty: its first output")
    ca: str = Field("", description="certificate authority of the server, PEM; empty: no TLS")
    timeout_s: float = Field(60.0, gt=0, description="for one call")


class CallableSettings(ForeignSettings):
    """A Python function."""

    kind: Literal["callable"]
    function: ImportPath = Field(description="pkg.mod:name, from uint8 (n, C, H, W) to numbers (n, K, H, W)")
    code: str = Field("", description="folder that Python also searches")


class CommandSettings(ForeignSettings):
    """An external command: a folder of PNG images in, a folder of masks out."""

    kind: Literal["command"]
    command: tuple[str, ...] = Field(min_length=1, description="program and arguments, with {images} and {masks}")
    output: Literal["probabilities", "binary", "classes"]
    image_name: str = Field("{number}.png", description="names of the images")
    mask_name: str = Field("{number}.png", description="names of the masks")
    timeout_s: float = Field(600.0, gt=0, description="for one call")
    batch: int = Field(16, ge=1, le=4096, description="most images of a call")

    @model_validator(mode="after")
    def _names_what_it_is_given(self) -> Self:
        lacking = [name for name in ("{images}", "{masks}") if not any(name in part for part in self.command)]
        if lacking:
            raise ValueError(
                f"command: it must be told its folders; {' and '.join(lacking)} missing among its arguments"
            )
        for key, name in (("image-name", self.image_name), ("mask-name", self.mask_name)):
            if name.count("{number}") != 1 or "/" in name or not name.endswith(".png"):
                raise ValueError(f"{key}: holds {{number}} once, no folder, and ends in .png; got {name!r}")
        return self


def _default_kind(value: object) -> object:
    return {"kind": "checkpoint"} | value if isinstance(value, dict) else value


TeacherSettings = Annotated[
    CheckpointSettings
    | ModuleSettings
    | OnnxSettings
    | TorchExportSettings
    | TorchScriptSettings
    | CallableSettings
    | CommandSettings
    | ServedSettings
    | MonaiBundleSettings
    | NnunetSettings,
    BeforeValidator(_default_kind),
    Field(discriminator="kind"),
]
"""``[teacher]``; without ``kind``, our own checkpoint."""
