"""Changing a ``site.toml`` in its text: a person wrote it, so comments, and whatever is not meant, stay as they are."""

import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from consilium.clients.settings import SiteSettings
from consilium.common.errors import SettingsError
from consilium.common.files import write_whole
from consilium.common.settings import read_toml, toml_of

TEACHER: Final = "teacher"
_HEADER: Final = re.compile(r"^\[\[?[ \t]*([^\]\n]+?)[ \t]*\]\]?[ \t]*(?:#.*)?$")


def write(path: Path, changed: str, teacher: Mapping[str, Any], by_hand: str, former: Path | None = None) -> None:
    """Write the changed text, if it says what it should.

    Parameters
    ----------
    path
        The ``site.toml``.
    changed
        Its new text.
    teacher
        What ``[teacher]`` should hold now, in TOML spelling; all else as before.
    by_hand
        What to do where the text could not be changed, for the error.
    former
        Where a copy of the file as it was goes; none is kept where None.

    Raises
    ------
    SettingsError
        If the new text means anything else; the file is unchanged then.
    """
    try:
        wanted = SiteSettings.model_validate(read_toml(path) | {TEACHER: dict(teacher)})
        found = SiteSettings.model_validate(toml_of(changed))
        if found.model_dump() != wanted.model_dump():
            raise ValueError("it would change more")
    except (SettingsError, ValueError) as error:
        raise SettingsError(f"{path}: {by_hand} ({error})") from None
    if former is not None:
        shutil.copy2(path, former)
    write_whole(path, changed.encode(), stat.S_IMODE(path.stat().st_mode))


def with_temperature(text: str, value: float) -> str:
    """Set ``temperature`` in the table ``[teacher]``."""
    line = f"temperature = {value:g}"
    header = re.search(r"^\[teacher\][ \t]*(#.*)?$", text, re.MULTILINE)
    if header is None:
        return f"{text.rstrip()}\n\n[teacher]\n{line}\n"
    end = re.compile(r"^\[", re.MULTILINE).search(text, header.end())
    table = text[header.end() : end.start() if end else len(text)]
    mended, count = re.subn(r"^temperature[ \t]*=[^#\n]*?(?=[ \t]*(#|$))", line, table, count=1, flags=re.MULTILINE)
    return text[: header.end()] + (mended if count else f"\n{line}{table}") + (text[end.start() :] if end else "")


def with_teacher(text: str, table: str) -> str:
    """Put another ``[teacher]`` table, its header included, in the place of the one there and of all tables below it."""
    kept: list[str] = []
    place: int | None = None
    between: list[
        str
    ] = []  # blank lines and comments at the end of a teacher's table may belong to the table that follows
    inside = False
    for line in text.splitlines():
        if header := _HEADER.match(line):
            was, inside = inside, header[1].split(".")[0].strip(" \"'") == TEACHER
            if was and not inside:
                kept += between
            if inside and place is None:
                place = len(kept)
        between = [*between, line] if inside and (not line.strip() or line.startswith("#")) else []
        if not inside:
            kept.append(line)
    if place is None:
        return f"{text.rstrip()}\n\n{table}"
    return "\n".join([*kept[:place], table.rstrip(), *kept[place:]]) + "\n"
