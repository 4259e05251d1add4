"""Asking sites, with deadlines and retries: the same few lines under every stage.

An inquiry holds what was asked and not yet answered. It builds a request only when it is sent, so that nothing large
waits; it asks again, with growing pauses, where the fault may pass; it gives up at the deadline. It knows no Flower:
a `Post` carries the messages.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from flwr.app import RecordDict

from consilium.common import wire
from consilium.common.errors import ErrorCode, WireError

PASSING: Final = frozenset({ErrorCode.GATEWAY_UNREACHABLE, ErrorCode.SITE_UNREACHABLE, ErrorCode.SITE_FAILED})
"""Faults that may pass, so that asking again makes sense."""

PAUSE_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(frozen=True)
class Letter:
    """What came back under a ticket: content, or the code of a delivery that failed."""

    ticket: str
    content: RecordDict | ErrorCode


class Post(Protocol):
    """Carries requests to sites by name, and brings back what they answer."""

    def connected(self) -> set[str]:
        """Sites that can be reached now."""
        ...

    def send(self, site: str, action: wire.Action, content: RecordDict, timeout_s: float) -> str:
        """Send a request; gives the ticket under which the answer will come."""
        ...

    def receive(self) -> list[Letter]:
        """Collect what has come since the last call; waits a moment if nothing has."""
        ...


ReplyT = TypeVar("ReplyT", bound=wire.Envelope)


@dataclass(frozen=True)
class Outcome(Generic[ReplyT]):
    """How an ask ended: a valid reply, or the error that remained after the last try."""

    site: str
    key: int
    reply: ReplyT | WireError
    sent: int
    received: int


@dataclass
class _Ask:
    site: str
    key: int
    make: Callable[[], wire.Envelope]
    deadline: float
    tries: int = 0
    not_before: float = 0.0
    sent: int = 0
    about: tuple[str, str] = ("", "")


@dataclass
class Inquiry(Generic[ReplyT]):
    """Questions of one kind to many sites.

    Parameters
    ----------
    post
        Carries the messages.
    reply
        The kind of reply that is valid.
    retries
        How often a request that met a passing fault is repeated.
    clock, sleep
        Monotonic seconds, and a pause; arguments so that tests need not wait.
    """

    post: Post
    reply: type[ReplyT]
    retries: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _waiting: list[_Ask] = field(default_factory=list)
    _sent: dict[str, _Ask] = field(default_factory=dict)

    def ask(self, site: str, key: int, make: Callable[[], wire.Envelope], timeout_s: float) -> None:
        """Ask a site; ``key`` comes back with the outcome, ``make`` builds the request when it is sent."""
        self._waiting.append(_Ask(site, key, make, self.clock() + timeout_s))

    def drop(self, site: str) -> None:
        """Forget all that a site was asked: it takes no further part. Its late answers are ignored."""
        self._waiting = [ask for ask in self._waiting if ask.site != site]
        self._sent = {ticket: ask for ticket, ask in self._sent.items() if ask.site != site}

    def outcomes(self, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Outcome[ReplyT]]:
        """Give outcomes as they come, until all that was asked (also in between) has one.

        ``meanwhile`` is done once, when the first questions are on their way: the sites are busy then, and this side is not.
        """
        yield from self._send_what_is_due()
        meanwhile()
        while self._waiting or self._sent:
            yield from self._send_what_is_due()
            if self._sent:
                for letter in self.post.receive():
                    ask = self._sent.pop(letter.ticket, None)
                    if ask is not None:  # else late, repeated or invented: not ours to use
                        yield from self._judge(ask, letter.content)
            elif self._waiting:
                self.sleep(max(0.05, min(ask.not_before for ask in self._waiting) - self.clock()))
            yield from self._give_up_what_is_late()

    def _send_what_is_due(self) -> Iterator[Outcome[ReplyT]]:
        while due := [ask for ask in self._waiting if ask.not_before <= self.clock() < ask.deadline]:
            ask = due[0]  # one at a time: whoever takes an outcome may ask more, or drop a site, meanwhile
            self._waiting.remove(ask)
            request = ask.make()
            ask.sent += wire.size_of(request)
            ask.tries += 1
            ask.about = (request.study, request.catalogue)
            try:
                ticket = self.post.send(
                    ask.site, wire.ACTIONS[type(request)], wire.to_record(request), ask.deadline - self.clock()
                )
            except WireError as error:
                yield from self._fault(ask, error)
            else:
                self._sent[ticket] = ask

    def _judge(self, ask: _Ask, content: RecordDict | ErrorCode) -> Iterator[Outcome[ReplyT]]:
        try:
            if isinstance(content, ErrorCode):
                raise WireError(content)
            reply = wire.from_record(self.reply, content)
            if (reply.study, reply.catalogue) != ask.about:
                raise WireError(ErrorCode.BAD_MESSAGE, "answers about another study or catalogue")
            if getattr(reply, "site", ask.site) != ask.site:
                raise WireError(ErrorCode.BAD_MESSAGE, f"answered in the name of {getattr(reply, 'site', '')!r}")
        except WireError as error:
            yield from self._fault(ask, error)
        else:
            yield Outcome(ask.site, ask.key, reply, ask.sent, wire.size_of(reply))

    def _fault(self, ask: _Ask, error: WireError) -> Iterator[Outcome[ReplyT]]:
        pause = PAUSE_S[min(ask.tries, len(PAUSE_S)) - 1]
        if error.code in PASSING and ask.tries <= self.retries and self.clock() + pause < ask.deadline:
            ask.not_before = self.clock() + pause
            self._waiting.append(ask)
        else:
            yield Outcome(ask.site, ask.key, error, ask.sent, 0)

    def _give_up_what_is_late(self) -> Iterator[Outcome[ReplyT]]:
        now = self.clock()
        late = {ticket: ask for ticket, ask in self._sent.items() if ask.deadline <= now}
        for ticket, ask in late.items():
            if self._sent.pop(ticket, None):  # a caller may have dropped the site meanwhile
                yield Outcome(ask.site, ask.key, WireError(ErrorCode.TOO_LATE), ask.sent, 0)
        for ask in [ask for ask in self._waiting if ask.deadline <= now]:
            if ask in self._waiting:
                self._waiting.remove(ask)
                yield Outcome(ask.site, ask.key, WireError(ErrorCode.TOO_LATE), ask.sent, 0)
