"""What was measured on the pseudo masks and decided, as ``selection.csv`` recorded it."""

import csv
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.catalogue import Catalogue
from consilium.common.errors import StateError
from consilium.server.exclusion import Reason
from consilium.server.run_folder import RunFolder


@dataclass(frozen=True)
class Selection:
    """Of the n transferal images.

    Attributes
    ----------
    indices
        Positions in the catalogue, int64 (n,).
    target_pixels, entropy_bits
        int64 (n,) and float64 (n,).
    reasons
        Why each was left out, by position in the catalogue; `Reason.KEPT` where it was not.
    by_paper
        The same by the paper's rule.
    """

    indices: npt.NDArray[np.int64]
    target_pixels: npt.NDArray[np.int64]
    entropy_bits: npt.NDArray[np.float64]
    reasons: dict[int, Reason]
    by_paper: dict[int, Reason]

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Whether each is kept, bool (n,)."""
        return np.array([self.reasons[int(i)] == Reason.KEPT for i in self.indices], bool)


def read_selection(folder: RunFolder) -> Selection | None:
    """Read the record; None before images were selected, `StateError` if it is damaged."""
    if not folder.selection.is_file():
        return None
    try:
        with folder.selection.open(newline="", encoding="utf-8") as table:
            rows = [row for row in csv.DictReader(table) if row["role"] == "transferal"]
        return Selection(
            np.array([int(row["index"]) for row in rows], np.int64),
            np.array([int(row["target_pixels"]) for row in rows], np.int64),
            np.array([float(row["entropy_bits"]) for row in rows], np.float64),
            {int(row["index"]): Reason(row["reason"]) for row in rows},
            {int(row["index"]): Reason(row["paper_reason"]) for row in rows},
        )
    except (KeyError, ValueError, TypeError) as error:
        raise StateError(f"{folder.selection} is damaged ({error}); restore it, or select again") from None


def by_collection(catalogue: Catalogue, selection: Selection | None) -> dict[str, dict[str, Any]]:
    """Tell of each transferal set how many images are listed, kept, and left out by reason, as in ``metrics.json``.

    Parameters
    ----------
    catalogue
        Lists the images. One that came with two sets counts for the first; a test image for none.
    selection
        Of its images; None before they were selected.

    Returns
    -------
    dict
        By name, in the order of the list: ``catalogue``, ``kept`` (None before) and ``excluded``. The images of sets without a
        name stand under the empty one; without any name there is nothing to tell apart, and the dict is empty.
    """
    reasons = selection.reasons if selection else {}
    kept, excluded = Counter[str](), dict[str, Counter[str]]()
    for i, entry in enumerate(catalogue.manifest.images):
        if reason := reasons.get(i):
            excluded.setdefault(entry.collection, Counter())[reason.value] += 1
        elif i in reasons:
            kept[entry.collection] += 1
    return {
        name: {
            "catalogue": count,
            "kept": kept[name] if selection else None,
            "excluded": dict(sorted(excluded.get(name, {}).items())),
        }
        for name, count in catalogue.collections.items()
    }
