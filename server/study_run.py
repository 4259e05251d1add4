"""A study, stage by stage: describe, collect, select, distill, evaluate, fine-tune, report.

Each stage leaves facts on disk and in the ledger; a stage that is finished is not done again. Stages know the post that
carries messages, not what it is made of.
"""

import csv
import io
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common import labels, soft_mask, wire
from consilium.common.catalogue import Catalogue
from consilium.common.datasets import labelled
from consilium.common.errors import ErrorCode, StudyError, WireError
from consilium.common.evaluation.folders import Truths
from consilium.common.evaluation.rows import to_csv
from consilium.common.metrics import dice, score
from consilium.common.soft_mask import SoftMasks
from consilium.common.study import Study
from consilium.common.validation import Validation, from_card
from consilium.common.wire import Score
from consilium.server import agreement, exclusion, pooled_evaluation, questions, weighting
from consilium.server.collect import Collector, Watched, waits_for_people
from consilium.server.disk import write_text
from consilium.server.inquiry import Inquiry, Outcome, Post
from consilium.server.ledger import Ledger
from consilium.server.pooled_evaluation import Scored
from consilium.server.run_folder import MaskFile, RunFolder
from consilium.server.seals import Seals

if TYPE_CHECKING:
    from consilium.common.training.loop import Progress

EXAMPLES: Final = 12
"""Transferal images whose masks are kept site by site, for the report's gallery."""

SELECTION: Final = (
    *("index", "id", "role", "sites", "target_pixels", "entropy_bits", "self_dice"),
    *("seen", "agreement", "reason", "paper_reason"),
)
"""Columns of ``selection.csv``."""

TELL_EVERY_S: Final = 1.0
SEEN_EVERY_S: Final = 5.0


