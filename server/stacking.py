"""A stack in a study: fitted once, on the coordinator's labelled images, then applied wherever its sites answered.

Each label has a stack of its own, fitted over the sites that know it and answered every labelled image, on those of the images
that none of them abstained from. What was fitted is kept in the ledger before anything is fused with it: a coordinator that was
killed goes on with the same bytes.

A stack needs the mask of every site it was fitted on. Where one is missing, as the site abstains or is left out, the weighted
mean of those that answered stands in, behind the study's gate; the ledger records for which images. Only there do masks count
of a site that the stack was not fitted on. The gate decides about consensus as in every fusion; it leaves nothing out of a stack.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError, StudyError
from consilium.common.soft_mask import SoftMasks
from consilium.common.study import Study
from consilium.server.consensus import Again, Flags, Fused, Panel
from consilium.server.fusion import stack
from consilium.server.fusion.stack import Stack
from consilium.server.ledger import Ledger

STAGE: Final = "collect"
KEPT: Final = "stack"
"""The ledger's result that holds what was fitted."""

Stacks = tuple[Stack, ...]
"""One for each label, each of one label."""


@dataclass(frozen=True)
class Answer:
    """What one site said of n images.

    Attributes
    ----------
    masks
        uint8 (n, known labels, H, W).
    known
        Which labels they are of, by position.
    given
        bool (n,): from which images it does not abstain.
    """

    masks: SoftMasks
    known: tuple[int, ...]
    given: Flags

    def gives(self, label: int) -> Flags:
        """Of which images there is a mask of a label: bool (n,)."""
        return self.given & (label in self.known)

    def of(self, label: int) -> SoftMasks:
        """The masks of a label that it knows: uint8 (n, 1, H, W)."""
        return self.masks[:, [self.known.index(label)]]


Answers = Mapping[str, Answer]
"""By site."""


def answers_of(masks: Mapping[str, SoftMasks]) -> Answers:
    """Give masks at hand, by site uint8 (n, K, H, W), as answers of sites that know every label and abstain from nothing."""
    return {
        site: Answer(held, tuple(range(held.shape[1])), np.ones(len(held), np.bool_)) for site, held in masks.items()
    }


def fit(answers: Answers, truth: npt.NDArray[np.uint8], alpha: float, labels: Sequence[str]) -> Stacks:
    """Fit a stack for each label.

    Parameters
    ----------
    answers
        About n labelled images.
    truth
        uint8 (n, K, H, W), 0 or 1.
    alpha
        Target pixels at 384 x 384 from which on a site sees a target.
    labels
        Their names, for people.

    Raises
    ------
    StudyError
        If the images that all sites answered do not show a label, or show nothing else.
    """
    found = []
    for label, name in enumerate(labels):
        by = {site: one for site, one in answers.items() if label in one.known}
        images = np.flatnonzero(np.all([one.given for one in by.values()], axis=0))
        masks = {site: one.of(label)[images] for site, one in by.items()}
        try:
            found.append(stack.fit(masks, truth[images][:, [label]], alpha))
        except DataError as error:
            abstaining = sorted(site for site, one in by.items() if not one.given.all())
            raise StudyError(
                f"no stack can be fitted for {name} on the {len(images)} of {len(truth)} labelled images that "
                f"{', '.join(sorted(by))} all gave a mask of ({error}). Build a catalogue with other labelled images"
                + (f": {', '.join(abstaining)} abstained from some." if abstaining else ".")
            ) from None
    return tuple(found)


def applied(stacks: Stacks, mean: Fused, answers: Answers, least: npt.ArrayLike = 1) -> Fused:
    """Put a stack's masks in place of the mean's, where its sites all gave one.

    Parameters
    ----------
    stacks
        Of each label.
    mean
        What stands in where a site's mask is missing.
    answers
        What it was made of.
    least
        How many masks of each label, (K,), an image needs to have a pseudo mask at all.
    """
    masks, made = mean.masks.copy(), np.zeros(mean.masks.shape[:2], np.bool_)
    whole = np.asarray((mean.answered >= np.asarray(least)).all(axis=1))
    for label, one in enumerate(stacks):
        if not set(one.sites) <= set(answers):
            continue
        made[:, label] = whole & np.all([answers[site].gives(label) for site in one.sites], axis=0)
        images = np.flatnonzero(made[:, label])
        if len(images):
            masks[images, label] = stack.apply(one, {site: answers[site].of(label)[images] for site in one.sites})[:, 0]
    every = made.all(axis=1)
    silent = {site: held & ~every for site, held in mean.silent.items()}
    return replace(mean, masks=masks, silent=silent, by_mean=whole & ~every)


