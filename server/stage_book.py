"""How far the stages of a study are, how long each took, and who is away: what the ledger keeps of it, told as it goes."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from consilium.common.errors import ErrorCode, WireError
from consilium.server.inquiry import Outcome, ReplyT
from consilium.server.ledger import Ledger

if TYPE_CHECKING:
    from consilium.common.training.loop import Progress

TELL_EVERY_S: Final = 1.0
SEEN_EVERY_S: Final = 5.0


@dataclass
class StageBook:
    """The stages of one start of a study.

    Parameters
    ----------
    ledger
        Keeps what is told, over all starts.
    """

    ledger: Ledger
    _told: float = field(default=0.0, init=False)
    _absent: str = field(default="", init=False)
    _open: list[str] = field(default_factory=list, init=False)
    _clock: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)

    def finished(self, stage: str) -> bool:
        """Whether a stage came to its end, at this start or before."""
        held = self.ledger.stage(stage)
        return held is not None and held.finished

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
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

    def tell(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Record how far a stage is, and what it waits for."""
        self.ledger.advance(stage, done, total, self._seconds(stage), note or self._absent)

    def training(self, stage: str) -> Callable[["Progress"], None]:
        """Give what tells how far a training is, about every second."""

        def on_step(progress: "Progress") -> None:
            now = time.monotonic()
            if now - self._told >= TELL_EVERY_S or progress.step == progress.steps:
                self._told = now
                self.tell(
                    stage, progress.step, progress.steps, "" if progress.loss is None else f"loss {progress.loss:.3f}"
                )

        return on_step

    def watch(self, stage: str, sites: Iterable[str]) -> Callable[[set[str]], None]:
        """Give what keeps the ledger's word on which of some sites are connected, and tells who is not."""
        asked = set(sites)
        before, written = set[str](), float("-inf")

        def look(connected: set[str]) -> None:
            nonlocal before, written
            absent, now = asked - connected, time.monotonic()
            for site in sorted(absent - before):
                self.ledger.tell(stage, "is not connected; it is asked again as soon as it is back", site)
            for site in sorted(before - absent):
                self.ledger.tell(stage, "is connected again", site)
            if absent != before:
                self._absent = f"waiting for {', '.join(sorted(absent))}" if absent else ""
                self.ledger.remark(stage, self._absent)
            if absent != before or now - written >= SEEN_EVERY_S:
                self.ledger.saw(asked & connected, absent)
                written = now
            before = absent

        self._absent = ""
        return look

    def recorded(self, stage: str, outcomes: Iterable[Outcome[ReplyT]]) -> Iterator[Outcome[ReplyT]]:
        """Hand outcomes on, and record what travelled, who failed, and who has not consented."""
        for outcome in outcomes:
            self.ledger.moved(outcome.site, stage, outcome.received, outcome.sent)
            if isinstance(outcome.reply, WireError):
                if outcome.reply.code == ErrorCode.NOT_CONSENTED:
                    self.ledger.not_consented(stage, outcome.site)
                else:
                    self.ledger.tell(stage, str(outcome.reply), outcome.site)
            yield outcome

    def _seconds(self, stage: str) -> float:
        started, before = self._clock.get(stage, (time.monotonic(), 0.0))
        return before + time.monotonic() - started
