"""The settings of a site: one ``site.toml`` a site, and the folder it lies in. Imports no torch."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from consilium.clients.address import check_address
from consilium.clients.policy import Policy
from consilium.clients.teachers.settings import CheckpointSettings, ForeignSettings, TeacherSettings
from consilium.common.errors import SettingsError, StateError
from consilium.common.joining import SITE_POLICY
from consilium.common.settings import Name, NameList, Settings, load, parse, read_toml
from consilium.common.training.settings import FineTuningSettings, TrainingSettings

TRAINED: Final = "trained.json"
FINE_TUNED: Final = "result.json"
"""In the folder of a fine-tuned student: its Dice before and after; written last, so that a folder with one is whole."""
_UNIX_PATH_BYTES: Final = 100  # Linux allows 107, macOS 103


class TeacherTraining(TrainingSettings):
    """How the teacher is trained."""

    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _as_long_as_the_paper(cls, values: Any) -> Any:
        """Let a site whose teacher comes trained name its device alone."""
        told = isinstance(values, dict) and {"epochs", "image-budget", "image_budget"} & values.keys()
        return values if told or not isinstance(values, dict) else {"epochs": "paper", **values}


class DataSettings(Settings):
    """The site's labelled images."""

    folder: str = Field("", description="holds images/ and masks/; packed once. Empty: already packed")
    packed: str = Field("data", description="holds the packed sets train/ and test/")
    test_share: float = Field(0.2, ge=0, le=0.9, description="share of the images kept for tests, when packing")
    validation_share: float = Field(
        0.15, ge=0, le=0.5, description="share of the other images that the teacher is not trained on, but measured on"
    )
    size: int = Field(384, ge=32, le=2048, description="height and width they are packed at, in pixels")
    channels: Literal[1, 3] = 1
    seed: int = Field(0, ge=0, lt=2**31, description="decides which images are kept for tests")


class ConnectionSettings(Settings):
    """How the site's SuperNode reaches the coordinator; files are relative to the settings file."""

    superlink: str = Field(pattern=r"^[^\s/]+:\d{1,5}$", description="host:port")
    ca: str = Field(description="certificate authority of the coordinator, PEM")
    node_key: str = Field(description="the site's private node key, OpenSSH")


class GatewaySettings(Settings):
    """Where the gateway listens: a Unix socket (relative to the settings file) or a loopback port."""

    address: str = "unix:gateway.sock"

    @model_validator(mode="after")
    def _is_local(self) -> Self:
        check_address(self.address)
        return self


