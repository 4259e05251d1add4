"""Packing the pixels of a catalogue, so that a build that was killed goes on where it was.

While a catalogue is built its folder holds two more files::

    building.json   the plan: the catalogue's name and shape, and every image's source, stamp, group, role and collection
    building.ids    one line an image done, in the order of the plan: the SHA-256 of its canonical pixels

What was packed before is believed only where its bytes have the hash that stands in ``building.ids``; so neither a killed
process nor a power cut can leave a wrong pixel, and no image has to wait for the disk.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from consilium.common.errors import MachineError, StateError
from consilium.common.files import write_text

Plan = Mapping[str, Any]
"""``name``, ``shape`` and ``images``: a list of [source, stamp, group, role, collection]."""

_HEX: Final = 64


class Packing:
    """Pixels on their way into ``pixels.u8``; a context manager.

    Parameters
    ----------
    folder
        The catalogue's.
    plan
        What is to be packed. A folder in which another plan was begun is refused with a `StateError` that tells the first
        difference.
    image_bytes
        Size of one image.

    Attributes
    ----------
    ids
        SHA-256, in hex, of every image done so far, repeats included.
    """

    def __init__(self, folder: Path, plan: Plan, image_bytes: int) -> None:
        self._folder: Final = folder
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "building.json").exists():
            require_same_plan(folder, plan)
        else:
            (folder / "building.ids").unlink(missing_ok=True)
            write_text(folder / "building.json", json.dumps(plan))
        self.ids, packed = _done_before(folder, image_bytes)
        self._known: Final = set(self.ids)
        self._pixels: Final = (folder / "pixels.u8").open("ab")
        self._pixels.truncate(packed)
        self._log: Final = (folder / "building.ids").open("ab")
        self._log.truncate(len(self.ids) * (_HEX + 1))

    def add(self, name: str, pixels: bytes) -> None:
        """Pack the next image, once for images of the same ``name`` (its SHA-256 in hex).

        Raises
        ------
        MachineError
            If the disk is full; what was packed is kept.
        """
        try:
            if name not in self._known:
                self._pixels.write(pixels)
                self._pixels.flush()
            self._log.write(name.encode() + b"\n")  # after its pixels: what is listed is there
            self._log.flush()
        except OSError as error:
            raise MachineError(
                f"{self._folder}: pixels could not be written ({error.strerror}); make room, then build again: it goes on "
                "where it was"
            ) from None
        self._known.add(name)
        self.ids.append(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._pixels, self._log):
            with suppress(OSError):  # every write was flushed; what a full disk did not take was told then
                file.close()


def is_under_way(folder: Path) -> bool:
    """Whether a build was begun here whose plan is still there."""
    return (folder / "building.json").exists()


def clear(folder: Path) -> None:
    """Forget the plan of a build that is done."""
    for name in ("building.ids", "building.json"):
        (folder / name).unlink(missing_ok=True)


def require_same_plan(folder: Path, plan: Plan) -> None:
    """Refuse to go on with another plan than the one that was begun: `StateError` tells the first difference."""
    try:
        held = json.loads((folder / "building.json").read_bytes())
        different = _difference(held, json.loads(json.dumps(plan)))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StateError(f"{folder / 'building.json'} is damaged ({error}); delete {folder} and build again") from None
    if different:
        raise StateError(
            f"{folder} holds a catalogue begun with something else: {different}. Build it again with what it was begun with, or "
            "delete that folder to begin anew."
        )


def _difference(held: dict[str, Any], given: dict[str, Any]) -> str:
    for key, word in (("name", "the name"), ("shape", "channels x height x width")):
        if held[key] != given[key]:
            was, now = (" x ".join(map(str, it[key])) if key == "shape" else it[key] for it in (held, given))
            return f"{word} was {was}, now {now}"
    for place, (old, new) in enumerate(zip(held["images"], given["images"], strict=False), 1):
        if old != new:
            return f"{_counts(held, given)}image {place} was {_told(old, new)}"
    if len(held["images"]) != len(given["images"]):
        longer, word = max(((held, "gone"), (given, "new")), key=lambda it: len(it[0]["images"]))
        at = min(len(held["images"]), len(given["images"]))
        return f"{_counts(held, given)}{longer['images'][at][0]} is {word}"
    return ""


def _counts(held: dict[str, Any], given: dict[str, Any]) -> str:
    old, new = len(held["images"]), len(given["images"])
    return f"{old} images then, {new} now; " if old != new else ""


def _told(old: list[str], new: list[str]) -> str:
    if old[0] != new[0]:
        return f"{old[0]}, now {new[0]}"
    words = ("source", "file size and time", "group", "role", "collection")
    changed = next(i for i in range(len(words)) if old[i] != new[i])
    return f"{old[0]} with another {words[changed]} ({old[changed] or 'none'}, now {new[changed] or 'none'})"


def _done_before(folder: Path, image_bytes: int) -> tuple[list[str], int]:
    """Read what an earlier process packed, as far as its bytes prove it: ids, and the bytes of ``pixels.u8`` they take."""
    log, pixels = folder / "building.ids", folder / "pixels.u8"
    if not log.exists() or not pixels.exists():
        return [], 0
    ids: list[str] = []
    known: set[str] = set()
    with pixels.open("rb") as packed:
        for line in log.read_bytes().split(b"\n")[:-1]:  # what stands behind the last line end was cut off
            name = line.decode("ascii", "replace")
            if name not in known and hashlib.sha256(packed.read(image_bytes)).hexdigest() != name:
                break
            known.add(name)
            ids.append(name)
    return ids, len(known) * image_bytes
