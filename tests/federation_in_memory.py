"""A federation in memory that can lie, stall, replay and go offline. It carries real messages; only the network is not there."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from consilium.clients.port import SitePort
from consilium.common import soft_mask, wire
from consilium.common.errors import ErrorCode, WireError
from consilium.server.inquiry import Letter

Behaviour = Callable[[wire.PredictRequest, wire.PredictReply], RecordDict | ErrorCode | None]
"""What a site makes of its honest reply: other content, a failed delivery, or nothing at all."""


def mask_of(site: str, image: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The soft mask that a site has for an image: always the same."""
    seed = [ord(char) for char in site] + list(bytes.fromhex(image[:16]))
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@dataclass
class FederationInMemory:
    """A `Post`: every site answers at once, as its behaviour says."""

    shape: tuple[int, int, int]
    behaviours: dict[str, Behaviour]
    now: float = 0.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    before_receive: Callable[["FederationInMemory"], None] = lambda _federation: None
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Which labels a site knows; all of them where it is not named."""
    offline: set[str] = field(default_factory=set)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    """The mask, uint8 (K, H, W), that a site gives every image; `mask_of` where it is not named."""
    letters: list[Letter] = field(default_factory=list)
    _tickets: int = 0

    def connected(self) -> set[str]:
        return set(self.behaviours) - self.offline

    def send(self, site: str, action: wire.Action, content: RecordDict, timeout_s: float) -> str:
        assert timeout_s > 0
        assert action == "query.predict"
        if site not in self.connected():
            raise WireError(ErrorCode.SITE_UNREACHABLE)
        self._tickets += 1
        ticket = str(self._tickets)
        request = wire.from_record(wire.PredictRequest, content)
        self.asked += [(site, name) for name in request.ids]
        answer = self.behaviours[site](request, self.honest(site, request))
        if answer is not None:
            self.letters.append(Letter(ticket, answer))
        return ticket

    def honest(self, site: str, request: wire.PredictRequest) -> wire.PredictReply:
        rows = list(self.known.get(site, range(self.shape[0])))
        masks = [soft_mask.encode(self.masks.get(site, mask_of(site, name, self.shape))[rows]) for name in request.ids]
        return wire.PredictReply(
            study=request.study,
            catalogue=request.catalogue,
            site=site,
            ids=request.ids,
            masks=masks,
            abstained=[],
            key=b"",
            signature=b"",
            seconds=0.1,
        )

    def receive(self) -> list[Letter]:
        self.before_receive(self)
        letters, self.letters = self.letters, []
        self.now += 1.0
        return letters


CALLS: dict[str, tuple[type[wire.Envelope], str]] = {
    "query.describe": (wire.DescribeRequest, "describe"),
    "query.predict": (wire.PredictRequest, "predict"),
    "evaluate.student": (wire.EvaluateRequest, "evaluate"),
    "train.fine_tune": (wire.FineTuneRequest, "fine_tune"),
}


@dataclass
class SitesInMemory:
    """A `Post` to real sites in this process, which answer at once."""

    sites: dict[str, SitePort]
    letters: list[Letter] = field(default_factory=list)
    _tickets: int = 0

    def connected(self) -> set[str]:
        return set(self.sites)

    def send(self, site: str, action: wire.Action, content: RecordDict, timeout_s: float) -> str:
        assert timeout_s > 0
        kind, call = CALLS[action]
        self._tickets += 1
        try:
            answer = wire.to_record(getattr(self.sites[site], call)(wire.from_record(kind, content)))
        except WireError as error:
            answer = wire.error_record(error.code)
        self.letters.append(Letter(str(self._tickets), answer))
        return str(self._tickets)

    def receive(self) -> list[Letter]:
        letters, self.letters = self.letters, []
        return letters


def honest(_request: wire.PredictRequest, reply: wire.PredictReply) -> RecordDict:
    return wire.to_record(reply)


def changed(**changes: object) -> Behaviour:
    """A reply with some fields changed; a callable is given the reply."""

    def behave(_request: wire.PredictRequest, reply: wire.PredictReply) -> RecordDict:
        values = {name: change(reply) if callable(change) else change for name, change in changes.items()}
        fields = reply.model_dump(by_alias=True) | values
        return RecordDict({wire.RECORD: ConfigRecord(fields)})

    return behave


def abstaining(*images: str) -> Behaviour:
    """An honest reply without some images."""

    def behave(_request: wire.PredictRequest, reply: wire.PredictReply) -> RecordDict:
        kept = [(name, mask) for name, mask in zip(reply.ids, reply.masks, strict=True) if name not in images]
        gone = [name for name in reply.ids if name in images]
        values = {"ids": [name for name, _ in kept], "masks": [mask for _, mask in kept], "abstained": gone}
        return wire.to_record(reply.model_copy(update=values))

    return behave


def encoded(*masks: np.ndarray) -> list[bytes]:
    return [soft_mask.encode(mask) for mask in masks]


SHORT = np.zeros((1, 8, 8), np.uint8)

HOSTILE: dict[str, Behaviour] = {
    "one mask too few": changed(ids=lambda reply: reply.ids[:-1], masks=lambda reply: reply.masks[:-1]),
    "more ids than masks": changed(masks=lambda reply: reply.masks[:-1]),
    "an image twice": changed(ids=lambda reply: [reply.ids[0], *reply.ids[:-1]]),
    "an image nobody asked for": changed(ids=lambda reply: ["f" * 64, *reply.ids[1:]]),
    "an id that is no hash": changed(ids=lambda reply: ["../x", *reply.ids[1:]]),
    "masks of another shape": changed(masks=lambda reply: encoded(*[SHORT] * len(reply.ids))),
    "bytes that are no mask": changed(masks=lambda reply: [b"nonsense"] * len(reply.ids)),
    "a mask that expands without end": changed(
        masks=lambda reply: encoded(*[np.zeros((1, 3000, 3000), np.uint8)] * len(reply.ids))
    ),
    "an image both answered and not": changed(abstained=lambda reply: reply.ids[:1]),
    "an abstention nobody asked for": changed(
        ids=lambda reply: reply.ids[1:], masks=lambda reply: reply.masks[1:], abstained=["f" * 64]
    ),
    "floats in place of bytes": changed(masks=lambda reply: [0.5] * len(reply.ids)),
    "seconds that are not a number": changed(seconds=float("nan")),
    "negative seconds": changed(seconds=-1.0),
    "another study": changed(study="0" * 64),
    "another catalogue": changed(catalogue="0" * 64),
    "another site's name": changed(site="east"),
    "another protocol": changed(protocol=99),
    "an unknown key": changed(surprise=1),
    "nothing in it": lambda _request, _reply: RecordDict(),
    "an error code": lambda _request, _reply: wire.error_record(ErrorCode.NOT_CONSENTED),
    "a code that is not on the list": lambda _request, _reply: RecordDict(
        {wire.ERROR_RECORD: ConfigRecord({"code": "/home/jane/mask.png"})}
    ),
    "a code that is a list": lambda _request, _reply: RecordDict(
        {wire.ERROR_RECORD: ConfigRecord({"code": ["site-failed"]})}
    ),
    "never an answer": lambda _request, _reply: None,
    "always a failed delivery": lambda _request, _reply: ErrorCode.SITE_UNREACHABLE,
}
