"""Collecting: ask every site for soft masks, chunk by chunk; fold each answer as it comes, and forget it.

Memory is that of the chunks in flight, whatever the number of sites and images (`fusion/methods.py` tells the exceptions, and
where outliers are silent a chunk's masks are kept, coded, until all are there). A chunk is finished when every site that still
takes part has answered, and a quorum did; then its pseudo masks are written, and only then the ledger says so. Until then the
ledger holds the answers as they came: a coordinator that was killed folds them again and asks nobody twice.

A site that breaks the contract or refuses is left out from there on, and named; the study goes on while the quorum holds. One
that is late, or away for too long, is left out until it is back: then it is asked for the chunks that are still open.

A site may abstain from single images. It has answered their chunk, and counts for its quorum; the images are fused of the other
sites' masks. One with a label of which too few gave a mask has no pseudo mask, and no student is trained on it.

Where the fusion is a stack, the labelled images are asked for first, and every chunk waits until the stack is fitted on them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common import planes, soft_mask, wire
from consilium.common.catalogue import Catalogue
from consilium.common.errors import AnswerFileError, ConsentError, ErrorCode, StudyError, WaitingError, WireError
from consilium.common.soft_mask import SoftMasks
from consilium.common.study import Study
from consilium.common.validation import Validation
from consilium.server.consensus import Fused, Panel, weights_of
from consilium.server.inquiry import Inquiry, Outcome, Post
from consilium.server.ledger import Ledger, Opinion
from consilium.server.run_folder import MaskFile
from consilium.server.stacking import Stacking, StackPanel

STAGE: Final = "collect"
ABSENT: Final = frozenset({ErrorCode.SITE_UNREACHABLE, ErrorCode.TOO_LATE})
"""What a site does not do of its own will: it may take part again."""


@dataclass(frozen=True)
class Watched:
    """Images whose masks are kept site by site: the test images, and a few examples for the report.

    Attributes
    ----------
    indices
        Positions in the catalogue, ascending.
    sites
        The order of sites in the file.
    file
        One after the other, all watched images of each site: uint8 (sites * images, K, H, W).
    """

    indices: npt.NDArray[np.int64]
    sites: tuple[str, ...]
    file: MaskFile

    def keep(self, site: str, first: int, masks: SoftMasks) -> None:
        """Keep the watched ones of masks, uint8 (n, K, H, W), that start at position ``first`` of the catalogue.

        A label the site does not know is 0 everywhere.
        """
        low, high = np.searchsorted(self.indices, (first, first + len(masks)))
        if low < high:
            start = self.sites.index(site) * len(self.indices) + int(low)
            self.file.write(start, masks[self.indices[low:high] - first])

    def of(self, site: str) -> SoftMasks:
        """All watched masks of a site: uint8 (images, K, H, W)."""
        start = self.sites.index(site) * len(self.indices)
        return self.file.read()[start : start + len(self.indices)]


@dataclass
class _Chunk:
    first: int
    ids: list[str]
    panel: Panel | StackPanel
    open_sites: set[str] = field(default_factory=set)
    answered: dict[str, tuple[int, float]] = field(default_factory=dict)

    def places(self, ids: Sequence[str]) -> list[int]:
        """Positions in the catalogue of some of the chunk's images."""
        return [self.first + self.ids.index(name) for name in ids]


