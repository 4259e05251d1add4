"""What the readers of data sets share: looking at a folder, and saying what is not as it was published."""

import csv
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from consilium.common.errors import DataError
from consilium.common.images import is_shown, natural


def folders_of(folder: Path, what: str, *names: str) -> list[Path]:
    """Give the sub-folders a data set is published with.

    Parameters
    ----------
    folder
        As unpacked.
    what
        The data set's name, for the message.
    names
        Of the sub-folders.

    Raises
    ------
    DataError
        Naming the missing ones, and what is there instead.
    """
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder}: {what} has the folders {' and '.join(names)}; {' and '.join(missing)} missing (found: {found(folder)})"
        )
    return [folder / name for name in names]


def root_of(folder: Path, mark: str, *inside: str) -> Path:
    """Give the folder that holds ``mark``: this one, or one of those in it that the archive unpacks to."""
    return next((folder / name for name in ("", *inside) if (folder / name / mark).exists()), folder)


def files_of(folder: Path, what: str, pattern: str) -> list[Path]:
    """List the files of a data set that fit a pattern, in natural order.

    Raises
    ------
    DataError
        If there are none, with the pattern and what is there instead.
    """
    files = [path for path in folder.glob(pattern) if is_shown(path)]
    if not files:
        raise DataError(f"{folder}: expected {pattern}, as {what} is published; found {found(folder)}")
    return sorted(files, key=lambda path: natural(path.relative_to(folder).as_posix()))


def refuse_missing(folder: Path, rule: str, missing: Sequence[str], of: int) -> None:
    """Raise a `DataError` with the rule, unless nothing is missing of so many."""
    if missing:
        raise DataError(f"{folder}: {rule}; {len(missing)} of {of} have none: {shown(missing)}")


def found(folder: Path) -> str:
    """Name a few of a folder's entries, for a message."""
    return shown(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"


def shown(names: Iterable[str], most: int = 5) -> str:
    """Put the first few names into a message."""
    first = list(islice(names, most + 1))
    return ", ".join(first[:most]) + (", ..." if len(first) > most else "") or "nothing"


def rows_of(table: Path, *columns: str) -> list[dict[str, str]]:
    """Read a CSV that has these columns.

    Raises
    ------
    DataError
        If it cannot be read as text, or a column is missing.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{table}: expected columns {', '.join(columns)}; {' and '.join(missing)} missing "
                    f"(found: {shown(reader.fieldnames or ())})"
                )
            return [{name: text or "" for name, text in row.items() if isinstance(name, str)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table ({error})") from None
