"""The site: four calls, and nothing else, between the outside and the teacher, the data and the policy.

Whatever goes wrong inside, what comes out is a code of the closed list; the reason stays in the site's own log.
"""

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from consilium.clients import policy, visiting_student
from consilium.clients.answers import Answers
from consilium.clients.audit import ANSWERED, Audit, Event
from consilium.clients.consent import ConsentBook
from consilium.clients.own_images import OwnImages
from consilium.clients.settings import FINE_TUNED, SiteHome
from consilium.clients.studies import Shown, StudyBook
from consilium.clients.teachers import Teacher
from consilium.clients.teachers.opening import clip
from consilium.common import labels, metrics, sealing, soft_mask, wire
from consilium.common.datasets import labelled
from consilium.common.errors import DataError, ErrorCode, WireError
from consilium.common.files import write_text
from consilium.common.identity.key_files import private_folder
from consilium.common.identity.signing import public_key_of, signing_key
from consilium.common.labels import LabelView
from consilium.common.networks.student_files import save_student
from consilium.common.sealing import Sealed
from consilium.common.study import Study
from consilium.common.temperature import temper
from consilium.common.training.fine_tune import choose_images, fine_tune
from consilium.common.training.settings import FineTuningSettings
from consilium.common.validation import from_card
from consilium.common.views import Predict, look
from consilium.common.wire import (
    DescribeReply,
    DescribeRequest,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    FineTuneReply,
    FineTuneRequest,
    PredictReply,
    PredictRequest,
    Score,
)

LOG: Final = logging.getLogger(__name__)
BATCH: Final = 16
"""Images the teacher is given at a time; bounds the memory of a request."""

ReplyT = TypeVar("ReplyT", bound=Envelope)
RequestT = TypeVar("RequestT", bound=Envelope)


