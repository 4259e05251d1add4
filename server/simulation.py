"""What a simulated federation is made of: settings, and the data of every site.

In a simulation one machine holds everything, so the coordinator may also hold a pooled test set with its labels: the
test images of all sites together. Teachers' soft masks of these are collected like any others, and scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import tomli_w
from pydantic import Field, model_validator

from consilium.common.catalogue import Catalogue, CatalogueImage, build, image_id, open_catalogue
from consilium.common.datasets import label_folder, labelled, phantoms, reading, registry
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError
from consilium.common.identity.signing import signing_key
from consilium.common.images import image_files, read_image
from consilium.common.networks.settings import NetworkSettings
from consilium.common.settings import Name, NameList, Settings
from consilium.common.study import Study
from consilium.common.training.settings import TrainingSettings
from consilium.server import labelled_set
from consilium.server.pooled_evaluation import write_test_sites
from consilium.server.run_folder import RunFolder
from consilium.server.seals import offer_key

Engine = Literal["processes", "ray", "inline"]

SOURCES: Final = ("phantoms", "folders", *(name for name, kind in registry.DATA_SETS.items() if kind.has_masks))
"""Where labelled images may come from: made here, a folder a site, or a data set that is dealt to the sites."""
SITES: Final = "sites"
"""In the run folder: the sites' homes."""
FURTHER: Final = "further"
"""The transferal set of the folder beside a data set's own unlabelled images, which are the set of the data set's name."""


class SimulatedSite(Settings):
    """One site: its data, its teacher."""

    hospital: str = Field("", description="phantoms: whose scanner and patients")
    folder: str = Field("", description="folders: holds images/ and masks/")
    images: int = Field(80, ge=1, description="phantoms: labelled images for training")
    referrals: float = Field(
        0.0, ge=0, lt=1, description="phantoms: part of these that patients brought along from the other hospitals"
    )
    share: float = Field(
        1.0, gt=0, description="a data set: its part of the labelled images, relative to the other sites'"
    )
    labels: NameList = Field((), description="phantoms: those of the study's labels that it knows; all where empty")
    network: NetworkSettings
    training: TrainingSettings = TrainingSettings(epochs=500)


class SimulationSettings(Settings):
    """Where the data of a simulated federation comes from."""

    source: str = Field(description=f"one of {', '.join(SOURCES)}")
    data: str = Field("", description="a data set: its folder")
    groups: str = Field("", description="a data set: a CSV of near-duplicate groups; its own or computed where empty")
    transferal: str = Field("", description="folders and data sets: a folder of unlabelled images")
    transferal_share: float = Field(
        0.0, ge=0, lt=1, description="a data set: part of its images to use without labels as well"
    )
    transferal_images: int = Field(320, ge=1, description="phantoms: unlabelled images, equally from all hospitals")
    lesion_free: float = Field(0.2, ge=0, lt=1, description="phantoms: part of the unlabelled images without a lesion")
    test_share: float = Field(
        0.2, gt=0, lt=1, description="folders and data sets: part of each site's images it tests on"
    )
    test_images: int = Field(25, ge=1, description="phantoms: labelled test images of each site")
    labelled_images: int = Field(
        0, ge=0, description="phantoms and data sets: labelled images of the coordinator, to fit a stack on"
    )
    min_images: int = Field(
        10, ge=1, description="the sites' policy.min-images: least images behind a metric they send"
    )
    training_at_a_time: int = Field(2, ge=1, description="teachers trained side by side")
    sites: dict[Name, SimulatedSite]


class SimulatedStudy(Study):
    """A study, and the federation to simulate for it: one file is a whole run."""

    simulation: SimulationSettings

    @model_validator(mode="after")
    def _sites_agree(self) -> Self:
        if set(self.simulation.sites) != set(self.sites):
            raise ValueError(
                f"simulation.sites describes {', '.join(sorted(self.simulation.sites))}; the study's sites are "
                f"{', '.join(sorted(self.sites))}"
            )
        source = self.simulation.source
        if source not in SOURCES:
            raise ValueError(f"simulation.source is one of {', '.join(SOURCES)}; got {source!r}")
        if source in registry.DATA_SETS and not self.simulation.data:
            raise ValueError(
                f"simulation.data: give the folder of {source}, here or with --data; it holds "
                f"{registry.DATA_SETS[source].layout}"
            )
        for name, site in self.simulation.sites.items():
            strangers = sorted(set(site.labels) - set(self.labels))
            if strangers:
                raise ValueError(
                    f"simulation.sites.{name}.labels names {', '.join(strangers)}, not among the study's labels "
                    f"{', '.join(self.labels)}"
                )
        if source == "folders" and self.simulation.labelled_images:
            raise ValueError(
                "simulation.labelled-images: phantoms and data sets give the coordinator labelled images, folders do not; leave "
                "it out, or take another source"
            )
        if self.fusion.method == "stack" and not self.simulation.labelled_images:
            raise ValueError(
                'fusion.method = "stack" is fitted on labelled images of the coordinator: say how many it has, '
                "simulation.labelled-images"
            )
        if source == "folders":
            bare = [name for name, site in self.simulation.sites.items() if not site.folder]
            if bare or not self.simulation.transferal:
                raise ValueError(
                    "simulation: each site needs its folder (images/ and masks/), and transferal is a folder of "
                    f"unlabelled images; missing for {', '.join(bare) or 'transferal'}"
                )
        return self

    @property
    def study(self) -> Study:
        """The study alone: what sites get to see."""
        return Study.model_validate({name: getattr(self, name) for name in Study.model_fields})

    def labels_of(self, site: str) -> tuple[str, ...]:
        """The study's labels that a site knows, in the study's order."""
        known = self.simulation.sites[site].labels
        return tuple(label for label in self.labels if not known or label in known)