@dataclass
class Collector:
    """One collection; call `run`.

    Parameters
    ----------
    missing
        Per site, which images of the catalogue it lacks; their pixels travel with the request.
    known
        Per site, the positions of the study's labels it knows: its masks are of those. Each label is known to one at least.
    validation
        Of the sites that report it; the same at every start of a study.
    unseal
        Opens a site's answer: its masks in clear, or `WireError`.
    stacking
        Fits and applies the stack, where the study's fusion is one.
    on_chunk
        Told after each finished chunk: images done, images in all.
    on_look
        Told every few seconds which sites are connected.
    """

    study: Study
    catalogue: Catalogue
    ledger: Ledger
    post: Post
    pseudo_masks: MaskFile
    watched: Watched
    missing: Mapping[str, Sequence[bool]]
    known: Mapping[str, Sequence[int]]
    envelope: Mapping[str, str]
    validation: Mapping[str, Validation] = field(default_factory=dict)
    unseal: Callable[[str, wire.PredictReply], Sequence[bytes]] = lambda _site, reply: reply.masks
    stacking: Stacking | None = None
    on_chunk: Callable[[int, int], None] = lambda _done, _total: None
    on_look: Callable[[set[str]], None] = lambda _connected: None

    def run(self) -> None:
        """Collect whatever the ledger does not hold yet.

        Raises
        ------
        StudyError
            If fewer sites than the quorum of a label are left, or answered a chunk; what was finished stays finished.
            `ConsentError` if only consent is wanting.
        """
        size, total = self.study.collect.chunk, len(self.catalogue)
        done = self.ledger.finished_chunks()
        self._todo = [number for number in range(-(-total // size)) if number not in done][::-1]
        self._finished = sum(min(size, total - number * size) for number in done)
        self._sites = set(self.missing)
        self._weights = weights_of(self.study.sites, self.study.fusion, self.validation)
        self._needed = self._quorums()
        self._least = self._least_masks()
        self._refused: set[str] = set()
        self._chunks: dict[int, _Chunk] = {}
        self._absent: set[str] = set()
        self._connected = set(self.missing)
        collect = self.study.collect
        self._inquiry = Inquiry(self.post, wire.PredictReply, collect.retries, collect.connect_s, self._look)
        self.on_chunk(self._finished, total)
        self._fill_the_window()
        for outcome in self._inquiry.outcomes():
            self.ledger.moved(outcome.site, "predict", outcome.received, outcome.sent)
            self._take(outcome)
            self._fill_the_window()

    def _take(self, outcome: Outcome[wire.PredictReply]) -> None:
        chunk = self._chunks.get(outcome.key)
        if chunk is None or outcome.site in chunk.answered or outcome.site not in self._sites | self._absent:
            return  # too late to be of use, or of a site that broke the contract
        if outcome.site in self._absent and isinstance(outcome.reply, WireError):
            return  # that it is absent is told already
        try:
            if isinstance(outcome.reply, WireError):
                raise outcome.reply
            self._fold(chunk, outcome.site, outcome.reply)
        except WireError as error:
            self._leave_out(outcome.site, error)
        else:
            counted = chunk.answered[outcome.site]
            images, gone = len(outcome.reply.ids), chunk.places(outcome.reply.abstained)
            self.ledger.answered(outcome.site, outcome.key, images, *counted, wire.to_bytes(outcome.reply), gone)
            self._take_back({outcome.site})
        self._finish_what_is_whole()

    def _fill_the_window(self) -> None:
        while self._todo and len(self._chunks) < self.study.collect.chunks_in_flight:
            self._require_quorums(self._sites, "are left")
            number = self._todo.pop()
            first = number * self.study.collect.chunk
            ids = [entry.id for entry in self.catalogue.manifest.images[first : first + self.study.collect.chunk]]
            shape, alpha = (len(ids), *self.study.mask_shape), self.study.exclusion.alpha
            mean = Panel(shape, self.study.fusion, self._weights, self.validation, alpha)
            panel = self.stacking.panel(number, mean) if self.stacking else mean
            chunk = self._chunks[number] = _Chunk(first, ids, panel)
            self._fold_what_is_held(number, chunk)
            for site in sorted(self._sites - set(self.study.collect.offline)):
                self._ask(site, number, chunk)
            self._finish_what_is_whole()

    def _ask(self, site: str, number: int, chunk: _Chunk) -> None:
        if site in chunk.answered:
            return
        chunk.open_sites.add(site)
        if not self._inquiry.waits_for(site, number):
            self._inquiry.ask(site, number, self._request(number, chunk, site), self.study.collect.deadline_s)

    def _fold_what_is_held(self, number: int, chunk: _Chunk) -> None:
        """Take up answers that came before this start."""
        for site, held in self.ledger.held(number).items():
            if site not in self._sites:
                continue
            try:
                self._fold(chunk, site, wire.from_bytes(wire.PredictReply, held))
            except WireError as error:  # of another version, or the site knows other labels now
                self.ledger.forget(site, number, chunk.places(chunk.ids))
                if site in self.study.collect.offline:
                    self.ledger.tell(STAGE, f"its imported answer is of no use, let it answer again: {error}", site)

    def _finish_what_is_whole(self) -> None:
        whole = [number for number, held in self._chunks.items() if not held.open_sites]
        if self.stacking and self.stacking.stacks is None:
            if not self.stacking.chunks <= set(whole):
                return
            self._require_quorums(self.stacking.sites(), "answered every labelled image")
            self.stacking.fit()
        for number in whole:
            self._finish(number, self._chunks.pop(number))

    def _look(self, connected: set[str]) -> None:
        self._take_back(connected - self._connected)
        self._connected = connected
        self.on_look(connected)

    def _take_back(self, sites: set[str]) -> None:
        """Ask those of some sites again that were absent, for the chunks that are still open."""
        for site in sorted(self._absent & sites):
            self._absent.discard(site)
            self._sites.add(site)
            for number, chunk in self._chunks.items():
                self._ask(site, number, chunk)

    def _request(self, number: int, chunk: _Chunk, site: str) -> Callable[[], wire.PredictRequest]:
        def make() -> wire.PredictRequest:
            self.ledger.asked(site, number)
            lacks = self.missing[site][chunk.first : chunk.first + len(chunk.ids)]
            order = sorted(range(len(chunk.ids)), key=lambda i: not lacks[i])  # lacking first, else in order
            return wire.PredictRequest(
                **self.envelope,
                ids=[chunk.ids[i] for i in order],
                pixels=[planes.encode(self.catalogue.pixels[chunk.first + i]) for i in order if lacks[i]],
            )

        return make

    def _fold(self, chunk: _Chunk, site: str, reply: wire.PredictReply) -> None:
        if site in chunk.answered:
            return
        if len(reply.masks) != len(reply.ids) or sorted(reply.ids + reply.abstained) != sorted(chunk.ids):
            raise WireError(ErrorCode.BAD_MASK, "not exactly one mask, or an abstention, for each image asked for")
        place = {name: i for i, name in enumerate(chunk.ids)}
        answered = np.isin(chunk.ids, reply.ids)
        known, labels, size = self.known[site], *self.study.mask_shape[:2]
        shape, coded = (len(known), size, size), dict(zip(reply.ids, self.unseal(site, reply), strict=True))
        masks = np.zeros((len(chunk.ids), *shape), np.uint8)
        for name, data in coded.items():
            masks[place[name]] = soft_mask.decode(data, shape)
        ids = chunk.ids  # not the chunk: it holds the panel, and so would be freed late
        # only now: an answer counts whole or not at all
        chunk.panel.fold(site, masks, known, answered, lambda image: soft_mask.decode(coded[ids[image]], shape))
        self.watched.keep(site, chunk.first, _of_all_labels(masks, known, labels))
        chunk.answered[site] = (sum(map(len, reply.masks)), reply.seconds)
        chunk.open_sites.discard(site)

    def _leave_out(self, site: str, error: WireError) -> None:
        """Go on without a site: until it is back, if it is only late or away."""
        self._sites.discard(site)
        if error.code in ABSENT:
            self._absent.add(site)
            self.ledger.tell(STAGE, f"left out until it is back: {error}", site)
        else:
            self._absent.discard(site)
            self._inquiry.drop(site)
            if error.code == ErrorCode.NOT_CONSENTED:
                self._refused.add(site)
                self.ledger.not_consented(STAGE, site)
            else:
                self.ledger.tell(STAGE, f"left out from here on: {error}", site)
        for chunk in self._chunks.values():
            chunk.open_sites.discard(site)

    def _finish(self, number: int, chunk: _Chunk) -> None:
        self._inquiry.drop(key=number)
        answered = ", ".join(sorted(chunk.answered)) or "no site"
        self._require_quorums(set(chunk.answered), f"answered images {chunk.first} onwards ({answered})")
        fused = chunk.panel.finish(self._least)
        whole = (fused.answered >= self._least).all(axis=1)
        self.pseudo_masks.write(chunk.first, fused.masks)
        self.ledger.without_mask([chunk.first + int(i) for i in np.flatnonzero(~whole)])
        self.ledger.by_mean([chunk.first + int(i) for i in np.flatnonzero(fused.by_mean)])
        silent = {site: int(np.count_nonzero(images)) for site, images in fused.silent.items()}
        self.ledger.opinions(number, chunk.first, _opinions(fused), silent)
        self.ledger.chunk_finished(number, len(chunk.ids), len(chunk.answered), fused.agreement_by_site)
        self._finished += len(chunk.ids)
        self.on_chunk(self._finished, len(self.catalogue))

    def _quorums(self) -> list[int]:
        """How many sites must answer each label: the study's quorum, but no more than know it, and what the fusion needs."""
        knowing, least = self._knowing(set(self.missing)), self.study.fusion.least_sites
        return [max(min(self.study.collect.quorum or count, count), least) for count in knowing]

    def _least_masks(self) -> npt.NDArray[np.int64]:
        """How many masks of each label an image needs, int64 (K,): what the fusion needs, and the quorum where it is set.

        Where all sites must answer (quorum 0), an abstention is an answer, and the other sites' masks are enough.
        """
        return np.array(
            self._needed if self.study.collect.quorum else [self.study.fusion.least_sites] * len(self._needed)
        )

    def _knowing(self, sites: set[str]) -> list[int]:
        """How many of some sites know each label."""
        return [sum(label in self.known[site] for site in sites) for label in range(len(self.study.labels))]

    def _require_quorums(self, sites: set[str], what: str) -> None:
        counts, with_refused = self._knowing(sites), self._knowing(sites | self._refused)
        for label, count, asked, needed in zip(self.study.labels, counts, with_refused, self._needed, strict=True):
            if count < needed:
                of = f" that know {label}" if len(self.study.labels) > 1 else ""
                told = f"{count} of the sites{of} {what}, and the quorum is {needed}"
                raise (
                    waits_for_consent(self.study, self._refused, told)
                    if asked >= needed
                    else StudyError(self._too_few(told))
                )

    def _too_few(self, what: str) -> str:
        faults = [
            f"{event.site}: {event.text}" for event in self.ledger.events() if event.stage == STAGE and event.site
        ]
        return "\n  ".join(
            [
                f"{what} of {len(self.study.sites)} sites. What was collected is kept: mend the sites and start the study "
                "again, or set collect.quorum lower in a new study.",
                *dict.fromkeys(faults),
            ]
        )


def waits_for_consent(study: Study, sites: Collection[str], told: str) -> ConsentError:
    """Say that a study waits for people at some sites, and what they do."""
    return ConsentError(
        f"{study.name} ({study.digest[:12]}) waits for consent: {', '.join(sorted(sites))}. It was shown there; a person looks "
        f"at it with `consilium-site review SITE.toml {study.name}` and consents with `consilium-site approve`. Then start the "
        f"same command again; what was collected is kept. ({told}.)"
    )


def waits_for_people(study: Study, consents: Collection[str], files: Collection[str], told: str) -> WaitingError:
    """Say whom a study waits for: sites that have not consented, and offline sites whose answer was not imported."""
    if not files:
        return waits_for_consent(study, consents, told)
    names = ", ".join(sorted(files))
    text = (
        f"{study.name} ({study.digest[:12]}) awaits the answer file of {names}. `consilium exchange export` writes the request, "
        "`consilium-site answer` at the site answers it, `consilium exchange import` takes the answer in. Then start the same "
        "command again; what was collected is kept."
    )
    if not consents:
        return AnswerFileError(f"{text} ({told}.)")
    return ConsentError(f"{waits_for_consent(study, consents, told)}\n{text}")


def _opinions(fused: Fused) -> list[Opinion]:
    """What the ledger keeps of each image."""
    images, most = np.arange(len(fused.seen)), fused.seen.argmax(axis=1)
    columns = (fused.answered[images, most], fused.seen[images, most], fused.consensus, fused.agreement)
    return [
        Opinion(int(answered), int(seen), bool(met), None if np.isnan(agreed) else float(agreed))
        for answered, seen, met, agreed in zip(*columns, strict=True)
    ]


def _of_all_labels(masks: SoftMasks, known: Sequence[int], labels: int) -> SoftMasks:
    """Put masks of some labels among all, 0 where there are none."""
    if len(known) == labels:
        return masks
    whole = np.zeros((len(masks), labels, *masks.shape[2:]), np.uint8)
    whole[:, known] = masks
    return whole
