from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = (
        "catalogue",
        "manifest",
        "package",
        "protocol",
        "sealing_key",
        "sealing_signature",
        "settings",
        "signature",
        "signer",
        "study",
    )
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    SEALING_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    settings: str
    manifest: bytes
    signature: bytes
    signer: bytes
    sealing_key: bytes
    sealing_signature: bytes
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        settings: str | None = ...,
        manifest: bytes | None = ...,
        signature: bytes | None = ...,
        signer: bytes | None = ...,
        sealing_key: bytes | None = ...,
        sealing_signature: bytes | None = ...,
    ) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = (
        "catalogue",
        "labels",
        "missing",
        "output",
        "package",
        "protocol",
        "signer",
        "site",
        "study",
        "teacher",
    )
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    site: str
    output: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    teacher: str
    missing: bytes
    signer: bytes
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        site: str | None = ...,
        output: str | None = ...,
        labels: _Iterable[str] | None = ...,
        teacher: str | None = ...,
        missing: bytes | None = ...,
        signer: bytes | None = ...,
    ) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("catalogue", "ids", "package", "pixels", "protocol", "study")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    pixels: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        ids: _Iterable[str] | None = ...,
        pixels: _Iterable[bytes] | None = ...,
    ) -> None: ...

class PredictReply(_message.Message):
    __slots__ = (
        "abstained",
        "catalogue",
        "ids",
        "key",
        "masks",
        "package",
        "protocol",
        "seconds",
        "signature",
        "site",
        "study",
    )
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    site: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    masks: _containers.RepeatedScalarFieldContainer[bytes]
    abstained: _containers.RepeatedScalarFieldContainer[str]
    key: bytes
    signature: bytes
    seconds: float
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        site: str | None = ...,
        ids: _Iterable[str] | None = ...,
        masks: _Iterable[bytes] | None = ...,
        abstained: _Iterable[str] | None = ...,
        key: bytes | None = ...,
        signature: bytes | None = ...,
        seconds: float | None = ...,
    ) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("card", "catalogue", "package", "protocol", "study", "weights")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    card: str
    weights: bytes
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        card: str | None = ...,
        weights: bytes | None = ...,
    ) -> None: ...

class EvaluateReply(_message.Message):
    __slots__ = (
        "catalogue",
        "package",
        "protocol",
        "site",
        "student_mean",
        "student_std",
        "study",
        "teacher_mean",
        "teacher_std",
        "test_images",
        "train_images",
    )
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    TEACHER_MEAN_FIELD_NUMBER: _ClassVar[int]
    TEACHER_STD_FIELD_NUMBER: _ClassVar[int]
    STUDENT_MEAN_FIELD_NUMBER: _ClassVar[int]
    STUDENT_STD_FIELD_NUMBER: _ClassVar[int]
    TEST_IMAGES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_IMAGES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    site: str
    teacher_mean: float
    teacher_std: float
    student_mean: float
    student_std: float
    test_images: int
    train_images: int
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        site: str | None = ...,
        teacher_mean: float | None = ...,
        teacher_std: float | None = ...,
        student_mean: float | None = ...,
        student_std: float | None = ...,
        test_images: int | None = ...,
        train_images: int | None = ...,
    ) -> None: ...

class FineTuneRequest(_message.Message):
    __slots__ = ("card", "catalogue", "package", "protocol", "study", "weights")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    card: str
    weights: bytes
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        card: str | None = ...,
        weights: bytes | None = ...,
    ) -> None: ...

class FineTuneReply(_message.Message):
    __slots__ = ("catalogue", "mean", "package", "protocol", "site", "std", "study", "test_images", "train_images")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    TEST_IMAGES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_IMAGES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package: str
    study: str
    catalogue: str
    site: str
    mean: float
    std: float
    test_images: int
    train_images: int
    def __init__(
        self,
        protocol: int | None = ...,
        package: str | None = ...,
        study: str | None = ...,
        catalogue: str | None = ...,
        site: str | None = ...,
        mean: float | None = ...,
        std: float | None = ...,
        test_images: int | None = ...,
        train_images: int | None = ...,
    ) -> None: ...
