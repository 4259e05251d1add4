"""The data sets of an experiment: read once, packed in the store, memory-mapped ever after."""

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.datasets import near_duplicates, phantoms, registry
from consilium.common.datasets.cases import Case
from consilium.common.datasets.labelled import Labelled, pack
from consilium.common.datasets.reading import read, read_images
from consilium.common.errors import DataError, SettingsError
from consilium.common.files import write_text
from consilium.server.experiment.settings import PHANTOMS, DataSettings
from consilium.server.experiment.store import Store, digest_of

DIGESTS_NAME: Final = "digests.json"
_ORDER, _CHOICE = range(2)  # independent streams of one seed


@dataclass(frozen=True)
class DataSet:
    """A packed data set.

    Attributes
    ----------
    name
        In the experiment.
    images
        uint8 (N, C, H, W), memory-mapped.
    masks
        uint8 (N, K, H, W), 0 or 1, memory-mapped; None where they were not asked for.
    sources, groups, kinds
        Where each image came from, which patients or near duplicates belong together, and the data set's own word for what it
        shows, empty where it has none. A phantom is benign where all it shows are cysts, else malignant.
    ids
        SHA-256, in hex, of each image's pixels.
    digest
        Names the pixels of all images and masks, in order.
    """

    name: str
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8] | None
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    ids: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def pixels(self) -> str:
        """Names the pixels of the images alone."""
        return digest_of(self.ids)

    @property
    def truth(self) -> npt.NDArray[np.uint8]:
        """The masks, or `DataError` where there are none."""
        if self.masks is None:
            raise DataError(f"the data set {self.name} was packed without masks, and they are asked for here")
        return self.masks

    def take(self, name: str, indices: npt.NDArray[np.int64]) -> "DataSet":
        """Choose images by position, in that order; the pixels are copied into memory."""
        return DataSet(
            name,
            self.images[indices],
            None if self.masks is None else self.masks[indices],
            tuple(self.sources[i] for i in indices),
            tuple(self.groups[i] for i in indices),
            tuple(self.kinds[i] for i in indices),
            tuple(self.ids[i] for i in indices),
            digest_of({"of": self.digest, "indices": indices.tolist()}),
        )


def joined(name: str, sets: Sequence[DataSet]) -> DataSet:
    """Put data sets one behind the other; groups of different sets stay apart. Without masks if one of them has none."""
    masks = [one.masks for one in sets if one.masks is not None]
    return DataSet(
        name,
        np.concatenate([one.images for one in sets]),
        np.concatenate(masks) if len(masks) == len(sets) else None,
        tuple(source for one in sets for source in one.sources),
        tuple(group and f"{one.name}: {group}" for one in sets for group in one.groups),
        tuple(kind for one in sets for kind in one.kinds),
        tuple(each for one in sets for each in one.ids),
        digest_of([one.digest for one in sets]),
    )


def prepare(
    store: Store, name: str, settings: DataSettings, *, size: int, channels: int, with_masks: bool = True
) -> DataSet:
    """Read and pack a data set.

    Parameters
    ----------
    store
        Keeps it.
    name
        For people.
    settings
        Which images.
    size, channels
        Of the canonical form.
    with_masks
        Whether masks are wanted; every image must then have one.

    Raises
    ------
    SettingsError
        If the path is not given.
    DataError
        If the data set cannot be read, or nothing is left of it.
    """
    if settings.data_set != PHANTOMS and not settings.path:
        raise SettingsError(
            f"data.{name}: where is {settings.data_set}? Give its folder as path, or with --data {name}=FOLDER"
        )
    form = {"size": size, "channels": channels, "masks": with_masks, "kinds": True}
    facts = settings.model_dump(mode="json", by_alias=True) | form

    def make(folder: Path) -> None:
        if settings.data_set == PHANTOMS:
            data, kinds = _phantoms(settings, size)
        else:
            chosen = _cases(settings, size, channels, grouped=with_masks)

            def on_case(done: int) -> None:
                store.tell(f"{name} is read and packed", done, len(chosen))

            if not with_masks:
                _pack_images(folder, chosen, size, channels, on_case)
                return
            data, kinds = read(chosen, size, channels, on_case=on_case), [case.kind for case in chosen]
        pack(folder, data)
        ids = [_sha256(image) for image in data.images]
        _write_digests(folder, ids, _sha256(data.masks) if with_masks else "", kinds)

    folder = store.keep("data", facts, make).folder
    digests = json.loads((folder / DIGESTS_NAME).read_text("utf-8"))
    with (folder / "index.csv").open(newline="", encoding="utf-8") as table:
        sources, groups = zip(*list(csv.reader(table))[1:], strict=True)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    masks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False) if with_masks else None
    ids = tuple(digests["images"])
    digest = digest_of([digests["masks"], *ids])
    return DataSet(name, images, masks, sources, groups, tuple(digests["kinds"]), ids, digest)


