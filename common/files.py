"""Files written whole: a reader, and a process killed now, sees a file as it was or as it is to be, never a part of it.

The content lies beside the file, under a name that no other process has, until it is on the disk: so a power cut leaves no
empty file, though it may leave the former one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends, that file takes the place of ``path``. On an error it goes."""
    with _beside(path) as partial:
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)


def write_whole(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file, or replace it; its mode is ``mode`` exactly, or that of any new file."""
    with _beside(path) as partial:
        _fill(partial, content, mode)
        partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, or replace it; see `write_whole`."""
    write_whole(path, text.encode())


def create_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a new file; `FileExistsError` if there is one, be it that another process made it just now."""
    with _beside(path) as partial:
        _fill(partial, content, mode)
        try:
            os.link(partial, path)  # unlike a rename it never overwrites
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the name is taken first, and for a moment it is empty
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            partial.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    partial = path.with_name(f"{path.name}.{token_hex(4)}.partial")
    try:
        yield partial
    finally:
        with suppress(OSError):  # renamed already, or the disk has a fault, which is being raised
            partial.unlink()


def _fill(partial: Path, content: bytes, mode: int | None) -> None:
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if mode is not None:
            os.fchmod(descriptor, mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(descriptor)
