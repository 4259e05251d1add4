"""Reading the cases of a data set: decoded side by side, given in order, the same whatever the number of threads."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from consilium.common.datasets import near_duplicates
from consilium.common.datasets.cases import Case
from consilium.common.datasets.labelled import Labelled
from consilium.common.datasets.layout import rows_of
from consilium.common.errors import DataError
from consilium.common.images import canonical, canonical_mask, check_size

Pixels = npt.NDArray[np.uint8]
_AHEAD: Final = 4  # cases a thread may be ahead of the one that is asked for: enough to keep all threads busy
_Result = TypeVar("_Result")


def read(
    cases: Sequence[Case],
    size: int,
    channels: int,
    *,
    workers: int = 0,
    on_case: Callable[[int], None] | None = None,
) -> Labelled:
    """Read cases with their masks, in canonical form.

    Parameters
    ----------
    cases
        Each with a mask.
    size, channels
        Height and width in pixels; 1 (gray) or 3 (RGB).
    workers
        Threads that decode; 0 is one for each core. The result is the same.
    on_case
        Told, in the caller's thread, how many cases are read so far.

    Raises
    ------
    DataError
        If there are no cases, one has no mask, cannot be read, or has a mask of another size.
    """
    if not cases:
        raise DataError("expected at least one case to read, got none")
    bare = [case.source for case in cases if case.load_mask is None]
    if bare:
        raise DataError(
            f"every case to learn from or to test on needs a mask; {len(bare)} of {len(cases)} have none, first {bare[0]}. "
            "Take them out, or use them as transferal images."
        )
    images = np.empty((len(cases), channels, size, size), np.uint8)
    masks = np.empty((len(cases), 1, size, size), np.uint8)
    pairs = _in_order(lambda case: _pair(case, size, channels), cases, workers)
    for i, (image, mask) in enumerate(pairs):
        images[i], masks[i] = image, mask
        if on_case is not None:
            on_case(i + 1)
    return Labelled(images, masks, tuple(case.source for case in cases), tuple(case.group for case in cases))


def read_images(cases: Sequence[Case], size: int, channels: int, *, workers: int = 0) -> Iterator[tuple[Case, Pixels]]:
    """Read the pictures of cases in canonical form, in order; masks are not looked at.

    Parameters
    ----------
    cases, size, channels, workers
        As for `read`. Only a few cases a thread are decoded ahead, so memory does not grow with their number.

    Yields
    ------
    The case, and uint8 (channels, size, size).

    Raises
    ------
    DataError
        If a picture cannot be read.
    """
    pictures = _in_order(lambda case: canonical(case.load_image(), size, channels), cases, workers)
    yield from zip(cases, pictures, strict=True)


def read_grouped(
    cases: Sequence[Case],
    size: int,
    channels: int,
    group_table: Path | None = None,
    *,
    workers: int = 0,
    on_case: Callable[[int], None] | None = None,
) -> Labelled:
    """Read cases as `read` does, and see to it that they have groups.

    Parameters
    ----------
    group_table
        A CSV with the columns ``path``, whose last two parts are those of a case's source, and ``near_dup_group``. Where
        None, the data set's own groups hold; where it has none, near duplicates are grouped.

    Raises
    ------
    DataError
        As `read`; or if the table lacks a column, or a case.
    """
    if group_table is not None:
        cases = _from_table(cases, group_table)
    data = read(cases, size, channels, workers=workers, on_case=on_case)
    if any(data.groups):
        return data
    return replace(data, groups=tuple(near_duplicates.groups(data.images)))


def _from_table(cases: Sequence[Case], table: Path) -> list[Case]:
    rows = rows_of(table, "path", "near_dup_group")
    known = {Path(row["path"]).parts[-2:]: row["near_dup_group"] for row in rows}
    unknown = [case.source for case in cases if Path(case.source).parts[-2:] not in known]
    if unknown:
        raise DataError(f"{table}: names no group for {len(unknown)} images, first {unknown[0]}")
    return [replace(case, group=known[Path(case.source).parts[-2:]]) for case in cases]


def _pair(case: Case, size: int, channels: int) -> tuple[Pixels, Pixels]:
    if case.load_mask is None:
        raise DataError(f"{case.source}: has no mask")
    picture, target = case.load_image(), case.load_mask()
    check_size(target, picture, case.source)
    return canonical(picture, size, channels), canonical_mask(target, size)


def _in_order(work: Callable[[Case], _Result], cases: Sequence[Case], workers: int) -> Iterator[_Result]:
    """Do the work of every case in threads; Pillow and pydicom let go of the interpreter while they decode."""
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(work, cases)
        return
    with ThreadPoolExecutor(workers, "read") as pool:
        waiting: deque[Future[_Result]] = deque()
        rest = iter(cases)
        try:
            waiting.extend(pool.submit(work, case) for case in islice(rest, _AHEAD * workers))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(work, case) for case in islice(rest, 1))
                yield done
        finally:  # whoever stops early, or at an error, does not wait for the rest
            pool.shutdown(cancel_futures=True)
