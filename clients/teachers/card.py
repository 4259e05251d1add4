"""The teacher card: what a check found, and the little of it that the coordinator is told."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from consilium.clients.settings import SiteHome
from consilium.common import validation
from consilium.common.files import write_whole

LOG: Final = logging.getLogger(__name__)
NAME: Final = "card.json"


def fingerprint(home: SiteHome) -> str:
    """SHA-256, in hex, of the settings and files that decide what the teacher answers, but for its temperature.

    Code that a site names by import path, a command and a model server may change unseen.
    """
    teacher = home.settings.teacher
    told = {"labels": home.settings.labels, "teacher": teacher.model_dump(mode="json", exclude={"temperature"})}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for path in teacher.files(home.folder):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def keep(folder: Path, card: Mapping[str, Any]) -> Path:
    """Write a card, readable by this user only; the file is replaced whole."""
    path = folder / NAME
    write_whole(path, (json.dumps(dict(card), indent=2, sort_keys=True) + "\n").encode(), 0o600)
    return path


def summary(home: SiteHome) -> dict[str, object]:
    """What the coordinator is told of the last check: nothing, unless it was of this very teacher and found no fault.

    ``checked`` and ``validation``, which is the same in the form that every teacher has it in.
    """
    path = home.checks / NAME
    try:
        card = json.loads(path.read_text("utf-8"))
        if card["findings"]:
            LOG.warning(
                "consilium-site check found that something is wrong with the teacher (%s): %s",
                ", ".join(card["findings"]),
                path,
            )
            return {}
        if card["fingerprint"] != fingerprint(home):
            LOG.warning("the teacher was changed after its last check; run consilium-site check again")
            return {}
        told: dict[str, object] = {
            "checked": {
                "images": int(card["images"]),
                "dice-mean": float(card["dice-mean"]),
                "dice-std": float(card["dice-std"]),
                "temperature": home.settings.teacher.temperature,
            }
        }
        found = validation.from_card(card)
        return told if found is None else told | {"validation": found.to_card()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOG.warning("%s is no teacher card (%s); run consilium-site check again", path, type(error).__name__)
        return {}
