"""The wire: typed messages, and their form as Flower `RecordDict`.

A message is a frozen model of scalars, bytes and lists of these. On Flower it is one `ConfigRecord` named ``consilium``
with kebab-case keys; on the gateway's gRPC it is the protobuf message of the same name and fields. Every message
carries protocol version, package version, study digest and catalogue hash. `docs/wire.md` specifies the format; golden
bytes in the tests freeze it.
"""

import hashlib
from importlib.metadata import version
from typing import Annotated, Final, Literal, TypeVar

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from google.protobuf.message import DecodeError
from pydantic import Field, StringConstraints, ValidationError

from consilium.common.errors import ErrorCode, WireError
from consilium.common.settings import Name, Settings, kebab

PROTOCOL: Final = 2
PACKAGE: Final = version("consilium")
RECORD: Final = "consilium"
ERROR_RECORD: Final = "consilium-error"

Action = Literal["query.describe", "query.predict", "evaluate.student", "train.fine_tune"]
"""Flower message type and action of each request; Flower takes identifiers only, so this one is not in kebab-case."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Blob = Annotated[bytes, Field(max_length=2**30)]
Key = Annotated[bytes, Field(max_length=32)]
Signature = Annotated[bytes, Field(max_length=64)]
Planes = Annotated[bytes, Field(max_length=2**26)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Envelope(Settings):
    """What every message carries."""

    protocol: int = PROTOCOL
    package: Annotated[str, StringConstraints(max_length=32)] = PACKAGE
    study: Digest
    catalogue: Digest


class DescribeRequest(Envelope):
    """Show a site the study: its settings, its catalogue, and who signed.

    ``settings`` is the study as TOML; ``manifest`` the catalogue's list with its ``signature`` by ``signer``. Soft masks are to
    be sealed to ``sealing_key``, which the same signer signed, or to travel in clear where it is empty.
    """

    settings: Annotated[str, StringConstraints(max_length=2**20)]
    manifest: Blob
    signature: Signature
    signer: Key
    sealing_key: Key
    sealing_signature: Signature


class DescribeReply(Envelope):
    """Who the site is and what it offers.

    ``missing`` has one bit an image of the list (most significant first): 1 where the site lacks the pixels.
    ``teacher`` is the teacher's card in JSON; ``output`` tells whether its masks are soft or binary. ``signer`` is the public
    key that its answers are signed with.
    """

    site: Name
    output: Literal["soft", "binary"]
    labels: list[Name]
    teacher: Annotated[str, StringConstraints(max_length=2**16)]
    missing: Blob
    signer: Key


class PredictRequest(Envelope):
    """Ask for soft masks of images, by id; ``pixels`` of the first ``len(pixels)`` ids travel along, coded as planes.

    The ids that the site lacks come first.
    """

    ids: Annotated[list[Digest], Field(min_length=1, max_length=4096)]
    pixels: Annotated[list[Planes], Field(max_length=4096)]


class PredictReply(Envelope):
    """Soft masks in the order of ``ids``, each coded as planes of shape (labels, size, size).

    ``abstained`` are the images that were asked for and are not answered, now or ever. Where the study has a key, the masks
    are sealed to it, ``key`` is the answer's own and ``signature`` the site's; else both are empty. See `sealing`.
    """

    site: Name
    ids: Annotated[list[Digest], Field(max_length=4096)]
    masks: Annotated[list[Planes], Field(max_length=4096)]
    abstained: Annotated[list[Digest], Field(max_length=4096)]
    key: Key
    signature: Signature
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EvaluateRequest(Envelope):
    """Ask a site to evaluate the student on its own labelled images; ``weights`` are safetensors, ``card`` JSON."""

    card: Annotated[str, StringConstraints(max_length=2**16)]
    weights: Blob


class Score(Settings):
    """Mean and standard deviation over ``n`` images, in percent."""

    mean: Percent
    std: Percent
    n: Annotated[int, Field(ge=0)]


class EvaluateReply(Envelope):
    """Dice of the site's teacher and of the student on the site's own test images, and how many images it holds."""

    site: Name
    teacher_mean: Percent
    teacher_std: Percent
    student_mean: Percent
    student_std: Percent
    test_images: Annotated[int, Field(ge=0)]
    train_images: Annotated[int, Field(ge=0)]

    @property
    def teacher(self) -> Score:
        """The teacher's local Dice."""
        return Score(mean=self.teacher_mean, std=self.teacher_std, n=self.test_images)

    @property
    def student(self) -> Score:
        """The student's local Dice."""
        return Score(mean=self.student_mean, std=self.student_std, n=self.test_images)


class FineTuneRequest(Envelope):
    """Ask a site to fine-tune the student on its own labelled images and to keep the result."""

    card: Annotated[str, StringConstraints(max_length=2**16)]
    weights: Blob


class FineTuneReply(Envelope):
    """Dice of the fine-tuned student on the site's own test images."""

    site: Name
    mean: Percent
    std: Percent
    test_images: Annotated[int, Field(ge=0)]
    train_images: Annotated[int, Field(ge=0)]

    @property
    def fine_tuned(self) -> Score:
        """The fine-tuned student's local Dice."""
        return Score(mean=self.mean, std=self.std, n=self.test_images)


