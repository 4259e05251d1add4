"""The coordinator's disk: files written whole, and its faults in words, whatever library ran into them."""

import errno
import os
import re
from pathlib import Path
from secrets import token_hex
from typing import Final

from consilium.common.errors import ConsiliumError, MachineError

_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_NUMPY_STOPPED: Final = re.compile(r"\d+ requested and \d+ written")
"""What numpy says of a full disk, without an error number."""
GO_ON: Final = "make room, then start the study again: it goes on where it was"


def write_text(path: Path, text: str) -> None:
    """Write a file whole, at once: a reader, and a process killed now, sees the old text or the new."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def replace_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in one step: a reader sees the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def in_words(error: Exception) -> ConsiliumError | None:
    """Give what to tell the user of an error; None if it is neither one of ours nor of the disk.

    A library may raise an error of its own on top of the disk's: the chain is looked through.
    """
    if isinstance(error, ConsiliumError):
        return error
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FAULTS:
            where = f"{link.filename}: " if link.filename else ""
            return MachineError(f"{where}the disk could not be written ({link.strerror}); {GO_ON}")
        if isinstance(link, OSError) and _NUMPY_STOPPED.fullmatch(str(link)):
            return MachineError(f"a file could not be written whole, the disk is full ({link}); {GO_ON}")
        link = link.__cause__ or link.__context__
    return None
