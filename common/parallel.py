"""Work on many things side by side, and take the results in the things' own order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

AHEAD: Final = 4
"""Results a worker may have waiting to be taken: memory is bounded, and one slow image does not stop the others."""


def in_order(work: Callable[[Thing], Result], things: Iterable[Thing], workers: int = 0) -> Iterator[Result]:
    """Do ``work`` on every thing in several threads; as `map`, whatever the number of workers.

    Threads, not processes: decoding, resizing and hashing an image let other threads run meanwhile, and nothing has to be
    copied between processes.

    Parameters
    ----------
    work
        Called from several threads at a time.
    things
        Taken one at a time, no more than a few ahead of the results.
    workers
        How many threads; 0 is one for each core.

    Raises
    ------
    Exception
        What ``work`` raised, when its result's turn comes; what was not begun yet is not begun.
    """
    workers = workers or os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, "consilium-worker")
    try:
        for thing in things:
            waiting.append(pool.submit(work, thing))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
