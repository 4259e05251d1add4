"""A study, stage by stage: describe, collect, select, distill, evaluate, fine-tune, report.

Each stage leaves facts on disk and in the ledger; a stage that is finished is not done again. Stages know the post that
carries messages, not what it is made of.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common import soft_mask, wire
from consilium.common.catalogue import Catalogue
from consilium.common.datasets import labelled
from consilium.common.errors import StudyError, WireError
from consilium.common.evaluation.folders import Truths
from consilium.common.files import write_text
from consilium.common.soft_mask import SoftMasks
from consilium.common.study import Study
from consilium.common.wire import Score
from consilium.server import agreement, labelled_set
from consilium.server.collect import Collector, Watched
from consilium.server.inquiry import Inquiry, Post
from consilium.server.introduction import Introduction
from consilium.server.ledger import Ledger
from consilium.server.participants import Participants
from consilium.server.pooled_test import PooledTest
from consilium.server.run_folder import MaskFile, RunFolder
from consilium.server.seals import Seals
from consilium.server.selection import Selector, agreement_of
from consilium.server.stacking import Stacking, kept
from consilium.server.stage_book import StageBook

EXAMPLES: Final = 12
"""Transferal images whose masks are kept site by site, for the report's gallery."""


@dataclass
class StudyRun:
    """A study in its run folder.

    Parameters
    ----------
    folder, study, catalogue, ledger
        Where, what, on which images, and what is done already.
    """

    folder: RunFolder
    study: Study
    catalogue: Catalogue
    ledger: Ledger

    def __post_init__(self) -> None:
        self.ledger.bind(study=self.study.digest, catalogue=self.catalogue.hash)
        shape = self.study.mask_shape
        examples = self.catalogue.indices("transferal")
        if len(examples) > EXAMPLES:
            examples = examples[np.linspace(0, len(examples) - 1, EXAMPLES).astype(np.int64)]
        watched = np.union1d(examples, self.catalogue.indices("test")).astype(np.int64)
        collected = bool(self.ledger.finished_chunks())
        self.pseudo_masks = MaskFile(self.folder.pseudo_masks, len(self.catalogue), shape, holds_masks=collected)
        rows = len(self.study.sites) * len(watched)
        site_masks = MaskFile(self.folder.site_masks, rows, shape, holds_masks=collected)
        self.watched = Watched(watched, self.study.sites, site_masks)
        self.envelope = {"study": self.study.digest, "catalogue": self.catalogue.hash}
        self.seals = Seals(self.folder, self.catalogue.hash)
        self.stages = StageBook(self.ledger)

    @property
    def participants(self) -> Participants:
        """The sites, as the ledger has them."""
        return Participants(self.study, self.catalogue, self.ledger, self.seals)

    @property
    def selector(self) -> Selector:
        """What decides which images the student trains on."""
        return Selector(self.study, self.catalogue, self.ledger, self.pseudo_masks)

    # --- stages that ask the sites

    def describe(self, post: Post) -> dict[str, list[bool]]:
        """Show the study to every site; gives, per site that takes part, which images it lacks."""
        self._stacking()  # what cannot be done later is refused before anybody is asked
        self._require_start()
        with self.stages.stage("describe"):
            return Introduction(self.participants, post, self.stages).run()

    def collect(self, post: Post, missing: Mapping[str, list[bool]]) -> None:
        """Collect and fuse soft masks of all images."""
        if self.stages.finished("collect"):
            return
        sites = self.participants
        with self.stages.stage("collect"):
            Collector(
                study=self.study,
                catalogue=self.catalogue,
                ledger=self.ledger,
                post=post,
                pseudo_masks=self.pseudo_masks,
                watched=self.watched,
                missing=missing,
                known={site: sites.known_labels(site) for site in missing},
                validation=sites.validation(pin=True),
                envelope=self.envelope,
                unseal=self.seals.open,
                stacking=self._stacking(),
                on_chunk=lambda done, total: self.stages.tell("collect", done, total),
                on_look=self.stages.watch("collect", sites.online()),
            ).run()
            self._name_who_stands_apart()
            self._tell_where_the_mean_stood_in()

    def evaluate(self, post: Post) -> None:
        """Let every site evaluate the student on its own labelled images, beside its teacher; export it meanwhile."""
        self._visit(post, "evaluate", wire.EvaluateRequest, wire.EvaluateReply, self.study.online, self.export)

    def fine_tune(self, post: Post) -> None:
        """Let sites fine-tune the student on their own labelled images; the result stays there."""
        if self.study.tuning:
            self._visit(post, "fine-tune", wire.FineTuneRequest, wire.FineTuneReply, self.study.tuning)

    # --- stages that need no site

    def select(self) -> npt.NDArray[np.int64]:
        """Decide which transferal images the student trains on; gives their positions.

        Raises
        ------
        StudyError
            If every image is excluded, saying which threshold did it, with the histogram of what was measured.
        """
        selector = self.selector
        found, reasons = selector.decide()
        kept = np.array([i for i in self.catalogue.indices("transferal") if not reasons[i]], np.int64)
        if self.stages.finished("select"):
            return kept
        with self.stages.stage("select"):
            write_text(self.folder.selection, selector.table(found, reasons))
            if not len(kept):
                raise StudyError(selector.why_nothing(found, reasons))
        return kept

    def distill(self, kept: npt.NDArray[np.int64]) -> None:
        """Train the student, and save it as safetensors with its card."""
        from consilium.common.networks import student_files
        from consilium.server.distill import card_of, distill

        if self.stages.finished("distill"):
            return
        with self.stages.stage("distill"):
            training = self.study.student.training.on(len(self.catalogue.indices("transferal")))  # before exclusion
            student, history = distill(
                self.catalogue.pixels,
                self.pseudo_masks.read(),
                self.study.student.model_copy(update={"training": training}),
                seed=self.study.seed,
                kept=kept,
                agreement=agreement_of(self.ledger, len(self.catalogue)),
                folder=self.folder.student / "checkpoints",
                on_step=self.stages.training("distill"),
            )
            size, channels = self.study.image.size, self.study.image.channels
            card = (
                card_of(student, self.study.student, size, channels, self.study.labels)
                | self._start()
                | {
                    "study": self.study.digest,
                    "catalogue": self.catalogue.hash,
                    "sites": sorted(self.ledger.answers()),
                    "images": len(kept),
                    "settings": self.study.model_dump(mode="json", by_alias=True),
                    "versions": wire.versions(),
                }
            )
            student_files.save_student(self.folder.student, student, card)
            self.ledger.keep_result("", "history", json.dumps(history.curve))
            self.ledger.keep_result("", "parameters", str(card["parameters"]))

    def export(self) -> None:
        """Save the student as ONNX too, for those who run it without torch, unless the study does without."""
        from consilium.common.networks import student_files

        if not self.study.student.onnx or self.stages.finished("export"):
            return
        with self.stages.stage("export"):
            student, _ = student_files.load_student(self.folder.student)
            size, channels = self.study.image.size, self.study.image.channels
            student_files.export_onnx(student, self.folder.student / "student.onnx", channels, size)

    def test(self, native: Truths | None = None) -> None:
        """Score teachers, ensemble and student on the coordinator's own test images, where it has any.

        Parameters
        ----------
        native
            True masks at the images' own sizes, by name: then all are evaluated there, too.
        """
        if self.stages.finished("test") or not labelled.is_packed(self.folder.test_set):
            return
        with self.stages.stage("test"):
            indices, truth = self.test_images()
            PooledTest(
                folder=self.folder,
                participants=self.participants,
                stages=self.stages,
                indices=indices,
                truth=truth,
                watched=self.watched,
                pseudo_masks=self.pseudo_masks,
                student_masks=self.student_masks,
            ).run(native)

    # --- what stages left

    def pooled(self, kind: str, site: str = "") -> Score | None:
        """A score on the pooled test images, if it was measured."""
        held = self.ledger.results(f"test.{kind}").get(site)
        return Score.model_validate_json(held) if held else None

    def pooled_by_label(self, kind: str, site: str = "") -> dict[str, Any] | None:
        """The same label by label, of a study with several labels, those that were measured."""
        held = self.ledger.results(f"test.{kind}.labels").get(site)
        return json.loads(held) if held else None

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation's summary, if the test images were evaluated."""
        held = self.ledger.results("test.evaluation").get("")
        return json.loads(held) if held else None

    def test_images(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Positions in the catalogue of the test images, and their ground truth uint8 (n, K, H, W), 0 or 1."""
        held = labelled.open_packed(self.folder.test_set)
        truth = dict(zip(held.sources, held.masks, strict=True))  # sources of the test set are image ids
        indices = np.array(
            [i for i in self.catalogue.indices("test") if self.catalogue.manifest.images[i].id in truth], np.int64
        )
        return indices, np.stack([truth[self.catalogue.manifest.images[i].id] for i in indices])

    def student_masks(self, indices: npt.NDArray[np.int64]) -> SoftMasks:
        """The student's soft masks of images of the catalogue: uint8 (n, K, H, W)."""
        from consilium.common.networks import student_files
        from consilium.common.training.predict import predict

        student, _ = student_files.load_student(self.folder.student)
        return soft_mask.quantise(
            predict(student, self.catalogue.pixels[indices], device=self.study.student.training.device)
        )

    # --- inside

    def _require_start(self) -> None:
        """Refuse a student that cannot begin with the weights it names."""
        network = self.study.student.network
        if network.weights != "none" and not self.stages.finished("distill"):
            from consilium.common.networks.build import build

            build(network, self.study.image.channels, len(self.study.labels), self.study.seed)

    def _start(self) -> dict[str, str]:
        """What the student began with, for its card; nothing where it began with random weights."""
        from consilium.common.networks.weights import digest_of_file

        weights = self.study.student.network.weights
        return {} if weights == "none" else {"weights-sha256": digest_of_file(Path(weights))}

    def _stacking(self) -> Stacking | None:
        """What fits the stack and applies it, where the study's fusion is one; once it is fitted, no truth is needed."""
        if self.study.fusion.method != "stack":
            return None
        fitted = kept(self.ledger) is not None
        truth = None if fitted else labelled_set.true_masks(self.folder, self.study, self.catalogue)
        return Stacking(self.study, self.ledger, truth)

    def _tell_where_the_mean_stood_in(self) -> None:
        if images := len(self.ledger.images_by_mean()):
            self.ledger.tell(
                "collect",
                f"of {images} images a site that the stack was fitted on gave no mask: their pseudo masks are the weighted mean "
                "of those that did",
            )

    def _name_who_stands_apart(self) -> None:
        held = self.ledger.agreement()
        usual = median(one.mean for one in held.values()) if held else 0.0
        for site in agreement.stand_apart(held):
            self.ledger.tell(
                "collect",
                f"its masks agree with the other sites' to {held[site].mean:.0f} %, where {usual:.0f} % is usual here: look at "
                "its teacher, at what it calls the labels, and at its masks in the report, before the student is used. With "
                "fusion.method trimmed-mean or median such a site does little harm.",
                site,
            )

    def _visit(
        self,
        post: Post,
        stage: str,
        request: type[wire.EvaluateRequest] | type[wire.FineTuneRequest],
        reply: type[wire.EvaluateReply] | type[wire.FineTuneReply],
        sites: tuple[str, ...],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Send the student to sites and keep what they measured."""
        have = self.ledger.results(stage)
        if self.stages.finished(stage) and set(sites) <= set(have):
            meanwhile()
            return  # else sites that failed the last time are asked again
        with self.stages.stage(stage):
            card = (self.folder.student / "card.json").read_text("utf-8")
            weights = (self.folder.student / "student.safetensors").read_bytes()
            collect, look = self.study.collect, self.stages.watch(stage, self.participants.online())
            inquiry: Inquiry[Any] = Inquiry(post, reply, collect.retries, collect.connect_s, look)
            for site in sites:
                if site in self.ledger.sites() and site not in have:
                    inquiry.ask(
                        site,
                        0,
                        lambda: request(**self.envelope, card=card, weights=weights),
                        collect.deadline_s,
                    )
            done = len(have)
            self.stages.tell(stage, done, len(sites))
            for outcome in self.stages.recorded(stage, inquiry.outcomes(meanwhile)):
                if not isinstance(outcome.reply, WireError):
                    done += 1
                    self.ledger.keep_result(outcome.site, stage, outcome.reply.model_dump_json())
                    self.stages.tell(stage, done, len(sites))