@dataclass(frozen=True)
class SiteData:
    """A site's labelled images."""

    train: Labelled
    test: Labelled


@dataclass(frozen=True)
class FederationData:
    """All data of a simulated federation.

    ``labelled`` are the coordinator's own labelled images, if it has any.
    """

    sites: dict[str, SiteData]
    transferal: Iterator[CatalogueImage]
    labelled: Labelled | None = None


def read_data(settings: SimulatedStudy) -> FederationData:
    """Make, or read, the data of every site and the transferal images."""
    read = {"phantoms": _phantoms, "folders": _folders}.get(settings.simulation.source, _data_set)
    return read(settings)


def prepare(run: RunFolder, settings: SimulatedStudy) -> Catalogue:
    """Lay out a simulated federation in a run folder: site homes with packed data, pooled test set, signed catalogue.

    What is there already is kept, so that an interrupted simulation goes on.
    """
    key_file = run.root / "coordinator" / "signing.pem"
    if not (run.catalogue / "manifest.json").exists():
        data = read_data(settings)
        for name, site in data.sites.items():
            rows = [settings.labels.index(label) for label in settings.labels_of(name)]
            labelled.pack(site_home(run, name) / "data" / "train", _with_masks(site.train, rows))
            labelled.pack(site_home(run, name) / "data" / "test", _with_masks(site.test, rows))
        pooled = labelled.join([site.test for site in data.sites.values()])
        ids = tuple(image_id(image) for image in pooled.images)
        labelled.pack(run.test_set, Labelled(pooled.images, pooled.masks, ids, pooled.groups))
        write_test_sites(
            run, dict(zip(ids, (name for name, site in data.sites.items() for _ in site.test.sources), strict=True))
        )

        if data.labelled:
            labelled_set.pack(run, data.labelled, settings.labels)

        def images() -> Iterator[CatalogueImage]:
            if data.labelled:
                yield from labelled_set.catalogue_images(data.labelled)
            for image, source in zip(pooled.images, pooled.sources, strict=True):
                yield CatalogueImage(image, source, role="test")
            yield from data.transferal

        build(run.catalogue, settings.name, images(), signing_key(key_file))
    catalogue = open_catalogue(run.catalogue)
    if not run.sealing_offer.exists():
        offer_key(run, catalogue.hash, signing_key(key_file))
    for name in settings.sites:
        path = site_home(run, name) / "site.toml"
        path.write_text(tomli_w.dumps(site_toml(settings, name, catalogue.signer)), "utf-8")
    return catalogue


def site_home(run: RunFolder, name: str) -> Path:
    """The folder of a simulated site."""
    return run.root / SITES / name


def site_toml(settings: SimulatedStudy, name: str, signer: bytes) -> dict[str, Any]:
    """The ``site.toml`` of a simulated site."""
    site = settings.simulation.sites[name]
    return {
        "name": name,
        "labels": list(settings.labels_of(name)),
        "teacher": {
            "network": site.network.model_dump(mode="json", by_alias=True),
            "size": settings.image.size,
            "channels": settings.image.channels,
        },
        "training": site.training.model_dump(mode="json", by_alias=True)
        | {"seed": settings.seed + settings.sites.index(name)},
        "data": {
            "packed": "data",
            "size": settings.image.size,
            "channels": settings.image.channels,
            **({} if settings.fusion.asks_for_validation else {"validation-share": 0.0}),
        },
        # There is nobody to ask. A hospital's own policy leaves auto-approve out.
        "policy": {
            "trusted-signers": [signer.hex()],
            "auto-approve": True,
            "min-images": settings.simulation.min_images,
        },
    }


def _with_masks(data: Labelled, rows: list[int]) -> Labelled:
    """The same images with some of their masks."""
    return data if len(rows) == data.masks.shape[1] else replace(data, masks=data.masks[:, rows])


