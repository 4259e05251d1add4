"""A folder of DICOM files: ultrasound pictures and loops, without masks.

Only the tags about the picture are read. What a case says of its patient is what the path says.
"""

from functools import partial
from pathlib import Path
from typing import Final

from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError
from consilium.common.images import count_frames, is_shown, natural, open_dicom

_MARK: Final = b"DICM"
_MARK_AT: Final = 128


def cases(folder: Path) -> list[Case]:
    """List every frame of every file, grouped by file.

    Parameters
    ----------
    folder
        Holds DICOM files, in sub-folders too, whatever their names end in. Files without a picture (reports, directories)
        are left out.

    Raises
    ------
    DataError
        If no picture is found, or a file is damaged.
    """
    files = [path for path in folder.rglob("*") if is_shown(path) and _is_dicom(path)]
    found: list[Case] = []
    for path in sorted(files, key=lambda path: natural(path.relative_to(folder).as_posix())):
        frames = count_frames(path)
        for frame in range(frames):
            source = str(path) if frames == 1 else f"{path}#{frame}"
            found.append(Case(source, partial(open_dicom, path, frame), group=str(path)))
    if not found:
        raise DataError(f"{folder}: expected DICOM files with pictures, found none; is it the right folder?")
    return found


def _is_dicom(path: Path) -> bool:
    """Whether the file says so itself: archives name DICOM files in many ways."""
    with path.open("rb") as file:
        file.seek(_MARK_AT)
        return file.read(len(_MARK)) == _MARK