class Site:
    """A site that is open for questions; a `SitePort`. Safe to call from several threads.

    Parameters
    ----------
    home
        The site's settings and folder; what it is shown and given is kept there.
    teacher
        Its model. It is asked by one thread at a time.
    checked
        What the coordinator is told of the teacher's check, beside the teacher's own card.
    """

    def __init__(self, home: SiteHome, teacher: Teacher, checked: Mapping[str, object] | None = None) -> None:
        self._home: Final = home
        self._settings: Final = home.settings
        self._teacher: Final = teacher
        self._consents: Final = ConsentBook(home.consents, home.settings.name)
        self._studies: Final = StudyBook(home, self._consents)
        self._own_images: Final = OwnImages(home.train_set)
        self._card: Final = {**(checked or {}), **teacher.card}  # images kept out of the training come before a check's
        self._temperature: Final = temperature_of(home, self._card)
        self._audit: Final = Audit(home.audit_log)
        self._key: Final = signing_key(home.answer_key)
        self._given: Final[dict[str, Answers]] = {}
        self._giving = threading.Lock()
        self._asking = threading.Lock()
        self._training = threading.Lock()
        self._closing = threading.Event()
        if self._settings.training.threads:
            torch.set_num_threads(self._settings.training.threads)
        if self._settings.policy.auto_approve:
            LOG.warning(
                "%s APPROVES EVERY STUDY of %s (policy.auto-approve = true), and no person is asked. This is for simulations "
                "only: take it away before a real coordinator is connected.",
                self._settings.name,
                "its trusted signers" if self._settings.policy.trusted_signers else "EVERY SIGNER",
            )

    @property
    def name(self) -> str:
        """The site's name."""
        return self._settings.name

    def close(self) -> None:
        """Have work that takes long end soon; a fine-tuning goes on from its checkpoint when it is asked for again."""
        self._closing.set()

    def describe(self, request: DescribeRequest, /) -> DescribeReply:
        """Be shown a study; see `SitePort`."""
        return self._answer("describe", request, self._describe)

    def predict(self, request: PredictRequest, /) -> PredictReply:
        """Give soft masks; see `SitePort`."""
        return self._answer("predict", request, self._predict)

    def evaluate(self, request: EvaluateRequest, /) -> EvaluateReply:
        """Evaluate teacher and student; see `SitePort`."""
        return self._answer("evaluate", request, self._evaluate)

    def fine_tune(self, request: FineTuneRequest, /) -> FineTuneReply:
        """Fine-tune a copy of the student; see `SitePort`."""
        return self._answer("fine-tune", request, self._fine_tune)

    def _answer(self, action: str, request: RequestT, work: Callable[[RequestT], ReplyT]) -> ReplyT:
        """Do the work; let nothing but a code out when it fails."""
        code = ErrorCode.SITE_FAILED
        try:
            if request.protocol != wire.PROTOCOL:
                raise WireError(ErrorCode.BAD_PROTOCOL, f"protocol {request.protocol}, here {wire.PROTOCOL}")
            if wire.size_of(request) > self._settings.policy.max_message_mib * 2**20:
                raise WireError(ErrorCode.TOO_LARGE, f"{action}: {wire.size_of(request)} bytes")
            return work(request)
        except WireError as error:
            LOG.warning("%s refused %s: %s", self.name, action, error)
            code = error.code
        except Exception:
            LOG.exception("%s failed to %s", self.name, action)
        self._note_refusal(action, request, code)
        raise WireError(code)

    def _note_refusal(self, action: str, request: Envelope, code: ErrorCode) -> None:
        try:
            self._audit.record(Event(request.study, request.catalogue, action, str(code)))
        except Exception:  # a full disk must not let a text out
            LOG.exception("%s could not write its audit log", self.name)

    def _let_out(self, action: str, shown: Shown, reply: ReplyT, student: str = "") -> ReplyT:
        """Write down what leaves before it leaves; consent and bounds are looked at again, as the work may have taken hours."""
        with self._audit.held() as log:
            self._require_consent(shown)
            if student:
                sent = log.students.get(reply.study, set())
                policy.require_students(self._settings.policy, len(sent | {student}))
            size, digest = wire.size_of(reply), wire.digest_of(reply)
            log.append(
                Event(reply.study, reply.catalogue, action, ANSWERED, student=student, bytes_out=size, digest=digest)
            )
        return reply

    def _require_consent(self, shown: Shown) -> None:
        self._consents.require(shown.request, shown.signer, auto_approve=self._settings.policy.auto_approve)

    def _describe(self, request: DescribeRequest) -> DescribeReply:
        shown = self._studies.show(request)
        self._require_consent(shown)
        reply = DescribeReply(
            study=request.study,
            catalogue=request.catalogue,
            site=self.name,
            output=policy.output_kind(self._settings.policy, self._settings.teacher.offers),
            labels=[shown.study.labels[place] for place in self._label_view(shown.study).known],
            teacher=json.dumps(policy.public_card(self._settings.policy, self._card), sort_keys=True),
            missing=wire.to_bits(shown.images.missing()),
            signer=public_key_of(self._key),
        )
        return self._let_out("describe", shown, reply)

    def _predict(self, request: PredictRequest) -> PredictReply:
        policy.require_permission(self._settings.policy, "predict")
        shown = self._studies.recall(request)
        if len(set(request.ids)) != len(request.ids):
            raise WireError(ErrorCode.BAD_MESSAGE, "an image is asked for twice in one request")
        if len(request.pixels) > len(request.ids):
            raise WireError(ErrorCode.BAD_MESSAGE, f"{len(request.pixels)} images for {len(request.ids)} ids")
        shown.images.require_known(request.ids)
        try:
            self._require_consent(shown)
        except WireError:
            self._studies.keep_for_review(shown, request)
            raise
        given = self._given_in(shown)
        wanted = [name for name in request.ids if name not in given.find(request.ids)]
        policy.require_budget(self._settings.policy, self._audit.masks_gone(), len(wanted))
        shown.put_all(request)
        shown.images.require_held(wanted)
        started = time.perf_counter()
        made: dict[str, bytes] = {}
        for at in range(0, len(wanted), BATCH):
            made |= self._masks(shown, wanted[at : at + BATCH])
        return self._give(shown, request, made, time.perf_counter() - started)

    def _give(self, shown: Shown, request: PredictRequest, made: dict[str, bytes], seconds: float) -> PredictReply:
        """Answer with masks that were given before, and new ones; an image that was given meanwhile keeps its first mask."""
        given = self._given_in(shown)
        with self._audit.held() as log:
            self._require_consent(shown)
            before = given.find(request.ids)
            new = {name: coded for name, coded in made.items() if name not in before}
            policy.require_budget(self._settings.policy, log.masks_gone, len(new))
            masks = new | before
            ids = [name for name in request.ids if name in masks]
            abstained = [name for name in request.ids if name not in masks]
            sealed = self._seal(shown, ids, abstained, [masks[name] for name in ids])
            reply = PredictReply(
                study=request.study,
                catalogue=request.catalogue,
                site=self.name,
                ids=ids,
                masks=sealed.masks,
                abstained=abstained,
                key=sealed.key,
                signature=sealed.signature,
                seconds=seconds,
            )
            log.append(
                Event(
                    request.study,
                    request.catalogue,
                    "predict",
                    ANSWERED,
                    masks=len(new),
                    repeats=len(before),
                    abstained=len(abstained),
                    bytes_out=wire.size_of(reply),
                    digest=wire.digest_of(reply),
                )
            )
            given.keep(new)  # after the line: what is kept was counted
        return reply

    def _seal(self, shown: Shown, ids: list[str], abstained: list[str], masks: list[bytes]) -> Sealed:
        """Seal masks to the study's key; in clear, unsigned, where it has none (`admit` has seen whether that is allowed)."""
        request = shown.request
        if not request.sealing_key:
            return Sealed(b"", masks, b"")
        subject = sealing.about(request.study, request.catalogue, self.name, ids, abstained)
        return sealing.seal(masks, request.sealing_key, self._key, subject)

    def _given_in(self, shown: Shown) -> Answers:
        name = f"{shown.request.study}-{shown.request.catalogue[:12]}"
        with self._giving:
            if name not in self._given:
                self._given[name] = Answers(self._home.answers / f"{name}.sqlite")
            return self._given[name]

    def _masks(self, shown: Shown, ids: list[str]) -> dict[str, bytes]:
        """The coded masks, limited to what may leave, of those of a few images that are not the site's own."""
        self._go_on()
        images = shown.images.take(ids)
        least = self._settings.policy.near_duplicate
        strange = self._own_images.likeness(images).correlation <= least if least < 1 else np.ones(len(ids), np.bool_)
        if not strange.any():
            return {}
        soft = self._ask_teacher(images[strange], shown.study, self._consulted(shown.study))
        limited = policy.limit_output(self._settings.policy, self._settings.teacher.offers, soft)
        names = [name for name, answered in zip(ids, strange, strict=True) if answered]
        return {name: soft_mask.encode(mask) for name, mask in zip(names, limited, strict=True)}

    def _consulted(self, study: Study) -> Predict:
        """The teacher as a study asks for it: under its views, and then at its temperature."""

        def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            seen = look(self._teacher.predict, images, study.fusion.views)
            return temper(seen, self._temperature, clip(self._home)) if study.fusion.calibrated else seen

        return predict

    def _ask_teacher(
        self, images: npt.NDArray[np.uint8], study: Study, predict: Predict | None = None
    ) -> soft_mask.SoftMasks:
        """The teacher's soft masks, uint8 (n, K, H, W), of the study's labels it knows, before the policy."""
        view = self._known_labels(study)
        with self._asking:
            probabilities = (predict or self._teacher.predict)(images)
        expected = (len(images), len(self._settings.labels), *images.shape[2:])
        if probabilities.shape != expected:
            raise DataError(
                f"the teacher gives masks of shape {expected}, one channel a label; got {probabilities.shape}"
            )
        return soft_mask.quantise(view.take(probabilities))

    def _go_on(self) -> None:
        if self._closing.is_set():
            raise WireError(ErrorCode.SITE_FAILED, "the site is being stopped")

    def _label_view(self, study: Study) -> LabelView:
        allowed = self._settings.policy.labels
        barred: dict[str, tuple[str, ...]] = {label: () for label in study.labels if allowed and label not in allowed}
        return labels.view(study.labels, self._settings.labels, self._settings.label_map | barred)

    def _known_labels(self, study: Study) -> LabelView:
        """Those of the study's labels that this site knows, at least one."""
        view = self._label_view(study)
        if not view.known:
            raise WireError(ErrorCode.NO_DATA, f"this site's teacher knows none of {', '.join(study.labels)}")
        return view

    def _evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        policy.require_permission(self._settings.policy, "evaluate")
        shown = self._studies.recall(request)
        self._require_consent(shown)
        self._require_one_more(request)
        study = shown.study
        view = self._known_labels(study)
        test = _open_set(self._home.test_set)
        policy.require_enough(self._settings.policy, len(test))
        card = visiting_student.read_card(request.card, study)
        student = visiting_student.open_student(card, request.weights)
        student_dice = visiting_student.student_dice(student, test, study, view, self._settings.training.device)
        teacher = metrics.score(self._teacher_dice(test, study, view))
        reply = EvaluateReply(
            study=request.study,
            catalogue=request.catalogue,
            site=self.name,
            teacher_mean=teacher.mean,
            teacher_std=teacher.std,
            student_mean=metrics.score(student_dice).mean,
            student_std=metrics.score(student_dice).std,
            test_images=len(test),
            train_images=_count(self._home.train_set),
        )
        return self._let_out("evaluate", shown, reply, _student_of(request))

    def _require_one_more(self, request: EvaluateRequest | FineTuneRequest) -> None:
        """Refuse further students of a study before any work is done; `_let_out` has the last word."""
        with self._audit.held() as log:
            sent = log.students.get(request.study, set())
        policy.require_students(self._settings.policy, len(sent | {_student_of(request)}))

    def _teacher_dice(self, test: labelled.Labelled, study: Study, view: LabelView) -> npt.NDArray[np.float64]:
        values = []
        for at in range(0, len(test), BATCH):
            chosen = test.take(np.arange(at, min(at + BATCH, len(test))))
            part = visiting_student.in_study_form(chosen, study, view)
            values.append(metrics.dice(self._ask_teacher(part.images, study), part.masks))
        return np.concatenate(values)

    def _fine_tune(self, request: FineTuneRequest) -> FineTuneReply:
        policy.require_permission(self._settings.policy, "fine-tune")
        shown = self._studies.recall(request)
        self._require_consent(shown)
        study = shown.study
        if self.name not in study.fine_tune.sites:
            raise WireError(ErrorCode.REFUSED_BY_POLICY, f"{self.name} is not among the study's fine-tune.sites")
        self._require_one_more(request)
        policy.require_enough(self._settings.policy, len(_open_set(self._home.test_set)))
        folder = self._home.students / f"{request.study[:12]}-{hashlib.sha256(request.weights).hexdigest()[:12]}"
        with self._training:
            if not (folder / FINE_TUNED).exists():
                self._train_student(request, study, folder)
        result = json.loads((folder / FINE_TUNED).read_text("utf-8"))
        reply = FineTuneReply(
            study=request.study,
            catalogue=request.catalogue,
            site=self.name,
            mean=result["after"]["mean"],
            std=result["after"]["std"],
            test_images=result["after"]["n"],
            train_images=result["images"],
        )
        return self._let_out("fine-tune", shown, reply, _student_of(request))

    def _train_student(self, request: FineTuneRequest, study: Study, folder: Path) -> None:
        """Train, keep the student and its Dice; the Dice last: a folder with one is whole."""
        view = self._known_labels(study)
        private_folder(self._home.students)
        train, test = _open_set(self._home.train_set), _open_set(self._home.test_set)
        card = visiting_student.read_card(request.card, study)
        student = visiting_student.open_student(card, request.weights)
        own = self._settings.training  # the machine is the site's, the recipe the study's
        training = study.fine_tune.training.model_copy(update={"device": own.device, "threads": own.threads})
        seed = int.from_bytes(hashlib.sha256(f"{study.seed}:{self.name}".encode()).digest()[:4], "big") % 2**31
        chosen, _ = choose_images(
            train.groups, study.fine_tune.images, seed
        )  # before all are brought to the study's form

        def measure(network: torch.nn.Module) -> Score:
            return metrics.score(visiting_student.student_dice(network, test, study, view, own.device))

        tuned = fine_tune(
            student,
            visiting_student.in_study_form(train.take(chosen), study, view),
            FineTuningSettings(images=0, training=training),
            seed=seed,
            channels=view.known,
            measure=measure,
            folder=folder / "training",
            on_step=lambda _progress: self._go_on(),
        )
        save_student(folder, student, card | {"fine_tuned": tuned.facts()})
        write_text(folder / FINE_TUNED, json.dumps(tuned.facts()))
        shutil.rmtree(folder / "training", ignore_errors=True)