class Stacking:
    """The stack of one collection.

    Parameters
    ----------
    study, ledger
        Of the collection; what was fitted is kept there.
    truth
        The true masks of the labelled images, uint8 (n, K, H, W), which stand first in the catalogue; None once it is fitted.
    """

    def __init__(self, study: Study, ledger: Ledger, truth: npt.NDArray[np.uint8] | None) -> None:
        self._study: Final = study
        self._ledger: Final = ledger
        self._truth: Final = truth
        self._first: Final[dict[int, StackPanel]] = {}
        self.stacks = kept(ledger)

    @property
    def chunks(self) -> set[int]:
        """The chunks that must be answered before anything is fused; none once it is fitted."""
        if self.stacks is not None or self._truth is None:
            return set()
        return set(range(-(-len(self._truth) // self._study.collect.chunk)))

    def panel(self, number: int, mean: Panel) -> "StackPanel":
        """Give the panel of a chunk."""
        made = StackPanel(self, mean)
        if number in self.chunks:
            self._first[number] = made
        return made

    def sites(self) -> set[str]:
        """The sites that answered every labelled image."""
        return set.intersection(*(set(panel.answers) for panel in self._first.values()))

    def fit(self) -> None:
        """Fit it on the first chunks, keep it, and tell."""
        if self._truth is None:
            raise DataError("a stack is fitted on labelled images; their true masks were not given")
        panels = [self._first[number].answers for number in sorted(self._first)]
        answers = {site: _joined([held[site] for held in panels], len(self._truth)) for site in sorted(self.sites())}
        found = fit(answers, self._truth, self._study.exclusion.alpha, self._study.labels)
        with self._ledger.together():
            self._ledger.keep_result("", KEPT, json.dumps([one.to_card() for one in found]))
            for label, one in zip(self._study.labels, found, strict=True):
                told = f"the stack of {label} is fitted on {one.images} labelled images and the masks of {', '.join(one.sites)}"
                self._ledger.tell(STAGE, told)
            for site in sorted(set(self._study.sites) - set(answers)):
                self._ledger.tell(
                    STAGE,
                    "the stack is fitted without it: it did not answer every labelled image. Its masks count only where the "
                    "weighted mean stands in",
                    site,
                )
        self.stacks = found
        self._first.clear()


class StackPanel:
    """The answers to n images so far, each site's whole: what a `Panel` is to the other fusions.

    Parameters
    ----------
    stacking
        Whose stack is fitted before `finish`.
    mean
        The panel of the mean that stands in.
    """

    def __init__(self, stacking: Stacking, mean: Panel) -> None:
        self._stacking: Final = stacking
        self._mean: Final = mean
        self.answers: Final[dict[str, Answer]] = {}

    def fold(
        self,
        site: str,
        masks: SoftMasks,
        known: Sequence[int],
        answered: Flags | None = None,
        _again: Again | None = None,
    ) -> None:
        """Add one site's answer; parameters as of `Panel.fold`. The masks are kept, whatever can be asked for once more."""
        given = np.ones(len(masks), np.bool_) if answered is None else answered
        self.answers[site] = Answer(masks, tuple(known), given)

    def finish(self, least: npt.ArrayLike) -> Fused:
        """Make the pseudo masks; ``least`` as of `Panel.finish`."""
        if self._stacking.stacks is None:
            raise DataError("a stack is fitted before anything is fused with it; it is not yet")
        for site, one in self.answers.items():  # only now: sums take memory
            self._mean.fold(site, one.masks, one.known, one.given)
        return applied(self._stacking.stacks, self._mean.finish(least), self.answers, least)


def kept(ledger: Ledger) -> Stacks | None:
    """What was fitted, as the ledger has it; None before."""
    held = ledger.results(KEPT).get("")
    return tuple(map(Stack.from_card, json.loads(held))) if held else None


def facts(study: Study, ledger: Ledger) -> dict[str, Any] | None:
    """Tell for people and machines on what the stack was fitted, and where the mean stood in; None before, or without one."""
    found = kept(ledger)
    if found is None:
        return None
    of = zip(study.labels, found, strict=True)
    return {
        "labels": {label: {"images": one.images, "sites": list(one.sites)} for label, one in of},
        "by_mean": len(ledger.images_by_mean()),
    }


def _joined(parts: Sequence[Answer], count: int) -> Answer:
    """One site's answers, one behind the other: the first ``count`` images of them."""
    masks, given = (np.concatenate([getattr(one, name) for one in parts])[:count] for name in ("masks", "given"))
    return Answer(masks, parts[0].known, given)