def _phantoms(settings: SimulatedStudy) -> FederationData:
    simulation, size = settings.simulation, settings.image.size
    if settings.image.channels != 1:
        raise DataError("phantoms are gray: image.channels must be 1")

    def make(hospital: str, kind: str, count: int, start: int, lesion_free: float = 0.0) -> Labelled:
        images, masks = phantoms.make(
            hospital, count, size, settings.seed, lesion_free=lesion_free, start=start, labels=settings.labels
        )
        sources = tuple(f"phantom {hospital} {kind} {i}" for i in range(count))
        return Labelled(images, masks, sources, ("",) * count)

    hospitals = {name: site.hospital or name for name, site in simulation.sites.items()}
    everywhere = list(dict.fromkeys(hospitals.values()))
    tests = simulation.test_images

    def train(name: str, hospital: str, start: int) -> Labelled:
        count = simulation.sites[name].images
        others = [other for other in everywhere if other != hospital]
        brought = round(count * simulation.sites[name].referrals) if others else 0
        parts = [make(hospital, f"train {name}", count - brought, start)]
        for i, other in enumerate(others):
            share = brought // len(others) + (i < brought % len(others))
            if share:
                parts.append(make(other, f"train {name}", share, start))
        return labelled.join(parts)

    sites = {
        name: SiteData(
            train(name, hospital, 100_000 * (1 + i)),
            make(hospital, f"test {name}", tests, 10_000_000 + 100_000 * i),
        )
        for i, (name, hospital) in enumerate(hospitals.items())
    }

    def dealt(images: int) -> Iterator[tuple[str, int]]:
        """Equally from all hospitals."""
        for i, hospital in enumerate(everywhere):
            yield hospital, images // len(everywhere) + (i < images % len(everywhere))

    def transferal() -> Iterator[CatalogueImage]:
        for hospital, count in dealt(simulation.transferal_images):
            made = make(hospital, "transferal", count, 20_000_000, simulation.lesion_free)
            yield from map(CatalogueImage, made.images, made.sources)

    def own() -> Labelled:
        return labelled.join(
            [make(one, "labelled", count, 30_000_000) for one, count in dealt(simulation.labelled_images)]
        )

    return FederationData(sites, transferal(), own() if simulation.labelled_images else None)


def _folders(settings: SimulatedStudy) -> FederationData:
    size, channels = settings.image.size, settings.image.channels
    sites = {}
    for name, site in settings.simulation.sites.items():
        data = label_folder.read(Path(site.folder), size, channels, settings.labels)
        sites[name] = _split(data, settings, name)
    return FederationData(sites, _transferal_folder(settings))


def _data_set(settings: SimulatedStudy) -> FederationData:
    simulation = settings.simulation
    table = Path(simulation.groups) if simulation.groups else None
    cases = [case for case in registry.cases(simulation.source, Path(simulation.data)) if case.load_mask is not None]
    data = reading.read_grouped(cases, settings.image.size, settings.image.channels, table)
    rest, unlabelled = labelled.split(data.groups, simulation.transferal_share, settings.seed)
    own = data.take(rest)
    left, given = labelled.split(own.groups, simulation.labelled_images / len(own), settings.seed)
    parts = _deal(own.take(left), {name: site.share for name, site in simulation.sites.items()}, settings.seed)

    def transferal() -> Iterator[CatalogueImage]:
        own_set, further = (simulation.source, FURTHER) if simulation.transferal else ("", "")
        yield from (CatalogueImage(data.images[i], data.sources[i], collection=own_set) for i in unlabelled)
        if simulation.transferal:
            yield from _transferal_folder(settings, further)

    sites = {name: _split(part, settings, name) for name, part in parts.items()}
    return FederationData(sites, transferal(), own.take(given) if len(given) else None)


def _transferal_folder(settings: SimulatedStudy, collection: str = "") -> Iterator[CatalogueImage]:
    for path in image_files(Path(settings.simulation.transferal)):
        pixels = partial(read_image, path, settings.image.size, settings.image.channels)
        yield CatalogueImage(pixels, str(path), collection=collection)


def _split(data: Labelled, settings: SimulatedStudy, name: str) -> SiteData:
    train, test = labelled.split(data.groups, settings.simulation.test_share, settings.seed)
    if not len(train) or not len(test):
        raise DataError(
            f"site {name} has {len(data)} labelled images, of which {len(train)} to train and {len(test)} to test on; it "
            "needs at least one of each"
        )
    return SiteData(data.take(train), data.take(test))


def _deal(data: Labelled, shares: dict[str, float], seed: int) -> dict[str, Labelled]:
    """Deal whole groups, in random order, each to the site that is furthest below its share."""
    names = list(shares)
    wanted = np.array([shares[name] for name in names]) / sum(shares.values())
    members: dict[str, list[int]] = {}
    for i, group in enumerate(data.groups):
        members.setdefault(group or f"\0{i}", []).append(i)
    hands: list[list[int]] = [[] for _ in names]
    order = list(members.values())
    for at in np.random.default_rng((seed, 1)).permutation(len(order)):
        held = np.array([len(hand) for hand in hands])
        hands[int(np.argmax(wanted * (held.sum() + 1) - held))].extend(order[at])
    return {name: data.take(np.array(sorted(hand), np.int64)) for name, hand in zip(names, hands, strict=True)}
