"""Asking sites, with one deadline and one patience with absence: the same few lines under every stage.

An inquiry holds what was asked and not yet answered. It builds a request only when it is sent, so that nothing large waits. It
looks every few seconds who is connected. What may go wrong, and what then:

- *the site answers that it failed* (its gateway is gone, its teacher ran out of memory): it is asked again, with growing
  pauses, ``retries`` times;
- *the site is away*, or a message to it was lost: it is asked again as soon as it is back. Nothing is given up before it has been
  away for ``away_s`` seconds on end;
- *the site breaks the contract or refuses*: it is not asked again;
- *the deadline has passed*: it is given up.

An answer that comes after all, to what was given up, is handed out too: whoever asked knows whether it is still of use. It
knows no Flower: a `Post` carries the messages.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from flwr.app import RecordDict

from consilium.common import wire
from consilium.common.errors import ErrorCode, WireError

PASSING: Final = frozenset({ErrorCode.GATEWAY_UNREACHABLE, ErrorCode.SITE_FAILED})
"""Faults of a site that is there that may pass, so that asking again makes sense."""

LOOK_EVERY_S: Final = 2.0
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


@dataclass(eq=False)
class _Ask:
    site: str
    key: int
    make: Callable[[], wire.Envelope]
    deadline: float
    out: bool = False  # a message is under way; else it waits to be sent
    ended: bool = False  # it had its outcome
    tries: int = 0
    failures: int = 0
    not_before: float = 0.0
    lost_since: float | None = None  # when a message was first lost although the site was there
    sent: int = 0
    ticket: str = ""  # of the latest message
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
        How often a request that a site failed at is repeated.
    away_s
        How long a site may be away before what it was asked is given up.
    on_look
        Told every few seconds which sites are connected.
    clock, sleep
        Monotonic seconds, and a pause; arguments so that tests need not wait.
    """

    post: Post
    reply: type[ReplyT]
    retries: int
    away_s: float
    on_look: Callable[[set[str]], None] = lambda _connected: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _open: list[_Ask] = field(default_factory=list)
    _tickets: dict[str, _Ask] = field(default_factory=dict)
    _away: dict[str, float] = field(default_factory=dict)  # since when
    _look_at: float = float("-inf")

    def ask(self, site: str, key: int, make: Callable[[], wire.Envelope], timeout_s: float) -> None:
        """Ask a site; ``key`` comes back with the outcome, ``make`` builds the request when it is sent."""
        self._open.append(_Ask(site, key, make, self.clock() + timeout_s))

    def drop(self, site: str | None = None, key: int | None = None) -> None:
        """Forget what was asked of a site, or of all, under one key or under any. Answers to it are ignored."""

        def dropped(ask: _Ask) -> bool:
            return site in (None, ask.site) and key in (None, ask.key)

        self._open = [ask for ask in self._open if not dropped(ask)]
        self._tickets = {ticket: ask for ticket, ask in self._tickets.items() if not dropped(ask)}

    def waits_for(self, site: str, key: int) -> bool:
        """Whether what a site was asked under a key is still open."""
        return any((ask.site, ask.key) == (site, key) for ask in self._open)

    def outcomes(self, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Outcome[ReplyT]]:
        """Give outcomes as they come, until all that was asked (also in between) has one.

        ``meanwhile`` is done once, when the first questions are on their way: the sites are busy then, and this side is not.
        """
        yield from self._send_what_is_due()
        meanwhile()
        while self._open:
            self._look()
            yield from self._send_what_is_due()
            if any(ask.out for ask in self._open):
                for letter in self.post.receive():
                    ask = self._tickets.pop(letter.ticket, None)
                    if ask is not None:  # else repeated or invented
                        yield from self._judge(ask, letter)
            elif self._open:
                self.sleep(self._next_send_in())
            yield from self._give_up()

    # --- who is there

    def _look(self) -> None:
        now = self.clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        connected = self.post.connected()
        for site in {*self._away, *(ask.site for ask in self._open)}:
            if site not in connected:
                self._away.setdefault(site, now)
            elif self._away.pop(site, None) is not None:
                for ask in self._open:
                    if ask.site == site:  # whatever was under way may be lost: ask again, and take what comes first
                        ask.out, ask.not_before, ask.lost_since = False, now, None
        self.on_look(connected)

    def _next_send_in(self) -> float:
        now = self.clock()
        due = [max(ask.not_before, self._look_at if ask.site in self._away else now) for ask in self._open]
        return max(0.05, min(due) - now)

    # --- messages

    def _send_what_is_due(self) -> Iterator[Outcome[ReplyT]]:
        while due := [ask for ask in self._open if self._is_due(ask)]:
            ask = due[0]  # one at a time: whoever takes an outcome may ask more, or drop a site, meanwhile
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
                ask.out, ask.ticket = True, ticket
                self._tickets[ticket] = ask

    def _is_due(self, ask: _Ask) -> bool:
        return not ask.out and ask.site not in self._away and ask.not_before <= self.clock() < ask.deadline

    def _judge(self, ask: _Ask, letter: Letter) -> Iterator[Outcome[ReplyT]]:
        try:
            if isinstance(letter.content, ErrorCode):
                raise WireError(letter.content)
            reply = wire.from_record(self.reply, letter.content)
            if (reply.study, reply.catalogue) != ask.about:
                raise WireError(ErrorCode.BAD_MESSAGE, "answers about another study or catalogue")
            if getattr(reply, "site", ask.site) != ask.site:
                raise WireError(ErrorCode.BAD_MESSAGE, f"answered in the name of {getattr(reply, 'site', '')!r}")
        except WireError as error:
            if not ask.ended and letter.ticket == ask.ticket:  # else what became of an earlier message does not matter
                yield from self._fault(ask, error)
        else:
            self._close(ask)
            yield Outcome(ask.site, ask.key, reply, ask.sent, wire.size_of(reply))

    def _fault(self, ask: _Ask, error: WireError) -> Iterator[Outcome[ReplyT]]:
        now = self.clock()
        pause = PAUSE_S[min(ask.tries, len(PAUSE_S)) - 1]
        if error.code == ErrorCode.SITE_UNREACHABLE:
            ask.lost_since = now if ask.lost_since is None else ask.lost_since
            again = now + pause < ask.deadline and now - ask.lost_since < self.away_s
        else:
            ask.failures += 1
            again = error.code in PASSING and ask.failures <= self.retries and now + pause < ask.deadline
        if again:
            ask.out, ask.not_before = False, now + pause
        else:
            yield self._given_up(ask, error)

    def _give_up(self) -> Iterator[Outcome[ReplyT]]:
        now = self.clock()
        for ask in list(self._open):
            if ask not in self._open:
                continue  # a caller may have dropped the site meanwhile
            if ask.deadline <= now:
                yield self._given_up(ask, WireError(ErrorCode.TOO_LATE))
            elif now - self._away.get(ask.site, now) >= self.away_s:
                yield self._given_up(ask, WireError(ErrorCode.SITE_UNREACHABLE, f"away for {self.away_s:g} s"))

    def _given_up(self, ask: _Ask, error: WireError) -> Outcome[ReplyT]:
        self._open.remove(ask)
        ask.ended = True
        return Outcome(ask.site, ask.key, error, ask.sent, 0)

    def _close(self, ask: _Ask) -> None:
        if not ask.ended:
            self._open.remove(ask)
            ask.ended = True
        self._tickets = {ticket: held for ticket, held in self._tickets.items() if held is not ask}
