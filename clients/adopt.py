"""Answering with a study's student, as this site fine-tuned it, in place of the teacher: for a study that follows."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from consilium.clients import review, site_text
from consilium.clients.settings import FINE_TUNED, SiteHome, load_site
from consilium.clients.teachers.settings import CheckpointSettings
from consilium.common.errors import SettingsError, StateError
from consilium.common.study import Study


@dataclass(frozen=True)
class Adopted:
    """What a site answers with from now on.

    Attributes
    ----------
    folder
        The fine-tuned student's, in the site's home.
    study
        The name of the study that it is from.
    before, after
        Its mean Dice on the site's test images, percent, before and after fine-tuning.
    former
        A copy of the settings as they were; None if they named this student already.
    """

    folder: Path
    study: str
    before: float
    after: float
    former: Path | None


def adopt(path: Path, wanted: str) -> Adopted:
    """Name a fine-tuned student as the teacher in a ``site.toml``; a copy of the file as it was is kept beside it.

    Parameters
    ----------
    path
        The ``site.toml``.
    wanted
        The study whose student it is: its name, or the first digits of its digest.

    Raises
    ------
    SettingsError
        If the study is none or several of those shown here, its labels are not the site's, or the file has to be changed by
        hand.
    StateError
        If no student of the study was fine-tuned here.
    """
    home = load_site(path)
    listed = review.find(home, wanted)
    study = listed.shown.study
    if study.labels != home.settings.labels:
        raise SettingsError(
            f"{path}: the student of {study.name} shows {', '.join(study.labels)}, this site's labels are "
            f"{', '.join(home.settings.labels)}; a site answers with a student whose labels are its own, in the same order"
        )
    folder = _newest(home, listed.digest, study)
    tuned = json.loads((folder / FINE_TUNED).read_text("utf-8"))
    found = Adopted(folder, study.name, tuned["before"]["mean"], tuned["after"]["mean"], None)
    teacher = _teacher(home, folder, study)
    if home.settings.teacher.model_dump(mode="json", by_alias=True, exclude_defaults=True) == teacher:
        return found
    table, former = tomli_w.dumps({site_text.TEACHER: teacher}), _former(path, study.name)
    text = site_text.with_teacher(path.read_text("utf-8"), table)
    site_text.write(path, text, teacher, f"put this in the place of the table [teacher] yourself:\n{table}", former)
    return replace(found, former=former)


def _former(path: Path, study: str) -> Path:
    """Where the file as it is goes: a name that is free, or holds the same already."""
    names = (f"{path.name}.before-{study}{f'-{count}' if count > 1 else ''}" for count in itertools.count(1))
    places = (path.with_name(name) for name in names)
    return next(one for one in places if not one.exists() or one.read_bytes() == path.read_bytes())


def _newest(home: SiteHome, digest: str, study: Study) -> Path:
    """The study's student that was fine-tuned last; a study has several if it was distilled again."""
    made = [one for one in home.students.glob(f"{digest[:12]}-*") if (one / FINE_TUNED).is_file()]
    if not made:
        raise StateError(
            f"no student of {study.name} was fine-tuned at {home.settings.name}: the study names the sites that shall in "
            f"fine-tune.sites ({', '.join(study.tuning) or 'none'})"
        )
    return max(made, key=lambda one: (one / FINE_TUNED).stat().st_mtime_ns)


def _teacher(home: SiteHome, folder: Path, study: Study) -> dict[str, Any]:
    """The table ``[teacher]``; what is as by default is left out. A site that offers binary masks only goes on so."""
    output = "binary" if home.settings.teacher.offers == "binary" else "soft"
    named = str(folder.relative_to(home.folder))
    settings = CheckpointSettings(folder=named, size=study.image.size, channels=study.image.channels, output=output)
    return settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