Request = DescribeRequest | PredictRequest | EvaluateRequest | FineTuneRequest
Reply = DescribeReply | PredictReply | EvaluateReply | FineTuneReply

ACTIONS: Final[dict[type[Envelope], Action]] = {
    DescribeRequest: "query.describe",
    PredictRequest: "query.predict",
    EvaluateRequest: "evaluate.student",
    FineTuneRequest: "train.fine_tune",
}
REPLIES: Final[dict[type[Envelope], type[Envelope]]] = {
    DescribeRequest: DescribeReply,
    PredictRequest: PredictReply,
    EvaluateRequest: EvaluateReply,
    FineTuneRequest: FineTuneReply,
}

MessageT = TypeVar("MessageT", bound=Envelope)


def to_record(message: Envelope) -> RecordDict:
    """Give a message its form on Flower."""
    return RecordDict({RECORD: ConfigRecord(message.model_dump(by_alias=True))})


def from_record(kind: type[MessageT], content: RecordDict) -> MessageT:
    """Read a message.

    Raises
    ------
    WireError
        The code of an error answer, if that is what came; ``bad-message`` for anything that is not a message of this
        kind; ``bad-protocol`` for another protocol version.
    """
    if ERROR_RECORD in content.config_records:
        code = content.config_records[ERROR_RECORD].get("code")
        if not isinstance(code, str) or code not in set(ErrorCode):
            raise WireError(ErrorCode.BAD_MESSAGE, "an error that is not on the list")
        raise WireError(ErrorCode(code), "answered by the site")
    if RECORD not in content.config_records:
        raise WireError(ErrorCode.BAD_MESSAGE, f"no record named {RECORD!r}")
    return validated(kind, dict(content.config_records[RECORD]))


def validated(kind: type[MessageT], fields: dict[str, object]) -> MessageT:
    """Validate the fields of a message; see `from_record`."""
    if fields.get("protocol") != PROTOCOL:
        raise WireError(ErrorCode.BAD_PROTOCOL, f"protocol {fields.get('protocol')!r}, here {PROTOCOL}")
    if "package" not in fields:  # a default of the model, for those who make messages; not for those who send them
        raise WireError(ErrorCode.BAD_MESSAGE, "package: missing")
    try:
        return kind.model_validate(fields, strict=True)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['type']}" for f in error.errors(include_input=False))
        raise WireError(ErrorCode.BAD_MESSAGE, faults[:500]) from None


def to_bytes(message: Envelope) -> bytes:
    """Give a message the form in which it is kept on the disk: its record, as Flower writes it."""
    return bytes(recorddict_to_proto(to_record(message)).SerializeToString(deterministic=True))


def from_bytes(kind: type[MessageT], data: bytes) -> MessageT:
    """Read what `to_bytes` gave; `WireError` as `from_record` has it, ``bad-message`` for bytes that are damaged."""
    try:
        record = recorddict_from_proto(RecordDictProto.FromString(data))
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError):  # the last of a value without a kind
        raise WireError(ErrorCode.BAD_MESSAGE, "the bytes are no record") from None
    return from_record(kind, record)


def error_record(code: ErrorCode) -> RecordDict:
    """Give an error its form on Flower: the code and nothing else."""
    return RecordDict({ERROR_RECORD: ConfigRecord({"code": str(code)})})


def size_of(message: Envelope) -> int:
    """Bytes of a message's fields, as they travel: what a site's link carries, up to Flower's own few bytes a field."""
    total = 0
    for name, value in message:
        items = value if isinstance(value, list) else [value]
        total += len(kebab(name)) + sum(
            len(item) if isinstance(item, bytes) else len(str(item).encode()) for item in items
        )
    return total


def versions() -> dict[str, str]:
    """Versions that decide what is computed, found without importing the packages."""
    return {name: version(name) for name in ("consilium", "flwr", "numpy", "torch", "segmentation-models-pytorch")}


def to_bits(flags: list[bool]) -> bytes:
    """Pack flags, eight to a byte, most significant first."""
    padded = flags + [False] * (-len(flags) % 8)
    return bytes(sum(flag << (7 - i) for i, flag in enumerate(padded[at : at + 8])) for at in range(0, len(padded), 8))


def from_bits(data: bytes, count: int) -> list[bool]:
    """Unpack `to_bits`; `WireError` ``bad-message`` if the length is not that of ``count`` flags."""
    if len(data) != -(-count // 8):
        raise WireError(ErrorCode.BAD_MESSAGE, f"{len(data)} bytes for {count} flags")
    return [bool(data[i // 8] >> (7 - i % 8) & 1) for i in range(count)]


def digest_of(message: Envelope) -> str:
    """SHA-256, in hex, of a message's fields: what an audit log keeps of an answer."""
    text = hashlib.sha256()
    for name, value in message:
        for item in value if isinstance(value, list) else [value]:
            data = item if isinstance(item, bytes) else str(item).encode()
            text.update(f"{name}:{len(data)}:".encode() + data)
    return text.hexdigest()
