"""Transferal sets as a command names them, and their images on the way into a catalogue."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from consilium.common.catalogue import CatalogueImage, Pixels
from consilium.common.datasets.cases import Case
from consilium.common.datasets.registry import DATA_SETS, cases
from consilium.common.errors import SettingsError
from consilium.common.images import canonical
from consilium.common.settings import Name


@dataclass(frozen=True)
class TransferalSet:
    """A folder of shared images: ``name`` is that of the collection, or empty; ``data_set`` says how it is laid out."""

    name: str
    data_set: str
    folder: Path


def parse(text: str) -> TransferalSet:
    """Read ``FOLDER``, ``NAME=FOLDER`` or ``NAME=DATASET:FOLDER``; `SettingsError` if the name is none."""
    if Path(text).is_dir():
        return TransferalSet("", "images", Path(text))
    name, equals, place = text.partition("=")
    try:
        name, place = (TypeAdapter(Name).validate_python(name), place) if equals else ("", text)
    except ValidationError:
        raise SettingsError(
            f"a transferal set is FOLDER, NAME=FOLDER or NAME=DATASET:FOLDER, its name in small letters, digits and '-'; "
            f"got {text!r}"
        ) from None
    data_set, colon, folder = place.partition(":")
    if colon and data_set in DATA_SETS:
        return TransferalSet(name, data_set, Path(folder))
    return TransferalSet(name, "images", Path(place))


def catalogue_images(sets: Iterable[TransferalSet], size: int, channels: int) -> list[CatalogueImage]:
    """List the images of all sets, one set behind the other; none is decoded yet.

    Raises
    ------
    ConsiliumError
        If a folder is not there or not laid out as its data set says.
    """
    return [
        CatalogueImage(
            partial(_pixels, case, size, channels),
            case.source,
            case.group,
            collection=one.name,
            stamp=stamp(case.source),
        )
        for one in sets
        for case in cases(one.data_set, one.folder)
    ]


def _pixels(case: Case, size: int, channels: int) -> Pixels:
    return canonical(case.load_image(), size, channels)


def stamp(source: str) -> str:
    """Size and time of a file; empty where a source is none."""
    file = Path(source) if Path(source).exists() else Path(source.rpartition("#")[0])
    if not file.is_file():
        return ""
    held = file.stat()
    return f"{held.st_size} bytes of {held.st_mtime_ns}"
