"""The catalogue: the signed list of a study's images, and their packed pixels.

A catalogue is a folder::

    manifest.json   the list, in canonical JSON; its SHA-256 is the catalogue's hash
    signature.bin   the coordinator's Ed25519 signature of the manifest
    signer.pub      the coordinator's public key, 32 bytes
    pixels.u8       uint8 (N, C, H, W), in the order of the list
    sources.csv     which file each image came from; stays with the coordinator

An image's identity is the SHA-256 of its canonical pixels. The manifest carries no paths: a file name may hold a
patient's name. A group may be a patient's number; so the list has numbers of its own for groups, in order of appearance. (A
hash would not do: whoever suspects a number can hash it and look.)
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError, model_validator

from consilium.common import packing
from consilium.common.errors import DataError, ErrorCode, SettingsError, StateError, WireError
from consilium.common.files import replacing, write_whole
from consilium.common.identity import signing
from consilium.common.parallel import in_order
from consilium.common.settings import Name, Settings

SIGNATURE_DOMAIN: Final = b"consilium catalogue 1"
Role = Literal["transferal", "test", "labelled"]
Pixels = npt.NDArray[np.uint8]


def image_id(pixels: Pixels) -> str:
    """SHA-256, in hex, of canonical pixels: uint8 (C, H, W), C order."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


class Entry(Settings):
    """One image of the list.

    ``role`` is "test" or "labelled" for an image whose ground truth the coordinator holds, to test on or to fit a stack on:
    sites answer it like any other, the student never trains on it.
    """

    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    group: str = Field("", max_length=64, description="near-duplicate or patient group, a number or code")
    role: Role = "transferal"
    collection: Literal[""] | Name = Field("", description="the transferal set it came with, where there are several")


