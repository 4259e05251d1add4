"""A lock file: who holds it is alone, and gives it back by ending, however that comes."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consilium.common.errors import StateError


@contextmanager
def alone(lock: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, made if need be; `StateError` with the words ``taken`` if another process holds it."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(taken) from None
        yield