def temperature_of(home: SiteHome, card: Mapping[str, object]) -> float:
    """The temperature that a study with calibrated sites has a teacher answer at, beside the one it has already.

    It is the one its validation found; 1 where that says nothing, where the settings name one (then it has it), and for binary
    teachers, whose masks have no degrees.
    """
    found = from_card(card)
    settings = home.settings.teacher
    if found is None or settings.temperature != 1.0 or settings.offers == "binary":
        return 1.0
    return found.temperature


def _student_of(request: EvaluateRequest | FineTuneRequest) -> str:
    """What names a student in the audit log: the digest of its card and weights."""
    return hashlib.sha256(hashlib.sha256(request.card.encode()).digest() + request.weights).hexdigest()


def _open_set(folder: Path) -> labelled.Labelled:
    """A packed set that holds at least one image, or `WireError` ``no-data``."""
    if not labelled.is_packed(folder) or not _count(folder):
        raise WireError(ErrorCode.NO_DATA, f"{folder} holds no packed images")
    return labelled.open_packed(folder)


def _count(folder: Path) -> int:
    return len(labelled.open_packed(folder)) if labelled.is_packed(folder) else 0


def open_site(home: SiteHome) -> Site:
    """Open a site with the teacher that its settings name.

    Raises
    ------
    ConsiliumError
        If there is none, or it is damaged or not what the settings say.
    """
    from consilium.clients.teachers import card
    from consilium.clients.teachers.opening import open_teacher

    return Site(home, open_teacher(home), card.summary(home))
