"""Evaluation of a study's teachers, ensemble and student on the coordinator's pooled test images."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.datasets import labelled
from consilium.common.errors import DataError, SettingsError
from consilium.common.evaluation.folders import Truths, name_of
from consilium.common.evaluation.rows import Kind, Part, Sample, measure_all
from consilium.common.evaluation.summary import summarise
from consilium.common.soft_mask import SoftMasks
from consilium.server.run_folder import RunFolder


@dataclass(frozen=True)
class Scored:
    """One whose soft masks of the test images, uint8 (n, K, H, W), are evaluated.

    ``known`` holds the positions of the labels that it knows; the masks of others are not its own.
    """

    kind: Kind
    name: str
    masks: SoftMasks
    known: tuple[int, ...]


@dataclass(frozen=True)
class NativeTruths:
    """True masks at own size of the test images that have one, by position; ``unmatched`` names those that have none."""

    masks: Mapping[int, Callable[[], npt.NDArray[np.bool_]]]
    unmatched: tuple[str, ...]


@dataclass
class Evaluated:
    """The parts that were measured, and which images were not measured at their own size."""

    parts: list[Part] = field(default_factory=list)
    unmatched: tuple[str, ...] = ()

    def summary(self, rng: np.random.Generator) -> dict[str, Any]:
        """Sum it up; see `consilium.common.evaluation.summary`."""
        return summarise(self.parts, rng) | {"unmatched": {"predictions": list(self.unmatched), "truth": []}}


def evaluate(
    samples: Sequence[Sample],
    labels: Sequence[str],
    truth: npt.NDArray[np.bool_],
    scored: Sequence[Scored],
    native: NativeTruths | None,
    on_part: Callable[[int, int], None],
) -> Evaluated:
    """Measure every mask of every one that is scored, at the study's size and, where the truth is there, at the images' own.

    Parameters
    ----------
    samples, truth
        The n test images, and their true masks bool (n, K, H, W).
    labels
        Of the K channels.
    scored
        Whose masks.
    native
        True masks at own size; None: only the study's size.
    on_part
        Is told how many of the parts are measured.
    """
    if native is not None and len(labels) > 1:
        raise SettingsError(
            f"true masks of a folder have one label; this study has {len(labels)} ({', '.join(labels)}). Evaluate it "
            "without them."
        )
    found, total = Evaluated(unmatched=native.unmatched if native else ()), len(scored) * (2 if native else 1)
    for one in scored:
        canonical, known = Part(one.kind, one.name, "canonical"), list(one.known)
        pairs = zip(samples, one.masks[:, known], truth[:, known], strict=True)
        found.parts.append(measure_all(canonical, [labels[k] for k in known], pairs))
        on_part(len(found.parts), total)
    if native is not None:
        for one in scored:
            loaded = ((samples[i], one.masks[i], load()[None]) for i, load in native.masks.items())
            found.parts.append(measure_all(Part(one.kind, one.name, "native"), labels, loaded))
            on_part(len(found.parts), total)
    return found


def native_truths(run: RunFolder, ids: Sequence[str], truths: Truths) -> NativeTruths:
    """Find the true masks of test images by the file names they were read from.

    Raises
    ------
    DataError
        If no test image has one, or two test images were read from files of one name.
    """
    try:
        with (run.catalogue / "sources.csv").open(newline="", encoding="utf-8") as table:
            sources = {row["id"]: row["source"] for row in csv.DictReader(table)}
    except (OSError, KeyError) as error:
        raise DataError(
            f"{run.catalogue / 'sources.csv'} says which file each test image came from, and cannot be read ({error}); "
            "without it true masks cannot be matched"
        ) from None
    names = [name_of(sources.get(one, "")) for one in ids]
    known = [name for name in names if name in truths]
    repeated = sorted({name for name in known if known.count(name) > 1})
    if repeated:
        raise DataError(
            f"true masks are matched by file name, and more than one test image is called {', '.join(repeated[:5])}; "
            "they cannot be told apart"
        )
    if not known:
        raise DataError(
            f"none of the {len(names)} test images ({', '.join(names[:3])}, ...) has a true mask of its name among the "
            f"{len(truths)} given ({', '.join(list(truths)[:3])}, ...)"
        )
    return NativeTruths(
        {i: truths[name] for i, name in enumerate(names) if name in truths},
        tuple(name for name in names if name not in truths),
    )


def samples(run: RunFolder, ids: Sequence[str]) -> list[Sample]:
    """What is known of test images: group, and the site each is of where `write_test_sites` told."""
    held = labelled.open_packed(run.test_set)
    groups = dict(zip(held.sources, held.groups, strict=True))
    sites: dict[str, str] = {}
    if run.test_sites.is_file():
        with run.test_sites.open(newline="", encoding="utf-8") as table:
            sites = {row["id"]: row["site"] for row in csv.DictReader(table)}
    return [Sample(one, sites.get(one, ""), groups[one]) for one in ids]


def write_test_sites(run: RunFolder, sites: Mapping[str, str]) -> None:
    """Tell which site each pooled test image, by its id, is of."""
    with run.test_sites.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table, lineterminator="\n").writerows([("id", "site"), *sites.items()])
