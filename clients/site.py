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
from consilium.clients.audit import Audit, Event
from consilium.clients.settings import SiteHome
from consilium.clients.studies import Shown, StudyBook
from consilium.clients.teachers import Teacher
from consilium.common import labels, metrics, soft_mask, wire
from consilium.common.datasets import labelled
from consilium.common.errors import DataError, ErrorCode, WireError
from consilium.common.identity import private_folder
from consilium.common.labels import LabelView
from consilium.common.networks.student_files import save_student
from consilium.common.study import Study
from consilium.common.training.fine_tune import choose_images, fine_tune
from consilium.common.training.settings import FineTuningSettings
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
        self._card: Final = {**teacher.card, **(checked or {})}
        self._studies: Final = StudyBook(home)
        self._audit: Final = Audit(home.audit_log)
        self._asking = threading.Lock()
        self._training = threading.Lock()
        self._closing = threading.Event()
        if self._settings.training.threads:
            torch.set_num_threads(self._settings.training.threads)
        if self._settings.policy.auto_approve:
            LOG.warning(
                "%s APPROVES EVERY STUDY OF EVERY SIGNER (policy.auto-approve = true). This is for simulations only: name "
                "policy.trusted-signers instead before a real coordinator is connected.",
                self._settings.name,
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
        """Do the work; write down what leaves before it leaves; let nothing but a code out when it fails."""
        code = ErrorCode.SITE_FAILED
        try:
            if request.protocol != wire.PROTOCOL:
                raise WireError(ErrorCode.BAD_PROTOCOL, f"protocol {request.protocol}, here {wire.PROTOCOL}")
            if wire.size_of(request) > self._settings.policy.max_message_mib * 2**20:
                raise WireError(ErrorCode.TOO_LARGE, f"{action}: {wire.size_of(request)} bytes")
            reply = work(request)
            masks = len(reply.masks) if isinstance(reply, PredictReply) else 0
            size, digest = wire.size_of(reply), wire.digest_of(reply)
            event = Event(request.study, request.catalogue, action, "answered", masks, size, digest)
            self._audit.record(event, lambda gone: policy.require_budget(self._settings.policy, gone, masks))
        except WireError as error:
            LOG.warning("%s refused %s: %s", self.name, action, error)
            code = error.code
        except Exception:
            LOG.exception("%s failed to %s", self.name, action)
        else:
            return reply
        self._note_refusal(action, request, code)
        raise WireError(code)

    def _note_refusal(self, action: str, request: Envelope, code: ErrorCode) -> None:
        try:
            self._audit.record(Event(request.study, request.catalogue, action, str(code)))
        except Exception:  # a full disk must not let a text out
            LOG.exception("%s could not write its audit log", self.name)

    def _describe(self, request: DescribeRequest) -> DescribeReply:
        shown = self._studies.show(request)
        return DescribeReply(
            study=request.study,
            catalogue=request.catalogue,
            site=self.name,
            output=policy.output_kind(self._settings.policy, self._settings.teacher.offers),
            labels=[shown.study.labels[place] for place in self._label_view(shown.study).known],
            teacher=json.dumps(self._card, sort_keys=True),
            missing=wire.to_bits(shown.images.missing()),
        )

    def _predict(self, request: PredictRequest) -> PredictReply:
        policy.require_permission(self._settings.policy, "predict")
        shown = self._studies.recall(request)
        if len(set(request.ids)) != len(request.ids):
            raise WireError(ErrorCode.BAD_MESSAGE, "an image is asked for twice in one request")
        if len(request.pixels) > len(request.ids):
            raise WireError(ErrorCode.BAD_MESSAGE, f"{len(request.pixels)} images for {len(request.ids)} ids")
        shown.images.require_known(request.ids)
        policy.require_budget(self._settings.policy, self._audit.masks_gone(), len(request.ids))
        for name, coded in zip(request.ids, request.pixels, strict=False):
            shown.images.put(name, coded)
        shown.images.require_held(request.ids)
        started = time.perf_counter()
        masks = [
            coded
            for at in range(0, len(request.ids), BATCH)
            for coded in self._masks(shown, request.ids[at : at + BATCH])
        ]
        return PredictReply(
            study=request.study,
            catalogue=request.catalogue,
            site=self.name,
            ids=request.ids,
            masks=masks,
            seconds=time.perf_counter() - started,
        )

    def _masks(self, shown: Shown, ids: list[str]) -> list[bytes]:
        """The coded masks of a few images, limited to what may leave."""
        self._go_on()
        soft = self._ask_teacher(shown.images.take(ids), shown.study)
        limited = policy.limit_output(self._settings.policy, self._settings.teacher.offers, soft)
        return [soft_mask.encode(mask) for mask in limited]

    def _ask_teacher(self, images: npt.NDArray[np.uint8], study: Study) -> soft_mask.SoftMasks:
        """The teacher's soft masks, uint8 (n, K, H, W), of the study's labels it knows, before the policy."""
        view = self._known_labels(study)
        with self._asking:
            probabilities = self._teacher.predict(images)
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
        return labels.view(study.labels, self._settings.labels, self._settings.label_map)

    def _known_labels(self, study: Study) -> LabelView:
        """Those of the study's labels that this site knows, at least one."""
        view = self._label_view(study)
        if not view.known:
            raise WireError(ErrorCode.NO_DATA, f"this site's teacher knows none of {', '.join(study.labels)}")
        return view

    def _evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        policy.require_permission(self._settings.policy, "evaluate")
        study = self._studies.recall(request).study
        view = self._known_labels(study)
        test = _open_set(self._home.test_set)
        card = visiting_student.read_card(request.card, study)
        student = visiting_student.open_student(card, request.weights)
        student_dice = visiting_student.student_dice(student, test, study, view, self._settings.training.device)
        teacher = metrics.score(self._teacher_dice(test, study, view))
        return EvaluateReply(
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

    def _teacher_dice(self, test: labelled.Labelled, study: Study, view: LabelView) -> npt.NDArray[np.float64]:
        values = []
        for at in range(0, len(test), BATCH):
            chosen = test.take(np.arange(at, min(at + BATCH, len(test))))
            part = visiting_student.in_study_form(chosen, study, view)
            values.append(metrics.dice(self._ask_teacher(part.images, study), part.masks))
        return np.concatenate(values)

    def _fine_tune(self, request: FineTuneRequest) -> FineTuneReply:
        policy.require_permission(self._settings.policy, "fine-tune")
        study = self._studies.recall(request).study
        if self.name not in study.fine_tune.sites:
            raise WireError(ErrorCode.REFUSED_BY_POLICY, f"{self.name} is not among the study's fine-tune.sites")
        folder = self._home.students / f"{request.study[:12]}-{hashlib.sha256(request.weights).hexdigest()[:12]}"
        with self._training:
            if not (folder / _RESULT).exists():
                self._train_student(request, study, folder)
        result = json.loads((folder / _RESULT).read_text("utf-8"))
        return FineTuneReply(
            study=request.study,
            catalogue=request.catalogue,
            site=self.name,
            mean=result["after"]["mean"],
            std=result["after"]["std"],
            test_images=result["after"]["n"],
            train_images=result["images"],
        )

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
        partial = folder / f"{_RESULT}.partial"
        partial.write_text(json.dumps(tuned.facts()), "utf-8")
        partial.replace(folder / _RESULT)
        shutil.rmtree(folder / "training", ignore_errors=True)


_RESULT: Final = "result.json"


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