class Manifest(Settings):
    """The list itself.

    Version 2 has collections, version 3 labelled images. A list is written as the lowest version that has what is in it, to the
    byte as before there was more.
    """

    schema_version: Literal[1, 2, 3] = 1
    name: Name
    size: int = Field(ge=32, le=2048)
    channels: Literal[1, 3]
    images: tuple[Entry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if len({entry.id for entry in self.images}) != len(self.images):
            raise ValueError("images: every image is listed once")
        if self.schema_version == 1 and any(entry.collection for entry in self.images):
            raise ValueError("images: collections need schema-version 2")
        if self.schema_version < 3 and any(entry.role == "labelled" for entry in self.images):
            raise ValueError("images: labelled ones need schema-version 3")
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        unknown = {"images": {"__all__": {"collection"}}} if self.schema_version == 1 else None
        return json.dumps(
            self.model_dump(by_alias=True, exclude=unknown), sort_keys=True, separators=(",", ":")
        ).encode()

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
    """An image on its way into a catalogue.

    Attributes
    ----------
    pixels
        Canonical, uint8 (C, H, W); or a function that gives them when their turn comes, so that a long list takes no memory.
        It is called in a thread.
    source
        Where it came from; stays with the coordinator.
    group
        The data set's own word for the patient, lesion or near-duplicate group; only a number for it leaves.
    role, collection
        As in `Entry`.
    stamp
        What changes when the source does, such as a file's size and time; a build that goes on compares it.
    """

    pixels: Pixels | Callable[[], Pixels]
    source: str
    group: str = ""
    role: Role = "transferal"
    collection: str = ""
    stamp: str = ""


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

    def require_key(self, key: Ed25519PrivateKey) -> None:
        """Refuse a key that did not sign the catalogue: sites take a coordinator's offers and requests by that signature alone.

        Raises
        ------
        SettingsError
            If it is another one.
        """
        if (own := signing.public_key_of(key)) != self.signer:
            signed, got = signing.fingerprint(self.signer), signing.fingerprint(own)
            raise SettingsError(f"the key is that which signed {self.folder}, {signed}; got {got}")

    @property
    def collections(self) -> dict[str, int]:
        """How many images of each transferal set are listed, by its name; empty where no set has a name."""
        counts = Counter(entry.collection for entry in self.manifest.images if entry.role == "transferal")
        return dict(counts) if any(counts) else {}

    def indices(self, role: Role) -> npt.NDArray[np.int64]:
        """Positions, in the list, of the images of a role."""
        return np.array([i for i, entry in enumerate(self.manifest.images) if entry.role == role], np.int64)


def build(
    folder: Path,
    name: str,
    images: Iterable[CatalogueImage],
    key: Ed25519PrivateKey,
    *,
    shape: tuple[int, int, int] | None = None,
    workers: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Catalogue:
    """Write, sign and open a catalogue.

    Images with the same canonical pixels are listed once, as the first that came; a test or labelled image among the
    transferal images stays what it is, so that no student trains on what it is tested on, or on what a stack was fitted on.

    A build that was killed goes on where it was when it is called again: what is packed is not decoded again. Whatever was
    killed, and however many workers, the bytes are the same.

    Parameters
    ----------
    folder
        Where it goes; must not hold another catalogue yet.
    images
        In the order of the list.
    shape
        (C, H, W) of every image; that of the first where None.
    workers
        Threads that read images; 0 is one for each core.
    on_progress
        Told how many images are done, first those that were before.

    Raises
    ------
    DataError
        If there is no image, or shapes differ.
    StateError
        If the folder holds a catalogue already, or one begun with other images or another name or shape.
    """
    whole = (folder / "manifest.json").exists()
    if whole and not packing.is_under_way(folder):
        raise StateError(f"{folder} already holds a catalogue; open it, or build into another folder")
    listed = list(images)
    if not listed:
        raise DataError("a catalogue needs at least one image; none came")
    shape = shape or _pixels(listed[0]).shape
    plan = {
        "name": name,
        "shape": shape,
        "images": [(one.source, one.stamp, one.group, one.role, one.collection) for one in listed],
    }
    if whole:
        packing.require_same_plan(folder, plan)  # it was killed at the very end
    else:
        with packing.Packing(folder, plan, int(np.prod(shape))) as packed:
            told = on_progress or (lambda _done: None)
            told(len(packed.ids))
            for name_of_image, pixels in in_order(lambda one: _read(one, shape), listed[len(packed.ids) :], workers):
                packed.add(name_of_image, pixels)
                told(len(packed.ids))
        entries = _entries(listed, packed.ids)
        manifest = Manifest(
            schema_version=_version(entries), name=name, size=shape[1], channels=shape[0], images=entries
        )
        _finish(folder, manifest, key, zip(packed.ids, (one.source for one in listed), strict=True))
    packing.clear(folder)
    return open_catalogue(folder)


def _pixels(image: CatalogueImage) -> Pixels:
    return image.pixels() if callable(image.pixels) else image.pixels


def _read(image: CatalogueImage, shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Id and bytes of an image; everything that takes time happens here, in a worker."""
    pixels = _pixels(image)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise DataError(
            f"all images of a catalogue have one shape, here {shape} uint8; "
            f"{image.source} has {pixels.shape} {pixels.dtype}"
        )
    return image_id(pixels), np.ascontiguousarray(pixels).tobytes()


def _entries(images: Sequence[CatalogueImage], ids: Sequence[str]) -> tuple[Entry, ...]:
    """List every image once."""
    entries: dict[str, Entry] = {}
    groups: dict[tuple[str, str], str] = {}
    for image, name in zip(images, ids, strict=True):
        if name not in entries:
            own = (image.collection, image.group)  # "12" of one set is not "12" of another
            group = groups.setdefault(own, str(len(groups) + 1)) if image.group else ""
            entries[name] = Entry(id=name, group=group, role=image.role, collection=image.collection)
        elif entries[name].role == "transferal":
            entries[name] = entries[name].model_copy(update={"role": image.role})
    return tuple(entries.values())


def _version(entries: Sequence[Entry]) -> Literal[1, 2, 3]:
    if any(entry.role == "labelled" for entry in entries):
        return 3
    return 2 if any(entry.collection for entry in entries) else 1


def _finish(folder: Path, manifest: Manifest, key: Ed25519PrivateKey, sources: Iterable[tuple[str, str]]) -> None:
    data = manifest.to_bytes()
    write_whole(folder / "signature.bin", signing.sign(key, SIGNATURE_DOMAIN, data))
    write_whole(folder / "signer.pub", signing.public_key_of(key))
    with replacing(folder / "sources.csv") as partial, partial.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("id", "source"), *sources])
    write_whole(folder / "manifest.json", data)  # last: a folder with a manifest is whole


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
    signing.verify(signer, SIGNATURE_DOMAIN, data, signature)
    manifest = Manifest.from_bytes(data)
    shape = (len(manifest.images), *manifest.image_shape)
    if held != int(np.prod(shape)):
        raise StateError(
            f"{folder / 'pixels.u8'} holds {held} bytes where {int(np.prod(shape))} belong: build the catalogue again"
        )
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
    return Catalogue(manifest, data, hashlib.sha256(data).hexdigest(), signature, signer, pixels, folder)