def part_of(groups: Sequence[str], part: tuple[float, float], seed: int) -> npt.NDArray[np.int64]:
    """Choose a part of a data set without tearing a group apart.

    Groups are put in random order one behind the other; each belongs to the part that its first image falls into. Parts that
    do not overlap share no group, and parts that cover 0 to 1 share out everything.

    Parameters
    ----------
    groups
        The group of each image; an empty text is a group of its own.
    part
        From and to, as shares of the images.
    seed
        Decides the order.

    Returns
    -------
    Positions, ascending.
    """
    members = _members(groups)
    low, high = (bound * len(groups) for bound in part)
    chosen: list[int] = []
    start = 0
    for at in np.random.default_rng([seed, _ORDER]).permutation(len(members)):
        if low <= start < high:
            chosen += members[at]
        start += len(members[at])
    return np.array(sorted(chosen), np.int64)


def labelled_few(groups: Sequence[str], count: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose images to label, and those to test on: positions of both, ascending.

    Groups are taken in random order until there are `count` images; what the last group has too many is in neither part.
    """
    members = _members(groups)
    taken: list[int] = []
    for at in np.random.default_rng([seed, _CHOICE]).permutation(len(members)):
        if len(taken) >= count:
            break
        taken += members[at]
    rest = np.setdiff1d(np.arange(len(groups)), taken)
    return np.array(sorted(taken[:count]), np.int64), rest.astype(np.int64)


def _members(groups: Sequence[str]) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group or f"\0{i}", []).append(i)
    return list(members.values())


def _chosen(groups: Sequence[str], settings: DataSettings) -> npt.NDArray[np.int64]:
    positions = part_of(groups, settings.part, settings.seed)
    if settings.limit and len(positions) > settings.limit:
        positions = np.sort(
            np.random.default_rng([settings.seed, _CHOICE]).choice(positions, settings.limit, replace=False)
        )
    if not len(positions):
        raise DataError(
            f"{settings.path or settings.hospital}: nothing of its {len(groups)} images is in the part from "
            f"{settings.part[0]:g} to {settings.part[1]:g}; widen it"
        )
    return positions


def _phantoms(settings: DataSettings, size: int) -> tuple[Labelled, list[str]]:
    images, parts = phantoms.make(
        settings.hospital,
        settings.count,
        size,
        settings.seed,
        lesion_free=settings.lesion_free,
        start=settings.first,
        labels=("cyst", "mass"),
    )
    sources = tuple(f"phantom {settings.hospital} {settings.first + i}" for i in range(settings.count))
    whole = Labelled(images, parts.max(axis=1, keepdims=True), sources, ("",) * settings.count)
    chosen = _chosen(whole.groups, settings)
    cysts, masses = (parts[chosen, place].any(axis=(1, 2)).tolist() for place in range(2))
    kinds = ["malignant" if mass else "benign" if cyst else "" for cyst, mass in zip(cysts, masses, strict=True)]
    return whole.take(chosen), kinds


def _cases(settings: DataSettings, size: int, channels: int, *, grouped: bool) -> list[Case]:
    """The cases of the part asked for, with their groups.

    Where a data set names no groups, near duplicates are, so that parts of it stay apart: whether masks are wanted or not,
    the same images are in a part.
    """
    cases = registry.cases(settings.data_set, Path(settings.path))
    if not any(case.group for case in cases) and (grouped or settings.part != (0.0, 1.0)):
        images = np.stack([pixels for _, pixels in read_images(cases, size, channels)])
        cases = [replace(case, group=group) for case, group in zip(cases, near_duplicates.groups(images), strict=True)]
    return [cases[i] for i in _chosen([case.group for case in cases], settings)]


def _pack_images(folder: Path, cases: list[Case], size: int, channels: int, on_case: Callable[[int], None]) -> None:
    """Pack images without masks, one at a time: there may be more than fit into memory."""
    ids = list[str]()
    shape = (len(cases), channels, size, size)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for i, (_, pixels) in enumerate(read_images(cases, size, channels)):
        images[i] = pixels
        ids.append(_sha256(pixels))
        on_case(i + 1)
    images.flush()
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("source", "group"), *((case.source, case.group) for case in cases)])
    _write_digests(folder, ids, "", [case.kind for case in cases])


def _write_digests(folder: Path, ids: list[str], masks: str, kinds: list[str]) -> None:
    write_text(folder / DIGESTS_NAME, json.dumps({"images": ids, "masks": masks, "kinds": kinds}, indent=0) + "\n")


def _sha256(array: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
