"""Faults of the coordinator's disk in words, whatever library ran into them."""

import errno
import re
from typing import Final

from consilium.common.errors import ConsiliumError, MachineError

_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_NUMPY_STOPPED: Final = re.compile(r"\d+ requested and \d+ written")
"""What numpy says of a full disk, without an error number."""
GO_ON: Final = "make room, then start the study again: it goes on where it was"


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
