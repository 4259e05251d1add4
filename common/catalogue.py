"""The catalogue: the signed list of a study's images, and their packed pixels.

A catalogue is a folder::

    manifest.json   the list, in canonical JSON; its SHA-256 is the catalogue's hash
    signature.bin   the coordinator's Ed25519 signature of the manifest
    signer.pub      the coordinator's public key, 32 bytes
    pixels.u8       uint8 (N, C, H, W), in the order of the list
    sources.csv     which file each image came from; stays with the coordinator

An image's identity is the SHA-256 of its canonical pixels. The manifest carries no paths: a file name may hold a
patient's name.
"""

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError, model_validator

from consilium.common import identity
from consilium.common.errors import DataError, ErrorCode, StateError, WireError
from consilium.common.settings import Name, Settings

SIGNATURE_DOMAIN: Final = b"consilium catalogue 1"
Role = Literal["transferal", "test"]


def image_id(pixels: npt.NDArray[np.uint8]) -> str:
    """SHA-256, in hex, of canonical pixels: uint8 (C, H, W), C order."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


class Entry(Settings):
    """One image of the list.

    ``role`` is "test" for an image whose ground truth the coordinator holds: sites answer it like any other, the student
    never trains on it.
    """

    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    group: str = Field("", max_length=64, description="near-duplicate or patient group, a number or code")
    role: Role = "transferal"


class Manifest(Settings):
    """The list itself."""

    schema_version: Literal[1] = 1
    name: Name
    size: int = Field(ge=32, le=2048)
    channels: Literal[1, 3]
    images: tuple[Entry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if len({entry.id for entry in self.images}) != len(self.images):
            raise ValueError("images: every image is listed once")
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(by_alias=True), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest; `WireError` ``bad-message`` if it is not one."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise WireError(ErrorCode.BAD_MESSAGE, f"manifest: {error.error_count()} faults") from None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return (self.channels, self.size, self.size)


@dataclass(frozen=True)
class CatalogueImage:
    """An image on its way into a catalogue: canonical pixels uint8 (C, H, W) and where they came from."""

    pixels: npt.NDArray[np.uint8]
    source: str
    group: str = ""
    role: Role = "transferal"


@dataclass(frozen=True)
class Catalogue:
    """An opened catalogue.

    Attributes
    ----------
    manifest, manifest_bytes
        The list, parsed and as signed.
    hash
        SHA-256 of the manifest, in hex; names the catalogue everywhere.
    signature, signer
        Ed25519 signature and public key of the coordinator.
    pixels
        uint8 (N, C, H, W), memory-mapped, in the order of the list.
    """

    manifest: Manifest
    manifest_bytes: bytes
    hash: str
    signature: bytes
    signer: bytes
    pixels: npt.NDArray[np.uint8]
    folder: Path

    def __len__(self) -> int:
        return len(self.manifest.images)

    def indices(self, role: Role) -> npt.NDArray[np.int64]:
        """Positions, in the list, of the images of a role."""
        return np.array([i for i, entry in enumerate(self.manifest.images) if entry.role == role], np.int64)


def build(folder: Path, name: str, images: Iterable[CatalogueImage], key: Ed25519PrivateKey) -> Catalogue:
    """Write, sign and open a catalogue.

    Images with the same canonical pixels are listed once, as the first that came; a test image among the transferal
    images stays a test image, so that no student trains on what it is tested on.

    Parameters
    ----------
    folder
        Where it goes; must not hold a catalogue yet.
    images
        Canonical images, all of one shape. They are written as they come: memory is that of one image.

    Raises
    ------
    DataError
        If there is no image, or shapes differ.
    StateError
        If the folder holds a catalogue already.
    """
    if (folder / "manifest.json").exists():
        raise StateError(f"{folder} already holds a catalogue; open it, or build into another folder")
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    sources: list[tuple[str, str]] = []
    shape: tuple[int, ...] | None = None
    with (folder / "pixels.u8").open("wb") as packed:
        for image in images:
            shape = shape or image.pixels.shape
            if image.pixels.shape != shape or image.pixels.dtype != np.uint8:
                raise DataError(
                    f"all images of a catalogue have one shape, here {shape} uint8; "
                    f"{image.source} has {image.pixels.shape} {image.pixels.dtype}"
                )
            name_of_image = image_id(image.pixels)
            sources.append((name_of_image, image.source))
            if name_of_image not in entries:
                packed.write(np.ascontiguousarray(image.pixels).tobytes())
                entries[name_of_image] = Entry(id=name_of_image, group=image.group, role=image.role)
            elif image.role == "test":
                entries[name_of_image] = entries[name_of_image].model_copy(update={"role": "test"})
    if shape is None:
        raise DataError("a catalogue needs at least one image; none came")
    manifest = Manifest(name=name, size=shape[1], channels=shape[0], images=tuple(entries.values()))
    data = manifest.to_bytes()
    (folder / "signature.bin").write_bytes(identity.sign(key, SIGNATURE_DOMAIN, data))
    (folder / "signer.pub").write_bytes(identity.public_key_of(key))
    with (folder / "sources.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("id", "source"), *sources])
    partial = folder / "manifest.json.partial"  # last and at once: a folder with a manifest is whole
    partial.write_bytes(data)
    partial.replace(folder / "manifest.json")
    return open_catalogue(folder)


def open_catalogue(folder: Path) -> Catalogue:
    """Open a catalogue and verify its signature and the size of its pixels.

    Raises
    ------
    StateError
        If a part is missing or of another size.
    WireError
        ``bad-signature`` if the list was changed after it was signed.
    """
    try:
        data = (folder / "manifest.json").read_bytes()
        signature = (folder / "signature.bin").read_bytes()
        signer = (folder / "signer.pub").read_bytes()
        held = (folder / "pixels.u8").stat().st_size
    except FileNotFoundError as error:
        raise StateError(
            f"{folder} is not a whole catalogue: {error.filename} is missing; build it with `consilium catalogue build`"
        ) from None
    identity.verify(signer, SIGNATURE_DOMAIN, data, signature)
    manifest = Manifest.from_bytes(data)
    shape = (len(manifest.images), *manifest.image_shape)
    if held != int(np.prod(shape)):
        raise StateError(
            f"{folder / 'pixels.u8'} holds {held} bytes where {int(np.prod(shape))} belong: build the catalogue again"
        )
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
    return Catalogue(manifest, data, hashlib.sha256(data).hexdigest(), signature, signer, pixels, folder)
