"""The stage ``test``: teachers, ensemble and student on the coordinator's own test images."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.evaluation.folders import Truths
from consilium.common.evaluation.rows import to_csv
from consilium.common.files import write_text
from consilium.common.metrics import dice, score
from consilium.common.soft_mask import SoftMasks
from consilium.server import pooled_evaluation
from consilium.server.collect import Watched
from consilium.server.participants import Participants
from consilium.server.pooled_evaluation import Scored
from consilium.server.run_folder import MaskFile, RunFolder
from consilium.server.stage_book import StageBook

STAGE: Final = "test"


@dataclass
class PooledTest:
    """One test; call `run`.

    Parameters
    ----------
    indices, truth
        Positions in the catalogue of the n test images, and their ground truth uint8 (n, K, H, W), 0 or 1.
    watched, pseudo_masks
        The sites' masks, and the fused ones.
    student_masks
        Gives the student's soft masks of images by position.
    """

    folder: RunFolder
    participants: Participants
    stages: StageBook
    indices: npt.NDArray[np.int64]
    truth: npt.NDArray[np.uint8]
    watched: Watched
    pseudo_masks: MaskFile
    student_masks: Callable[[npt.NDArray[np.int64]], SoftMasks]
    _scored: list[Scored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.study, self.ledger = self.participants.study, self.participants.ledger

    def run(self, native: Truths | None) -> None:
        """Score each one on all test images that have a pseudo mask, and evaluate them.

        Parameters
        ----------
        native
            True masks at the images' own sizes, by name: then all are evaluated there, too.
        """
        fused = ~np.isin(self.indices, list(self.ledger.images_without_mask()))
        if not fused.all():
            told = f"{np.count_nonzero(~fused)} test images are not scored: too few sites gave a mask"
            self.ledger.tell(STAGE, told)
            self.indices, self.truth = self.indices[fused], self.truth[fused]
        if not len(self.indices):
            return
        self._score_teachers()
        everything = tuple(range(len(self.study.labels)))
        self._score("ensemble", Scored("ensemble", "ensemble", self.pseudo_masks.read()[self.indices], everything))
        self._score("student", Scored("student", "student", self.student_masks(self.indices), everything))
        self._evaluate(native)

    def _score_teachers(self) -> None:
        place = np.searchsorted(self.watched.indices, self.indices)
        chunks = {int(i) // self.study.collect.chunk for i in self.indices}
        tested = set(self.indices.tolist())
        for site in self.ledger.answers():
            if not chunks <= self.ledger.answered_chunks(site) or self.ledger.abstentions(site) & tested:
                self.ledger.tell(STAGE, "not scored: it did not answer every test image", site)
                continue
            masks, known = self.watched.of(site)[place], self.participants.known_labels(site)
            self._score("pooled", Scored("teacher", site, masks, known), site)

    def _score(self, kind: str, one: Scored, site: str = "") -> None:
        """Keep the Dice of one, over the labels that it knows."""
        self._scored.append(one)
        truth, known = self.truth, one.known
        if len(self.study.labels) > 1:
            each = {self.study.labels[k]: score(dice(one.masks[:, [k]], truth[:, [k]])).model_dump() for k in known}
            self.ledger.keep_result(site, f"test.{kind}.labels", json.dumps(each))
        values = dice(one.masks[:, known], truth[:, known])
        self.ledger.keep_result(site, f"test.{kind}", score(values).model_dump_json())
        self.ledger.keep_result(site, f"test.{kind}.values", json.dumps(values.round(6).tolist()))

    def _evaluate(self, native: Truths | None) -> None:
        """Measure beyond Dice; the table goes to disk, the summary to disk and ledger."""
        ids = [self.participants.catalogue.manifest.images[i].id for i in self.indices]
        evaluated = pooled_evaluation.evaluate(
            pooled_evaluation.samples(self.folder, ids),
            self.study.labels,
            self.truth > 0,
            self._scored,
            pooled_evaluation.native_truths(self.folder, ids, native) if native is not None else None,
            on_part=lambda done, total: self.stages.tell(STAGE, done, total),
        )
        summary = evaluated.summary(np.random.default_rng(self.study.seed))
        self.ledger.keep_result("", "test.evaluation", json.dumps(summary))
        write_text(self.folder.evaluation_rows, to_csv(evaluated.parts))
        write_text(self.folder.evaluation, json.dumps(summary, indent=2) + "\n")
