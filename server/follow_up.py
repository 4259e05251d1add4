"""A study that follows another: the sites answer with the first one's student, as each fine-tuned it on its own labels.

The follow-up is a study like any other, in a run folder of its own: the same images, so the same catalogue and test set, and
a student that goes on from the first one's weights. What it asks of a site is decided there, anew.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilium.common.catalogue import open_catalogue
from consilium.common.errors import SettingsError, StateError
from consilium.common.networks.student_files import WEIGHTS_NAME
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.server.ledger import Ledger
from consilium.server.run_folder import RunFolder
from consilium.server.seals import offer_key

START: Final = "start.safetensors"
"""In the follow-up's run folder: what its student begins with."""


@dataclass(frozen=True)
class FollowUp:
    """A follow-up that is ready to be started.

    Attributes
    ----------
    study
        Its settings, frozen in its run folder.
    fine_tuned, others
        Sites that have a student of their own to answer with, and those that answer with their teacher as before.
    """

    study: Study
    fine_tuned: tuple[str, ...]
    others: tuple[str, ...]


def default_name(first: Study) -> str:
    """The follow-up's name where none is given."""
    return f"{first.name}-follow-up"


def follow(first: RunFolder, second: RunFolder, name: str, signing: Ed25519PrivateKey) -> FollowUp:
    """Make the run folder of a study that follows a finished one; made before, it is left as it is.

    Parameters
    ----------
    first
        The finished study's; only read.
    second
        The follow-up's. Pixels are linked, not copied, where the disk can.
    name
        The follow-up's.
    signing
        The coordinator's key, that of the catalogue: the follow-up offers the sites a new key to seal their masks to.

    Raises
    ------
    StateError
        If the first study has no student, or no site fine-tuned it; or the folder holds another study.
    SettingsError
        If name, folder or key cannot be the follow-up's.
    """
    study = first.open_study()
    fine_tuned = _fine_tuned(first, study)
    if second.root == first.root or name == study.name:
        raise SettingsError(
            f"a follow-up is a study of its own: give it another name than {study.name}, and another folder than {first.root}"
        )
    catalogue = open_catalogue(first.catalogue)
    catalogue.require_key(signing)
    second.root.mkdir(parents=True, exist_ok=True)
    with second.locked():
        for source, target in (
            (first.catalogue, second.catalogue),
            (first.test_set, second.test_set),
            (first.labelled_set, second.labelled_set),
            (first.student / WEIGHTS_NAME, second.root / START),
            (first.site_keys, second.site_keys),
        ):
            _take(source, target)
        if first.sealing_offer.exists() and not second.sealing_offer.exists():
            offer_key(second, catalogue.hash, signing)
        following = _following(study, name, second.root / START)
        second.create(following)
    others = tuple(site for site in study.sites if site not in fine_tuned)
    return FollowUp(following, fine_tuned, others)


def _fine_tuned(first: RunFolder, study: Study) -> tuple[str, ...]:
    """The sites that fine-tuned the first study's student, in the study's order."""
    if not (first.student / WEIGHTS_NAME).is_file() or not first.ledger.exists():
        raise StateError(f"{first.root} has no student yet: finish that study first (`consilium status {first.root}`)")
    ledger = Ledger.open(first.ledger)
    try:
        done = ledger.results("fine-tune")
    finally:
        ledger.close()
    if not done:
        raise StateError(
            f"no site has fine-tuned the student of {study.name}, so a follow-up would ask the same teachers again: a first "
            "study names the sites that shall in fine-tune.sites; sites that failed are asked again when it is started again"
        )
    return tuple(site for site in study.sites if site in done)


def _following(first: Study, name: str, start: Path) -> Study:
    network = first.student.network.from_scratch.model_copy(update={"weights": str(start)})
    student = first.student.model_copy(update={"network": network})
    document = first.model_copy(update={"name": name, "student": student}).model_dump(mode="json", by_alias=True)
    return parse(Study, document, "the follow-up")


def _take(source: Path, target: Path) -> None:
    """Link a file, or a folder file by file, whole or not at all; copy where links cannot be; leave what is not there."""
    if not source.exists() or target.exists():
        return
    partial = target.with_name(f"{target.name}.partial")
    if source.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, copy_function=_link)
    else:
        partial.unlink(missing_ok=True)
        _link(str(source), str(partial))
    partial.replace(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
