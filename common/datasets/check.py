"""Looking at a data set before anything is trained on it: what it holds, what is broken, what stands in it twice."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from consilium.common.datasets import near_duplicates
from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError
from consilium.common.parallel import in_order

LEAST_DICE: Final = 0.5
"""Masks of near duplicates that overlap less, both stretched to 64 x 64, contradict each other."""

Fault = Literal["", "unreadable", "mask"]
_BITS: Final = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}


@dataclass(frozen=True)
class Look:
    """What was seen of one case; with a fault, only ``source``, ``kind`` and ``group`` say something.

    Attributes
    ----------
    fault, why
        "unreadable": the image cannot be read; "mask": its mask cannot be, or has another size. And what exactly.
    height, width
        In pixels, upright.
    mode, bits
        As stored: Pillow's mode, or DICOM's photometric interpretation; bits a channel.
    share
        Part of the image that the mask covers, in [0, 1]; None where there is no mask.
    digest
        SHA-256 of size and pixels as RGB: equal for two files that show the same.
    thumbnail
        uint8 (64, 64), gray.
    target
        The mask, stretched to bool (64, 64); None where there is none.
    """

    source: str
    kind: str
    group: str
    fault: Fault = ""
    why: str = ""
    height: int = 0
    width: int = 0
    mode: str = ""
    bits: int = 0
    share: float | None = None
    digest: str = ""
    thumbnail: npt.NDArray[np.uint8] | None = None
    target: npt.NDArray[np.bool_] | None = None


def look_at(cases: Iterable[Case], *, workers: int = 0, on_case: Callable[[int], None] | None = None) -> list[Look]:
    """Look at every case; one that cannot be read stops nothing.

    Parameters
    ----------
    cases
        Of one data set.
    workers
        Threads that decode; 0 is one for each core.
    on_case
        Told how many were looked at.
    """
    looks: list[Look] = []
    for seen in in_order(_look, cases, workers):
        looks.append(seen)
        if on_case is not None:
            on_case(len(looks))
    return looks


def _look(case: Case) -> Look:
    try:
        picture = case.load_image()
    except DataError as error:
        return Look(case.source, case.kind, case.group, "unreadable", str(error))
    try:
        mask = case.load_mask() if case.load_mask is not None else None
    except DataError as error:
        return Look(case.source, case.kind, case.group, "mask", str(error))
    if mask is not None and mask.shape != (picture.height, picture.width):
        why = f"the image has {picture.width} x {picture.height} pixels, its mask {mask.shape[1]} x {mask.shape[0]}"
        return Look(case.source, case.kind, case.group, "mask", why)
    mode, bits = _stored(case.source, picture)
    shown = picture.convert("RGB")
    digest = hashlib.sha256(f"{shown.size}".encode() + shown.tobytes()).hexdigest()
    return Look(
        case.source,
        case.kind,
        case.group,
        height=picture.height,
        width=picture.width,
        mode=mode,
        bits=bits,
        share=float(mask.mean()) if mask is not None else None,
        digest=digest,
        thumbnail=near_duplicates.thumbnail(picture),
        target=_shrunk(mask) if mask is not None else None,
    )


def _stored(source: str, picture: Image.Image) -> tuple[str, int]:
    """Mode and bits a channel of the file itself: what a reader gives has 8 already. Only the head of the file is read."""
    file = Path(source) if Path(source).exists() else Path(source.rpartition("#")[0])
    mode = picture.mode
    try:
        if file.suffix.lower() == ".dcm":
            head = pydicom.dcmread(file, stop_before_pixels=True)
            return str(head.get("PhotometricInterpretation", "?")), int(head.get("BitsStored", 8))
        with Image.open(file) as stored:
            mode = stored.mode
    except (
        OSError,
        ValueError,
        SyntaxError,
    ):  # no file of its own, or none that Pillow opens: the reader's word counts
        pass
    return mode, _BITS.get(mode, 8)


def _shrunk(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    drawn = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    small = drawn.resize((near_duplicates.THUMBNAIL,) * 2, Image.Resampling.BOX)
    return np.asarray(np.asarray(small) > 127, np.bool_)


def near_duplicate_groups(looks: Sequence[Look]) -> list[str]:
    """Name the near-duplicate group of every case, as `near_duplicates.groups` does; one with a fault is alone."""
    return near_duplicates.components(_pairs(looks), len(looks))


def _pairs(looks: Sequence[Look]) -> npt.NDArray[np.int64]:
    """Near duplicates and exact ones, int64 (pairs, 2): positions, the smaller first."""
    whole = [i for i, seen in enumerate(looks) if seen.thumbnail is not None]
    if not whole:
        return np.empty((0, 2), np.int64)
    at = np.array(whole, np.int64)
    near = at[near_duplicates.pairs(np.stack([t for seen in looks if (t := seen.thumbnail) is not None]))]
    same = [(members[0], other) for members in _exact(looks) for other in members[1:]]
    return np.unique(np.concatenate([near, np.array(same, np.int64).reshape(-1, 2)]), axis=0)


def _exact(looks: Sequence[Look]) -> list[list[int]]:
    held: dict[str, list[int]] = {}
    for i, seen in enumerate(looks):
        if not seen.fault:
            held.setdefault(seen.digest, []).append(i)
    return [members for members in held.values() if len(members) > 1]


def contradiction(one: Look, other: Look) -> str:
    """Say how two near duplicates contradict each other; empty where they do not."""
    told = []
    if one.kind and other.kind and one.kind != other.kind:
        told.append(f"{one.kind} and {other.kind}")
    if one.target is not None and other.target is not None:
        if (one.share == 0) != (other.share == 0):
            told.append("one mask is empty")
        else:
            both, either = np.sum(one.target & other.target), np.sum(one.target) + np.sum(other.target)
            if either and 2 * both / either < LEAST_DICE:
                told.append(f"masks overlap with a Dice of {100 * 2 * both / either:.0f} %")
    return "; ".join(told)


def report(looks: Sequence[Look]) -> dict[str, Any]:
    """Gather what was seen, as plain values for ``check.json``.

    Parameters
    ----------
    looks
        Of all cases of a data set.

    Returns
    -------
    dict
        Counts of images, masks, kinds and groups; sizes in pixels; modes; the share of the image that masks cover, in [0, 1],
        over those that are not empty; every fault; duplicates. See ``docs/data-check.md``.
    """
    whole = [seen for seen in looks if not seen.fault]
    shares = np.array([seen.share for seen in whole if seen.share])
    linked = _pairs(looks)
    clashes = [(looks[i], looks[j], why) for i, j in linked if (why := contradiction(looks[i], looks[j]))]
    clashes.sort(key=lambda clash: clash[0].kind == clash[1].kind)  # those of two kinds first
    named = Counter(seen.group for seen in looks if seen.group)
    across = sum(bool(looks[i].group and looks[j].group and looks[i].group != looks[j].group) for i, j in linked)
    return {
        "schema": 1,
        **_counts(looks),
        "kinds": {kind: _counts([seen for seen in looks if seen.kind == kind]) for kind in _kinds(looks)},
        "groups": {
            "named": len(named),
            "largest": max(named.values(), default=0),
            "images_without": sum(not seen.group for seen in looks),
        },
        "height": _spread([seen.height for seen in whole]),
        "width": _spread([seen.width for seen in whole]),
        "sizes": len({(seen.height, seen.width) for seen in whole}),
        "modes": dict(Counter(f"{seen.mode}, {seen.bits} bit" for seen in whole).most_common()),
        "foreground": {
            "mean": float(shares.mean()),
            **dict(zip(("q1", "median", "q3"), np.quantile(shares, (0.25, 0.5, 0.75)).tolist(), strict=True)),
        }
        if len(shares)
        else None,
        "unreadable": [{"source": seen.source, "why": seen.why} for seen in looks if seen.fault == "unreadable"],
        "mask_faults": [{"source": seen.source, "why": seen.why} for seen in looks if seen.fault == "mask"],
        "exact_duplicates": [[looks[i].source for i in members] for members in _exact(looks)],
        "near_duplicates": {
            "pairs": len(linked),
            "across_groups": across,
            "groups": _duplicate_groups(looks, linked),
        },
        "contradictions": [{"sources": [one.source, other.source], "why": why} for one, other, why in clashes],
    }


def _kinds(looks: Sequence[Look]) -> list[str]:
    return list(dict.fromkeys(seen.kind for seen in looks if seen.kind))


def _counts(looks: Sequence[Look]) -> dict[str, int]:
    return {
        "images": len(looks),
        "with_mask": sum(seen.share is not None for seen in looks),
        "empty_mask": sum(seen.share == 0 for seen in looks),
        "without_mask": sum(seen.share is None and not seen.fault for seen in looks),
        "faults": sum(bool(seen.fault) for seen in looks),
    }


def _spread(numbers: Sequence[int]) -> dict[str, int] | None:
    if not numbers:
        return None
    return {"min": min(numbers), "median": round(float(np.median(numbers))), "max": max(numbers)}


def _duplicate_groups(looks: Sequence[Look], linked: npt.NDArray[np.int64]) -> list[list[str]]:
    held: dict[str, list[str]] = {}
    for seen, name in zip(looks, near_duplicates.components(linked, len(looks)), strict=True):
        held.setdefault(name, []).append(seen.source)
    return [members for members in held.values() if len(members) > 1]