class SiteSettings(Settings):
    """A whole site."""

    name: Name
    labels: NameList = Field(("lesion",), min_length=1, description="what the teacher's masks show, in order")
    label_map: dict[Name, NameList] = Field(
        default_factory=dict, description="for a study's label, those of the labels above that it means"
    )
    teacher: TeacherSettings = CheckpointSettings()
    training: TeacherTraining = TeacherTraining()
    fine_tune: FineTuningSettings = FineTuningSettings()
    data: DataSettings = DataSettings()
    policy: Policy = Policy()
    connection: ConnectionSettings | None = None
    gateway: GatewaySettings = GatewaySettings()

    @model_validator(mode="after")
    def _labels_agree(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: every label is named once")
        for label, meant in self.label_map.items():
            strangers = sorted(set(meant) - set(self.labels))
            if strangers:
                raise ValueError(
                    f"label-map.{label} names {', '.join(strangers)}, not among the labels {', '.join(self.labels)}"
                )
        return self

    @model_validator(mode="after")
    def _every_label_has_a_channel(self) -> Self:
        teacher = self.teacher
        if isinstance(teacher, ForeignSettings) and teacher.output_channels:
            count = len(teacher.output_channels)
            if count != len(self.labels):
                raise ValueError(f"teacher.output-channels: one for each of the {len(self.labels)} labels; got {count}")
        return self


@dataclass(frozen=True)
class SiteHome:
    """A site's settings and the folder that holds everything of it.

    Parameters
    ----------
    settings
        Read from the ``site.toml``.
    folder
        The absolute folder the file lies in.
    """

    settings: SiteSettings
    folder: Path

    @property
    def policy_file(self) -> Path:
        """The policy, if it has a file of its own."""
        return self.folder / SITE_POLICY

    @property
    def trainable(self) -> CheckpointSettings:
        """What is said of the teacher, if it is one that is trained here; else `SettingsError`."""
        teacher = self.settings.teacher
        if not isinstance(teacher, CheckpointSettings):
            raise SettingsError(
                f'a teacher of kind "{teacher.kind}" comes trained: only teacher.kind = "checkpoint" is trained and fine-tuned '
                "here. `consilium-site check SITE.toml` tests it."
            )
        return teacher

    @property
    def teacher(self) -> Path:
        """Folder of the teacher that is trained here; see `trainable`."""
        return self.folder / self.trainable.folder

    @property
    def checks(self) -> Path:
        """Folder of what `consilium-site check` found."""
        return self.folder / "check"

    @property
    def fine_tuned_teacher(self) -> Path:
        """Folder of the teacher after `consilium-site fine-tune`."""
        return self.teacher.with_name(f"{self.teacher.name}-fine-tuned")

    @property
    def source(self) -> Path | None:
        """Folder of images and masks that are packed, if they are not packed already."""
        return self.folder / self.settings.data.folder if self.settings.data.folder else None

    @property
    def train_set(self) -> Path:
        """Folder of the packed training set."""
        return self.folder / self.settings.data.packed / "train"

    @property
    def test_set(self) -> Path:
        """Folder of the packed test set."""
        return self.folder / self.settings.data.packed / "test"

    @property
    def studies(self) -> Path:
        """Folder of the studies this site was shown and took."""
        return self.folder / "studies"

    @property
    def catalogues(self) -> Path:
        """Folder of the images this site was given."""
        return self.folder / "catalogues"

    @property
    def answers(self) -> Path:
        """Folder of the soft masks this site gave."""
        return self.folder / "answers"

    @property
    def answer_key(self) -> Path:
        """The key that sealed answers are signed with, Ed25519."""
        return self.folder / "keys" / "answers.pem"

    @property
    def consents(self) -> Path:
        """Folder of what was decided about studies."""
        return self.folder / "consents"

    @property
    def reviews(self) -> Path:
        """Folder of what a person looks at before deciding."""
        return self.folder / "reviews"

    @property
    def students(self) -> Path:
        """Folder of the fine-tuned students."""
        return self.folder / "students"

    @property
    def audit_log(self) -> Path:
        """What left the site."""
        return self.folder / "audit.jsonl"

    @property
    def gateway_address(self) -> str:
        """Address of the gateway, ``unix:`` and an absolute path, or ``host:port``.

        Where the site's folder is too deep for a socket, the socket lies in this user's own folder among the temporary
        files, under a name that follows from the site's folder.
        """
        kind, _, path = self.settings.gateway.address.partition(":")
        if kind != "unix":
            return self.settings.gateway.address
        socket = self.folder / path
        if len(str(socket).encode()) > _UNIX_PATH_BYTES:
            name = hashlib.sha256(str(socket).encode()).hexdigest()[:16]
            socket = Path(tempfile.gettempdir()) / f"consilium-{os.getuid()}" / f"{name}.sock"
        return f"unix:{socket}"


def teacher_digest(settings: SiteSettings) -> str:
    """SHA-256, in hex, of the settings that decide what the trained teacher is; where and how fast do not count."""
    facts = settings.model_dump(
        mode="json",
        include={
            "labels": True,
            "teacher": {"network", "size", "channels"},
            "data": {"size", "channels", "seed", "test_share", "validation_share"},
        },
    )
    facts["training"] = settings.training.model_dump(mode="json", exclude=settings.training.indecisive())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def trained_result(home: SiteHome) -> Mapping[str, Any] | None:
    """What `train_teacher` found on the site's test images, or None if it has not finished.

    Raises
    ------
    StateError
        If the teacher was trained with other settings.
    """
    try:
        kept = json.loads((home.teacher / TRAINED).read_text("utf-8"))
    except FileNotFoundError:
        return None
    if kept.pop("settings") != teacher_digest(home.settings):
        raise StateError(
            f"{home.teacher} holds a teacher trained with other settings ([teacher], [training], [data] or labels); move "
            "the folder away to train again, or set the settings back"
        )
    return dict(kept)


def load_site(path: Path) -> SiteHome:
    """Read a ``site.toml`` and the ``policy.toml`` beside it, if there is one; see `settings.load` for the errors.

    The policy may be another person's file than the rest, with other rights. A ``[policy]`` in ``site.toml`` serves as well,
    but not both: nobody should have to guess which holds.
    """
    values = read_toml(path)
    policy = path.resolve().parent / SITE_POLICY
    if policy.is_file():
        if "policy" in values:
            raise SettingsError(
                f"{path}: a site has one policy, and {policy} holds it; remove [policy] from {path.name}"
            )
        values["policy"] = load(Policy, policy)
    return SiteHome(parse(SiteSettings, values, str(path)), path.resolve().parent)
