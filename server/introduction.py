"""The first stage: the study is shown to every site, which describes itself, or whose people look at it first."""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from consilium.common import wire
from consilium.common.errors import ErrorCode, StudyError, WireError
from consilium.server import questions
from consilium.server.collect import waits_for_people
from consilium.server.inquiry import Inquiry, Post
from consilium.server.participants import Participants
from consilium.server.stage_book import StageBook

STAGE: Final = "describe"


@dataclass
class Introduction:
    """One showing of a study to its sites; call `run`."""

    participants: Participants
    post: Post
    stages: StageBook

    def __post_init__(self) -> None:
        self.study, self.ledger = self.participants.study, self.participants.ledger
        self.catalogue = self.participants.catalogue

    def run(self) -> dict[str, list[bool]]:
        """Give, per site that takes part, which images it lacks.

        Raises
        ------
        StudyError
            If too few sites take part, or nobody knows a label; `WaitingError` if people may still change that.
        """
        missing, waiting = self._show(self._wait_for_sites())
        self._offer(waiting)
        awaited = [site for site in self.study.collect.offline if self.participants.lacks_answers(site)]
        missing |= {site: [] for site in self.study.collect.offline if site not in awaited}  # these are never asked
        self._require_quorum(missing, waiting, awaited)
        try:
            self.participants.require_every_label(missing)
        except StudyError as error:
            if not waiting and not awaited:
                raise
            raise waits_for_people(self.study, waiting, awaited, str(error)) from None
        return missing

    def _wait_for_sites(self) -> set[str]:
        """Wait until all sites that can be are connected, or long enough; gives those that are."""
        limit = time.monotonic() + self.study.collect.connect_s
        while True:
            connected = self.post.connected() & set(self.study.online)
            absent = set(self.study.online) - connected
            self.ledger.saw(connected, absent)
            self.stages.tell(
                STAGE, 0, len(self.study.sites), f"waiting for {', '.join(sorted(absent))}" if absent else ""
            )
            if not absent:
                return connected
            if time.monotonic() > limit:
                for site in sorted(absent):
                    self.ledger.tell(STAGE, f"did not connect within {self.study.collect.connect_s:.0f} s", site)
                return connected
            time.sleep(0.5)

    def _show(self, connected: set[str]) -> tuple[dict[str, list[bool]], list[str]]:
        """Show the study; gives which images each site lacks that takes part, and the sites that have not consented."""
        request = questions.show(self.study, self.catalogue, self.participants.seals)
        inquiry = self._inquiry(wire.DescribeReply, connected)
        for site in self.study.online:
            if site in connected:
                inquiry.ask(site, 0, lambda: request, self.study.collect.deadline_s)
        missing: dict[str, list[bool]] = {}
        waiting: list[str] = []
        for outcome in self.stages.recorded(STAGE, inquiry.outcomes(_import_torch)):
            reply = outcome.reply
            if isinstance(reply, WireError):
                waiting += [outcome.site] if reply.code == ErrorCode.NOT_CONSENTED else []
                continue
            try:
                described = self.participants.described(outcome.site, reply)
            except WireError as error:
                self.ledger.tell(STAGE, str(error), outcome.site)
                continue
            self.participants.takes_part(outcome.site, described)
            missing[outcome.site] = described.missing
            self.stages.tell(STAGE, len(missing), len(self.study.sites))
        return missing, waiting

    def _offer(self, sites: list[str]) -> None:
        """Send the images, once, to sites that have not consented: their people look at them before they decide."""
        new = [site for site in sites if site not in self.ledger.results("offered")]
        count = questions.chunks(self.study, self.catalogue)
        inquiry = self._inquiry(wire.PredictReply, new)
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

    def _require_quorum(self, missing: Collection[str], waiting: Collection[str], awaited: Collection[str]) -> None:
        """Refuse to go on with too few sites: until people have consented or brought files, or for good."""
        told = f"{len(missing)} of {len(self.study.sites)} sites take part, and the quorum is {self.study.quorum}"
        if len(missing) < self.study.quorum <= len(missing) + len(waiting) + len(awaited):
            raise waits_for_people(self.study, waiting, awaited, told)
        for site in awaited:
            self.ledger.tell(STAGE, "takes no part yet: its answer file is not imported", site)
        if len(missing) < self.study.quorum:
            faults = [f"{event.site}: {event.text}" for event in self.ledger.events() if event.stage == STAGE]
            raise StudyError(
                "\n  ".join([f"{told}. Mend the sites and start the study again.", *dict.fromkeys(faults)])
            )

    def _inquiry(self, reply: type[Any], asked: Iterable[str]) -> Inquiry[Any]:
        collect = self.study.collect
        return Inquiry(self.post, reply, collect.retries, collect.connect_s, self.stages.watch(STAGE, asked))


def _import_torch() -> None:
    """Import what the student's stages need: it takes seconds, and the sites have just been asked something."""
    import consilium.server.distill  # noqa: F401 - for what it imports