@dataclass(frozen=True)
class Described:
    """What is kept of a site's description, in JSON; how many of the study's labels it knows; which images it lacks."""

    card: str
    labels: int
    missing: list[bool]


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
    _told: float = field(default=0.0, init=False)
    _absent: str = field(default="", init=False)
    _open: list[str] = field(default_factory=list, init=False)
    _clock: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)

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

    # --- stages that ask the sites

    def describe(self, post: Post) -> dict[str, list[bool]]:
        """Show the study to every site; gives, per site that takes part, which images it lacks."""
        with self._stage("describe"):
            connected = self._wait_for_sites(post)
            request = questions.show(self.study, self.catalogue, self.seals)
            inquiry = self._inquiry(post, wire.DescribeReply, "describe", connected)
            for site in self.study.online:
                if site in connected:
                    inquiry.ask(site, 0, lambda: request, self.study.collect.deadline_s)
            missing: dict[str, list[bool]] = {}
            waiting: list[str] = []
            for outcome in self._outcomes(inquiry, "describe", _import_torch):
                reply = outcome.reply
                if isinstance(reply, WireError):
                    waiting += [outcome.site] if reply.code == ErrorCode.NOT_CONSENTED else []
                    continue
                try:
                    described = self.described(outcome.site, reply)
                except WireError as error:
                    self.ledger.tell("describe", str(error), outcome.site)
                    continue
                self.takes_part(outcome.site, described)
                missing[outcome.site] = described.missing
                self.tell("describe", len(missing), len(self.study.sites))
            self._offer(post, waiting)
            awaited = [site for site in self.study.collect.offline if self.lacks_answers(site)]
            for site in self.study.collect.offline:
                if site not in awaited:
                    missing[site] = []  # it is never asked
            told = f"{len(missing)} of {len(self.study.sites)} sites take part, and the quorum is {self.study.quorum}"
            if len(missing) < self.study.quorum <= len(missing) + len(waiting) + len(awaited):
                raise waits_for_people(self.study, waiting, awaited, told)
            for site in awaited:
                self.ledger.tell("describe", "takes no part yet: its answer file is not imported", site)
            if len(missing) < self.study.quorum:
                faults = [f"{event.site}: {event.text}" for event in self.ledger.events() if event.stage == "describe"]
                raise StudyError(
                    "\n  ".join(
                        [
                            f"{told}. Mend the sites and start the study again.",
                            *dict.fromkeys(faults),
                        ]
                    )
                )
            try:
                self._require_every_label(missing)
            except StudyError as error:
                if not waiting and not awaited:
                    raise
                raise waits_for_people(self.study, waiting, awaited, str(error)) from None
        return missing

    def described(self, site: str, reply: wire.DescribeReply) -> Described:
        """Check what a site said of itself; `WireError` if it cannot take part so."""
        known = [self.study.labels[place] for place in labels.positions(self.study.labels, reply.labels)]
        if not known:
            raise WireError(ErrorCode.BAD_MESSAGE, f"its teacher knows none of {', '.join(self.study.labels)}")
        self.seals.pin(site, reply.signer)
        card = {"output": reply.output, "labels": known, "teacher": _teacher_card(reply.teacher)}
        return Described(json.dumps(card), len(known), wire.from_bits(reply.missing, len(self.catalogue)))

    def takes_part(self, site: str, described: Described) -> None:
        """Record that a site takes part, and what it said of itself."""
        self.ledger.consented("describe", site)
        self.ledger.site_described(site, described.card)

    def lacks_answers(self, site: str) -> bool:
        """Whether an offline site's answer file, or part of it, is not imported yet."""
        chunks = set(range(questions.chunks(self.study, self.catalogue)))
        return site not in self.ledger.sites() or not chunks <= (
            self.ledger.finished_chunks().keys() | self.ledger.held_chunks(site)
        )

    def _offer(self, post: Post, sites: list[str]) -> None:
        """Send the images, once, to sites that have not consented: their people look at them before they decide."""
        new = [site for site in sites if site not in self.ledger.results("offered")]
        count = questions.chunks(self.study, self.catalogue)
        inquiry = self._inquiry(post, wire.PredictReply, "describe", new)
        todo = deque((site, number) for number in range(count) for site in new)

        def request(number: int) -> Callable[[], wire.PredictRequest]:
            return lambda: questions.with_pixels(self.study, self.catalogue, number)

        def send_next() -> None:
            if todo:
                site, number = todo.popleft()
                inquiry.ask(site, number, request(number), self.study.collect.deadline_s)

        arrived: dict[str, int] = Counter()
        for _ in range(self.study.collect.chunks_in_flight * len(new)):
            send_next()
        for outcome in inquiry.outcomes():
            self.ledger.moved(outcome.site, "predict", outcome.received, outcome.sent)
            if not isinstance(outcome.reply, WireError) or outcome.reply.code == ErrorCode.NOT_CONSENTED:
                arrived[outcome.site] += 1  # one that consents meanwhile answers; it takes part from the next start on
            else:
                todo = deque(entry for entry in todo if entry[0] != outcome.site)
                inquiry.drop(outcome.site)
            send_next()
        for site in new:
            if arrived[site] == count:
                self.ledger.keep_result(site, "offered", self.catalogue.hash)

    def known_labels(self, site: str) -> tuple[int, ...]:
        """Positions of the study's labels that a site's masks are of, as it described itself."""
        card = self.ledger.sites().get(site)
        told = json.loads(card).get("labels") if card else None
        return labels.positions(self.study.labels, self.study.labels if told is None else told)

    def collect(self, post: Post, missing: Mapping[str, list[bool]]) -> None:
        """Collect and fuse soft masks of all images."""
        if self._finished("collect"):
            return
        with self._stage("collect"):
            Collector(
                study=self.study,
                catalogue=self.catalogue,
                ledger=self.ledger,
                post=post,
                pseudo_masks=self.pseudo_masks,
                watched=self.watched,
                missing=missing,
                known={site: self.known_labels(site) for site in missing},
                validation=self.validation(pin=True),
                envelope=self.envelope,
                unseal=self.seals.open,
                on_chunk=lambda done, total: self.tell("collect", done, total),
                on_look=self._look("collect"),
            ).run()
            self._name_who_stands_apart()

    def validation(self, *, pin: bool = False) -> dict[str, Validation]:
        """What sites report of their teachers, as it was when collecting began: weights stay the same over all starts."""
        held = self.ledger.results("validation").get("")
        if held is None:
            cards = {site: json.loads(card) for site, card in self.ledger.sites().items()}
            told = {site: from_card(card["teacher"]) for site, card in cards.items() if site in self.study.sites}
            held = json.dumps({site: {"validation": found.to_card()} for site, found in told.items() if found})
            if pin:
                self.ledger.keep_result("", "validation", held)
        found = {site: from_card(card) for site, card in json.loads(held).items()}
        return {site: one for site, one in found.items() if one is not None}

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
        found, reasons = self.selection()
        kept = np.array([i for i in self.catalogue.indices("transferal") if not reasons[i]], np.int64)
        if self._finished("select"):
            return kept
        with self._stage("select"):
            self._write_selection(found, reasons)
            if not len(kept):
                raise StudyError(self._nothing_kept(found, reasons))
        return kept

    def selection(self) -> tuple[exclusion.Statistics, list[exclusion.Reason]]:
        """Statistics of, and decision about, every image of the catalogue."""
        found = self._statistics()
        if self.study.exclusion.rule == "paper":
            return found, self.by_paper(found)
        consensus = np.zeros(len(self.catalogue), np.bool_)
        for image, opinion in self.ledger.opinion().items():
            consensus[image] = opinion.consensus
        alpha, size = self.study.exclusion.alpha, self.study.image.size
        reasons = exclusion.reasons_by_consensus(found, consensus, alpha=alpha, size=size)
        return found, self._without_mask(reasons)

    def by_paper(self, found: exclusion.Statistics) -> list[exclusion.Reason]:
        """What the paper's rule says of every image, whether it decides or not."""
        cards = self.ledger.sites()
        soft = any(json.loads(cards[site])["output"] == "soft" for site in self.ledger.answers())
        settings = self.study.exclusion
        reasons = exclusion.reasons(
            found, alpha=settings.alpha, beta=settings.beta if soft else None, size=self.study.image.size
        )
        return self._without_mask(reasons)

    def _without_mask(self, reasons: list[exclusion.Reason]) -> list[exclusion.Reason]:
        for image in self.ledger.images_without_mask():
            reasons[image] = exclusion.Reason.TOO_FEW_MASKS
        return reasons

    def _statistics(self) -> exclusion.Statistics:
        masks = self.pseudo_masks.read()
        step = self.study.collect.chunk
        return exclusion.join(exclusion.statistics(masks[at : at + step]) for at in range(0, len(masks), step))

    def agreement(self) -> npt.NDArray[np.float64]:
        """How far the sites that were folded in agree about each image, float64 (n,); NaN where they are fewer than two."""
        found = np.full(len(self.catalogue), np.nan)
        for image, opinion in self.ledger.opinion().items():
            if opinion.agreement is not None:
                found[image] = opinion.agreement
        return found

    def distill(self, kept: npt.NDArray[np.int64]) -> None:
        """Train the student, and save it as safetensors with its card."""
        from consilium.common.networks import student_files
        from consilium.server.distill import card_of, distill

        if self._finished("distill"):
            return
        with self._stage("distill"):
            training = self.study.student.training.on(len(self.catalogue.indices("transferal")))  # before exclusion
            student, history = distill(
                self.catalogue.pixels,
                self.pseudo_masks.read(),
                self.study.student.model_copy(update={"training": training}),
                seed=self.study.seed,
                kept=kept,
                agreement=self.agreement(),
                folder=self.folder.student / "checkpoints",
                on_step=self._on_step("distill"),
            )
            size, channels = self.study.image.size, self.study.image.channels
            card = card_of(student, self.study.student, size, channels, self.study.labels) | {
                "study": self.study.digest,
                "catalogue": self.catalogue.hash,
                "sites": sorted(self.ledger.answers()),
                "images": len(kept),
                "settings": self.study.model_dump(mode="json", by_alias=True),
                "versions": wire.versions(),
            }
            student_files.save_student(self.folder.student, student, card)
            self.ledger.keep_result("", "history", json.dumps(history.curve))
            self.ledger.keep_result("", "parameters", str(card["parameters"]))

    def export(self) -> None:
        """Save the student as ONNX too, for those who run it without torch."""
        from consilium.common.networks import student_files

        if self._finished("export"):
            return
        with self._stage("export"):
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
        if self._finished("test") or not labelled.is_packed(self.folder.test_set):
            return
        with self._stage("test"):
            indices, truth = self.test_images()
            fused = ~np.isin(indices, list(self.ledger.images_without_mask()))
            if not fused.all():
                told = f"{np.count_nonzero(~fused)} test images are not scored: too few sites gave a mask"
                self.ledger.tell("test", told)
                indices, truth = indices[fused], truth[fused]
            if not len(indices):
                return
            place = np.searchsorted(self.watched.indices, indices)
            chunks = {int(i) // self.study.collect.chunk for i in indices}
            scored: list[Scored] = []
            for site in self.ledger.answers():
                if not chunks <= self.ledger.answered_chunks(site) or self.ledger.abstentions(site) & set(
                    indices.tolist()
                ):
                    self.ledger.tell("test", "not scored: it did not answer every test image", site)
                    continue
                scored.append(Scored("teacher", site, self.watched.of(site)[place], self.known_labels(site)))
                self._keep_score(site, "pooled", scored[-1].masks, truth)
            everything = tuple(range(len(self.study.labels)))
            scored.append(Scored("ensemble", "ensemble", self.pseudo_masks.read()[indices], everything))
            self._keep_score("", "ensemble", scored[-1].masks, truth)
            scored.append(Scored("student", "student", self.student_masks(indices), everything))
            self._keep_score("", "student", scored[-1].masks, truth)
            self._evaluate(indices, truth, scored, native)

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

    def _wait_for_sites(self, post: Post) -> set[str]:
        """Wait until all sites that can be are connected, or long enough; gives those that are."""
        limit = time.monotonic() + self.study.collect.connect_s
        while True:
            connected = post.connected() & set(self.study.online)
            absent = set(self.study.online) - connected
            self.ledger.saw(connected, absent)
            self.tell(
                "describe", 0, len(self.study.sites), f"waiting for {', '.join(sorted(absent))}" if absent else ""
            )
            if not absent:
                return connected
            if time.monotonic() > limit:
                for site in sorted(absent):
                    self.ledger.tell("describe", f"did not connect within {self.study.collect.connect_s:.0f} s", site)
                return connected
            time.sleep(0.5)

    def _inquiry(self, post: Post, reply: type[Any], stage: str, asked: Iterable[str] | None = None) -> Inquiry[Any]:
        collect = self.study.collect
        return Inquiry(post, reply, collect.retries, collect.connect_s, self._look(stage, asked))

    def _look(self, stage: str, asked: Iterable[str] | None = None) -> Callable[[set[str]], None]:
        """Give what keeps the ledger's word on who is connected, and tells who is not.

        Of the sites ``asked``; by default of those that take part.
        """
        sites = set(self.ledger.sites()) & set(self.study.online) if asked is None else set(asked)
        before, written = set[str](), float("-inf")

        def look(connected: set[str]) -> None:
            nonlocal before, written
            absent, now = sites - connected, time.monotonic()
            for site in sorted(absent - before):
                self.ledger.tell(stage, "is not connected; it is asked again as soon as it is back", site)
            for site in sorted(before - absent):
                self.ledger.tell(stage, "is connected again", site)
            if absent != before:
                self._absent = f"waiting for {', '.join(sorted(absent))}" if absent else ""
                self.ledger.remark(stage, self._absent)
            if absent != before or now - written >= SEEN_EVERY_S:
                self.ledger.saw(sites & connected, absent)
                written = now
            before = absent

        self._absent = ""
        return look

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

    def _require_every_label(self, sites: Iterable[str]) -> None:
        """Refuse a label that nobody knows, or too few for the fusion, before anything is collected."""
        known = {site: [self.study.labels[place] for place in self.known_labels(site)] for site in sites}
        orphans = [label for label in self.study.labels if not any(label in told for told in known.values())]
        if orphans:
            raise StudyError(
                "\n  ".join(
                    [
                        f"nobody knows {', '.join(orphans)}: each label needs a site whose teacher knows it. Have a site name "
                        "what it calls so in its label-map, or start a study without it.",
                        *(f"{site} knows {', '.join(told)}" for site, told in sorted(known.items())),
                    ]
                )
            )

        least = self.study.fusion.least_sites
        for label in self.study.labels:
            those = sorted(site for site, told in known.items() if label in told)
            if len(those) < least:
                raise StudyError(
                    f"fusion.trim = {self.study.fusion.trim} needs at least {least} sites that know a label; {label} is known to "
                    f"{len(those)} of those that take part ({', '.join(those)}). Mend the sites, or start a study with a lower "
                    "trim or another fusion.method."
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
        if self._finished(stage) and set(sites) <= set(have):
            meanwhile()
            return  # else sites that failed the last time are asked again
        with self._stage(stage):
            card = (self.folder.student / "card.json").read_text("utf-8")
            weights = (self.folder.student / "student.safetensors").read_bytes()
            inquiry: Inquiry[Any] = self._inquiry(post, reply, stage)
            for site in sites:
                if site in self.ledger.sites() and site not in have:
                    inquiry.ask(
                        site,
                        0,
                        lambda: request(**self.envelope, card=card, weights=weights),
                        self.study.collect.deadline_s,
                    )
            done = len(have)
            self.tell(stage, done, len(sites))
            for outcome in self._outcomes(inquiry, stage, meanwhile):
                if not isinstance(outcome.reply, WireError):
                    done += 1
                    self.ledger.keep_result(outcome.site, stage, outcome.reply.model_dump_json())
                    self.tell(stage, done, len(sites))

    def _outcomes(self, inquiry: Inquiry[Any], stage: str, meanwhile: Callable[[], None]) -> Iterator[Outcome[Any]]:
        for outcome in inquiry.outcomes(meanwhile):
            self.ledger.moved(outcome.site, stage, outcome.received, outcome.sent)
            if isinstance(outcome.reply, WireError):
                if outcome.reply.code == ErrorCode.NOT_CONSENTED:
                    self.ledger.not_consented(stage, outcome.site)
                else:
                    self.ledger.tell(stage, str(outcome.reply), outcome.site)
            yield outcome

    def _keep_score(self, site: str, kind: str, masks: SoftMasks, truth: npt.NDArray[np.uint8]) -> None:
        known = self.known_labels(site)  # all, where it is not a site's
        if len(self.study.labels) > 1:
            each = {self.study.labels[k]: score(dice(masks[:, [k]], truth[:, [k]])).model_dump() for k in known}
            self.ledger.keep_result(site, f"test.{kind}.labels", json.dumps(each))
        values = dice(masks[:, known], truth[:, known])
        self.ledger.keep_result(site, f"test.{kind}", score(values).model_dump_json())
        self.ledger.keep_result(site, f"test.{kind}.values", json.dumps(values.round(6).tolist()))

    def pooled(self, kind: str, site: str = "") -> Score | None:
        """A score on the pooled test images, if it was measured."""
        held = self.ledger.results(f"test.{kind}").get(site)
        return Score.model_validate_json(held) if held else None

    def _evaluate(
        self,
        indices: npt.NDArray[np.int64],
        truth: npt.NDArray[np.uint8],
        scored: list[Scored],
        native: Truths | None,
    ) -> None:
        """Measure beyond Dice; the table goes to disk, the summary to disk and ledger."""
        if not len(indices):
            return
        ids = [self.catalogue.manifest.images[i].id for i in indices]
        evaluated = pooled_evaluation.evaluate(
            pooled_evaluation.samples(self.folder, ids),
            self.study.labels,
            truth > 0,
            scored,
            pooled_evaluation.native_truths(self.folder, ids, native) if native is not None else None,
            on_part=lambda done, total: self.tell("test", done, total),
        )
        summary = evaluated.summary(np.random.default_rng(self.study.seed))
        self.ledger.keep_result("", "test.evaluation", json.dumps(summary))
        write_text(self.folder.evaluation_rows, to_csv(evaluated.parts))
        write_text(self.folder.evaluation, json.dumps(summary, indent=2) + "\n")

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation's summary, if the test images were evaluated."""
        held = self.ledger.results("test.evaluation").get("")
        return json.loads(held) if held else None

    def pooled_by_label(self, kind: str, site: str = "") -> dict[str, Any] | None:
        """The same label by label, of a study with several labels, those that were measured."""
        held = self.ledger.results(f"test.{kind}.labels").get(site)
        return json.loads(held) if held else None

    def _write_selection(self, found: exclusion.Statistics, reasons: list[exclusion.Reason]) -> None:
        sites, opinions = self.ledger.finished_chunks(), self.ledger.opinion()
        sure, paper = weighting.self_dice(self.pseudo_masks.read()), self.by_paper(found)
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(SELECTION)
        for i, entry in enumerate(self.catalogue.manifest.images):
            answered, opinion = sites.get(i // self.study.collect.chunk, 0), opinions.get(i)
            measured = (int(found.target_pixels[i]), f"{found.entropy_bits[i]:.6f}", f"{sure[i]:.6f}")
            agreed = "" if opinion is None or opinion.agreement is None else f"{opinion.agreement:.4f}"
            seen = "" if opinion is None else opinion.seen
            rows.writerow(
                (i, entry.id, entry.role, answered, *measured, seen, agreed, reasons[i].value, paper[i].value)
            )
        write_text(self.folder.selection, table.getvalue())

    def _nothing_kept(self, found: exclusion.Statistics, reasons: list[exclusion.Reason]) -> str:
        chosen = self.catalogue.indices("transferal")
        counts = {reason: sum(reasons[i] == reason for i in chosen) for reason in exclusion.Reason if reason}
        settings, size = self.study.exclusion, self.study.image.size
        least = settings.alpha * size * size / exclusion.PAPER_SIZE**2
        bits = found.entropy_bits[chosen]
        bars, edges = np.histogram(bits, bins=np.arange(0.0, max(8.0, bits.max()) + 0.5, 0.5))
        drawn = [
            f"{low:4.1f} bits {'#' * round(40 * int(bar) / max(int(bars.max()), 1))} {bar}"
            for low, bar in zip(edges, bars, strict=False)
            if bar
        ]
        other = (
            f"at most {settings.beta:g} bits of gray-level entropy (beta)"
            if settings.rule == "paper"
            else f'a target that enough sites see (fusion.gate = "{self.study.fusion.gate}")'
        )
        told = ", ".join(f"{reason.value} {count}" for reason, count in counts.items() if count)
        return "\n  ".join(
            [
                f"every one of the {len(chosen)} transferal images was excluded ({told}). Kept are images with at least "
                f"{least:.1f} target pixels (alpha = {settings.alpha:g} at 384 x 384) and {other}. Start a study with other "
                "thresholds, or with images the teachers know. "
                f"Measured: median {np.median(found.target_pixels[chosen]):.0f} target pixels; entropy:",
                *drawn,
            ]
        )

    def _finished(self, stage: str) -> bool:
        held = self.ledger.stage(stage)
        return held is not None and held.finished

    def tell(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Record how far a stage is, and what it waits for."""
        self.ledger.advance(stage, done, total, self._seconds(stage), note or self._absent)

    def _seconds(self, stage: str) -> float:
        started, before = self._clock.get(stage, (time.monotonic(), 0.0))
        return before + time.monotonic() - started

    def _on_step(self, stage: str) -> Any:
        def on_step(progress: "Progress") -> None:
            now = time.monotonic()
            if now - self._told >= TELL_EVERY_S or progress.step == progress.steps:
                self._told = now
                self.tell(
                    stage, progress.step, progress.steps, "" if progress.loss is None else f"loss {progress.loss:.3f}"
                )

        return on_step

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage over all its starts, and record its end; a stage within another counts for itself alone."""
        held, began = self.ledger.stage(name), time.monotonic()
        self._clock[name] = (began, held.seconds if held else 0.0)
        self._absent = ""
        if held is None:
            self.tell(name, 0, 1)
        self._open.append(name)
        try:
            yield
        finally:
            self._open.remove(name)
            for outer in self._open:
                started, before = self._clock[outer]
                self._clock[outer] = (started + time.monotonic() - began, before)
        self.ledger.finish(name, self._seconds(name))


def _import_torch() -> None:
    """Import what the student's stages need: it takes seconds, and the sites have just been asked something."""
    import consilium.server.distill  # noqa: F401


def _teacher_card(text: str) -> dict[str, Any]:
    """What a site says of its teacher: a JSON object, else `WireError` ``bad-message``."""
    try:
        card = json.loads(text)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or not isinstance(card.get("network", {}), dict):
        raise WireError(ErrorCode.BAD_MESSAGE, "the teacher's card is no JSON object")
    return card
