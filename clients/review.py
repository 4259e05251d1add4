"""What a person at the site sees of a study before deciding about it: who asks, for what, and which images."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from consilium.clients.consent import ConsentBook, State
from consilium.clients.own_images import OwnImages
from consilium.clients.settings import SiteHome
from consilium.clients.studies import Shown, StudyBook
from consilium.common.datasets import contact_sheet, labelled
from consilium.common.datasets.cases import Case
from consilium.common.errors import SettingsError
from consilium.common.identity.key_files import private_folder
from consilium.common.identity.signing import fingerprint

_BATCH: Final = 256
_MOST_PAIRS: Final = contact_sheet.MOST // 2


@dataclass(frozen=True)
class Listed:
    """A study that was shown, and how it stands with it."""

    shown: Shown
    state: State
    until: str

    @property
    def digest(self) -> str:
        """Of the study's settings."""
        return self.shown.request.study


@dataclass(frozen=True)
class NearDuplicate:
    """A shared image that looks like one of the site's own training images, and is not answered."""

    image: str
    own: int
    source: str
    correlation: float


@dataclass(frozen=True)
class Looked:
    """What a review left for the eye.

    Attributes
    ----------
    held, images
        How many of the catalogue's images are here, and how many there are.
    own
        How many training images of the site they were compared with.
    near
        Those that look like one of them.
    folder
        Holds ``images.png``, and ``near-duplicates.png`` and ``near-duplicates.csv`` where there are any.
    """

    held: int
    images: int
    own: int
    near: list[NearDuplicate]
    folder: Path


def listed(home: SiteHome) -> list[Listed]:
    """All studies that were shown to a site, waiting ones first."""
    consents = ConsentBook(home.consents, home.settings.name)
    found = []
    for shown in StudyBook(home, consents).all():
        state = consents.state(shown.request, shown.signer)
        decided = consents.read(shown.request) if state in (State.APPROVED, State.EXPIRED) else None
        found.append(Listed(shown, state, str(decided.until) if decided else ""))
    return sorted(found, key=lambda one: (one.state is not State.WAITING, one.shown.study.name, one.digest))


def find(home: SiteHome, wanted: str) -> Listed:
    """Find a study by its name or the beginning of its digest.

    Raises
    ------
    SettingsError
        If none or several were shown.
    """
    found = [one for one in listed(home) if one.shown.study.name == wanted or one.digest.startswith(wanted.lower())]
    if len(found) == 1:
        return found[0]
    several = ", ".join(f"{one.digest[:12]} ({one.shown.study.name})" for one in found or listed(home))
    raise SettingsError(
        f"a study is named by its name or the first digits of its digest; {wanted!r} is {'several' if found else 'none'} of "
        f"those shown to this site: {several or 'none was'}"
    )


def in_words(home: SiteHome, one: Listed) -> Iterator[tuple[str, str]]:
    """Say what a study is and asks for, a heading and a sentence at a time."""
    shown, policy = one.shown, home.settings.policy
    study, manifest = shown.study, shown.manifest
    tests, labelled = (sum(entry.role == role for entry in manifest.images) for role in ("test", "labelled"))
    fitted = f", {labelled} to learn on how to fuse the sites' masks" if labelled else ""
    yield "study", f"{study.name}, digest {one.digest}"
    yield "signed by", f"{fingerprint(shown.signer)}  (compare it with the coordinator, by telephone)"
    yield "", f"key {shown.signer.hex()}"
    yield "sites", ", ".join(study.sites)
    yield (
        "images",
        f"{len(manifest.images)} of the catalogue {manifest.name}, {manifest.size} x {manifest.size}, "
        f"{'gray' if manifest.channels == 1 else 'colour'}; {tests} of them to test on{fitted}; hash {shown.request.catalogue}",
    )
    offline = home.settings.name in study.collect.offline
    yield (
        "asks for",
        f"a soft mask of each image, for {', '.join(study.labels)}"
        + (
            ", in a file that is carried back; the student that is made of all sites' masks does not come here"
            if offline
            else "; the student that is made of all sites' masks is then tested on your own test images"
        ),
    )
    yield (
        "fine-tuning",
        f"the student is to be trained on here, with {study.fine_tune.images or 'all'} labelled images; it stays, its Dice leaves"
        if home.settings.name in study.tuning
        else "not asked of this site",
    )
    leaves = [
        f"masks of {policy.levels} levels, each image once" if "predict" in policy.actions else "no masks",
        f"Dice over at least {policy.min_images} images of at most {policy.max_students} students"
        if {"evaluate", "fine-tune"} & set(policy.actions)
        else "no Dice",
    ]
    yield "your policy lets out", "; ".join(leaves)
    yield (
        "sealed",
        f"masks are encrypted to the study's key {fingerprint(shown.request.sealing_key)}: no server on the way reads them"
        if shown.request.sealing_key
        else "NO: whoever runs the servers on the way reads the masks",
    )
    yield "state", one.state + (f" until {one.until}" if one.until else "")


def look(home: SiteHome, one: Listed) -> Looked:
    """Draw the images of a study that are here, and find those that look like the site's own."""
    shown = one.shown
    folder = private_folder(home.reviews / f"{shown.study.name}-{one.digest[:12]}")
    ids = shown.images.held()
    own = OwnImages(home.train_set)
    near = _near_duplicates(home, shown, ids, own) if home.settings.policy.near_duplicate < 1 else []
    title = f"{shown.study.name}: images of {shown.manifest.name}"
    subtitle = f"{len(ids):,} of {len(shown.manifest.images):,} are here; signed by {fingerprint(shown.signer)}"
    contact_sheet.draw([_case(shown, name) for name in ids], title, subtitle).save(folder / "images.png")
    if near:
        _draw_near(home, shown, near, folder)
    return Looked(len(ids), len(shown.manifest.images), len(own), near, folder)


def _near_duplicates(home: SiteHome, shown: Shown, ids: list[str], own: OwnImages) -> list[NearDuplicate]:
    sources = labelled.open_packed(home.train_set).sources if labelled.is_packed(home.train_set) else ()
    found = []
    for at in range(0, len(ids), _BATCH):
        part = ids[at : at + _BATCH]
        like = own.likeness(shown.images.take(part))
        for i in np.flatnonzero(like.correlation > home.settings.policy.near_duplicate):
            place = int(like.position[i])
            found.append(NearDuplicate(part[i], place, sources[place], float(like.correlation[i])))
    return sorted(found, key=lambda one: -one.correlation)


def _draw_near(home: SiteHome, shown: Shown, near: list[NearDuplicate], folder: Path) -> None:
    """Draw each beside the own image it looks like; the table has them all, and stays here as the pictures do."""
    own = labelled.open_packed(home.train_set).images
    pairs = [
        case
        for one in near[:_MOST_PAIRS]
        for case in (
            _case(shown, one.image),
            Case(f"yours, {one.correlation:.3f}: {one.source}", lambda at=one.own: _picture(own[at])),  # type: ignore[misc]  # bound now
        )
    ]
    title = f"{shown.study.name}: {len(near):,} images look like yours and are not answered"
    contact_sheet.draw(pairs, title, "each beside the training image it looks like").save(
        folder / "near-duplicates.png"
    )
    with (folder / "near-duplicates.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows(
            [
                ("image", "own_image", "correlation"),
                *((one.image, one.source, f"{one.correlation:.4f}") for one in near),
            ]
        )


def _case(shown: Shown, name: str) -> Case:
    return Case(name[:12], lambda: _picture(shown.images.take([name])[0]))


def _picture(image: np.typing.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
