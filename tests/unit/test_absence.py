"""Sites that go away, come back, and answer late; coordinators that are killed between two answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.proto.node_pb2 import NodeInfo

from consilium.common import wire
from consilium.common.errors import ErrorCode, StudyError
from consilium.server.app import is_silent
from consilium.server.inquiry import Letter
from tests.federation_in_memory import FederationInMemory, honest
from tests.unit.test_collect import CHUNK, COUNT, SITES, Case
from tests.unit.test_labels import open_study

Make = Callable[..., Case]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda **settings: Case(tmp_path, monkeypatch, **settings)


def goes_away(case: Case, at: float, until: float, *, loses: bool = True) -> None:
    """West is not connected from ``at`` to ``until`` (of the federation's clock), and what was under way to it is lost."""

    def look(federation: FederationInMemory) -> None:
        away = at <= federation.now < until
        federation.offline = {"west"} if away else set()
        if away and loses:
            federation.letters = [letter for letter in federation.letters if _site(letter) != "west"]

    case.federation.before_receive = look


def _site(letter: Letter) -> str:
    return "" if isinstance(letter.content, ErrorCode) else str(letter.content.config_records[wire.RECORD]["site"])


def asked(case: Case, site: str) -> int:
    return sum(name == site for name, _ in case.federation.asked)


def test_a_site_that_was_away_is_asked_again_when_it_is_back_and_the_others_are_not(make: Make) -> None:
    case = make()
    goes_away(case, 0, 30)
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert asked(case, "west") == 2 * COUNT
    assert [asked(case, site) for site in ("east", "north")] == [COUNT, COUNT]
    assert not case.ledger.asked_again()


def test_messages_that_are_lost_do_not_count_as_failures_of_the_site(make: Make) -> None:
    case = make(retries=0)
    lost = [ErrorCode.SITE_UNREACHABLE] * 3
    case.federation.behaviours["west"] = lambda request, reply: lost.pop() if lost else honest(request, reply)
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()


def test_a_site_that_stays_away_is_left_out_long_before_the_deadline(make: Make) -> None:
    case = make(quorum=2, connect_s=20.0, deadline_s=3600.0)
    goes_away(case, 0, 10_000)
    case.collect()
    assert (case.masks.read() == case.expected("east", "north")).all()
    assert case.federation.now < 40
    assert "left out until it is back: site-unreachable" in case.events()["west"]


def test_where_all_must_answer_the_study_stops_names_the_absent_site_and_goes_on_when_it_is_back(make: Make) -> None:
    case = make(connect_s=20.0)
    goes_away(case, 0, 10_000)
    with pytest.raises(StudyError, match=r"quorum is 3(.|\n)*west: left out until it is back"):
        case.collect()
    case.federation.before_receive = lambda _federation: None
    case.federation.offline = set()
    case.federation.asked.clear()
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert {site for site, _ in case.federation.asked} == {"west"}, "the others had answered"


def test_a_site_that_is_back_takes_part_again_in_the_chunks_that_are_open(make: Make) -> None:
    """East answers nothing before 100, so that every chunk is open when west is back at 60."""
    case = make(quorum=1, connect_s=20.0, deadline_s=3600.0)
    slow: list[Letter] = []

    def look(federation: FederationInMemory) -> None:
        federation.offline = {"west"} if federation.now < 60 else set()
        kept = [letter for letter in federation.letters if _site(letter) == "north"]
        slow.extend(letter for letter in federation.letters if _site(letter) == "east")
        if federation.now >= 60:
            kept += [letter for letter in federation.letters if _site(letter) == "west"]
        federation.letters = kept + (slow if federation.now >= 100 else [])

    case.federation.before_receive = look
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert "left out until it is back" in case.events()["west"]


def test_an_answer_that_comes_late_is_used_while_its_chunk_is_open(make: Make) -> None:
    """West is given up at 20; its answers come at 40 all the same, and east keeps the chunks open until 50."""
    case = make(quorum=1, connect_s=20.0, deadline_s=3600.0)
    held: dict[str, list[Letter]] = {"west": [], "east": []}

    def look(federation: FederationInMemory) -> None:
        federation.offline = {"west"} if federation.now >= 1 else set()
        for site, due in (("west", 40), ("east", 50)):
            held[site] += [letter for letter in federation.letters if _site(letter) == site]
            federation.letters = [letter for letter in federation.letters if _site(letter) != site]
            if federation.now >= due:
                federation.letters += held[site]

    case.federation.before_receive = look
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert asked(case, "west") == COUNT


def test_an_answer_of_a_coordinator_that_was_killed_is_not_asked_for_again(make: Make) -> None:
    """The second start asks north alone: of all chunks east's and west's answers are in the ledger."""
    case = make()

    def killed(federation: FederationInMemory) -> None:
        federation.letters = [letter for letter in federation.letters if _site(letter) != "north"]
        if not federation.letters:
            raise KeyboardInterrupt

    case.federation.before_receive = killed
    with pytest.raises(KeyboardInterrupt):
        case.collect()
    assert not case.ledger.finished_chunks()
    case.federation.asked.clear()
    case.federation.before_receive = lambda _federation: None
    case.collect()
    assert {site for site, _ in case.federation.asked} == {"north"}
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert {site: held[0] for site, held in case.ledger.answers().items()} == dict.fromkeys(SITES, COUNT)
    assert not case.ledger.asked_again()
    assert not case.ledger.held(0)


def test_a_held_answer_that_cannot_be_read_is_asked_for_again(make: Make) -> None:
    case = make()
    case.ledger.answered("west", 1, CHUNK, 1, 0.1, b"no record at all")
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()


def test_an_answer_that_is_let_go_leaves_nothing_behind_not_even_what_it_abstained_from(make: Make) -> None:
    case = make()
    case.ledger.asked("west", 1)
    case.ledger.answered("west", 1, CHUNK - 1, 1, 0.1, b"of another version", [CHUNK + 1])
    assert case.ledger.abstentions("west") == {CHUNK + 1}
    case.ledger.forget("west", 1, range(CHUNK, 2 * CHUNK))
    case.ledger.asked("west", 1)
    assert (case.ledger.answered_images(), case.ledger.held(1), case.ledger.asked_again()) == ({}, {}, [])
    case.ledger.answered("west", 1, CHUNK - 1, 1, 0.1, b"of another version", [CHUNK + 1])
    case.collect()
    assert case.ledger.abstentions("west") == set()
    assert case.ledger.answers()["west"][0] == COUNT
    assert (case.masks.read() == case.expected(*SITES)).all()


def test_who_is_connected_is_told_while_waiting(make: Make) -> None:
    case = make()
    goes_away(case, 0, 30)
    told: list[set[str]] = []
    case.collect(on_look=told.append)
    assert {"east", "north"} in told
    assert set(SITES) in told


def lied_to(case: Case, lie: str) -> np.ndarray:
    """East and north send a disc, uint8 (1, 32, 32), and west something else; gives the disc."""
    rng = np.random.default_rng(0)
    disc = np.where(np.hypot(*(np.mgrid[:32, :32] - 15.5)) < 6, 255, 0).astype(np.uint8)[None]
    lies = {"inverted": 255 - disc, "noise": rng.integers(0, 256, disc.shape).astype(np.uint8)}
    case.federation.masks = {"east": disc, "north": disc, "west": lies[lie]}
    return disc


@pytest.mark.parametrize("lie", ["inverted", "noise"])
def test_trimmed_masks_are_the_honest_sites_and_the_liar_is_named_by_its_agreement(make: Make, lie: str) -> None:
    """East and north agree; west sends something else: with a trim of 1 of 3 the middle level is always an honest one."""
    case = make(fusion={"method": "trimmed-mean"})
    disc = lied_to(case, lie)
    case.collect()
    assert (case.masks.read() == disc).all()
    held = case.ledger.agreement()
    assert {site: one.n for site, one in held.items()} == dict.fromkeys(SITES, COUNT)
    assert held["west"].mean < 25 < 50 <= held["east"].mean == held["north"].mean


@pytest.mark.parametrize("lie", ["inverted", "noise"])
def test_where_outliers_are_silent_a_mean_is_that_of_the_honest_sites(make: Make, lie: str) -> None:
    case = make(fusion={"outliers": "silent"})
    disc = lied_to(case, lie)
    case.collect()
    assert (case.masks.read() == disc).all()
    assert case.ledger.silent() == {"east": 0, "north": 0, "west": COUNT}


class CutWhileTold:
    """A `Post` to two sites: east is lost as soon as it was asked, and in the end both decline."""

    def __init__(self) -> None:
        self.looks = 0
        self.tickets: list[str] = []

    def connected(self) -> set[str]:
        self.looks += 1
        return {"north", "east"} if self.looks == 1 else {"north"}

    def send(self, site: str, _action: wire.Action, _content: RecordDict, _timeout_s: float) -> str:
        self.tickets.append(site)
        return site

    def receive(self) -> list[Letter]:
        tickets, self.tickets = self.tickets, []
        return [Letter(ticket, wire.error_record(ErrorCode.REFUSED_BY_POLICY)) for ticket in tickets]


def test_a_site_that_is_lost_while_it_is_told_of_the_study_is_shown_as_away(tmp_path: Path) -> None:
    run = open_study(tmp_path, ("north", "east"))
    with pytest.raises(StudyError, match="0 of 2 sites take part"):
        run.describe(CutWhileTold())
    assert {site: connected for site, (_, connected) in run.ledger.seen().items()} == {"north": True, "east": False}
    assert any("is not connected" in event.text for event in run.ledger.events() if event.site == "east")


@pytest.mark.parametrize(("now", "silent"), [(940.0, False), (994.9, False), (995.1, True), (1000.0, True)])
def test_a_node_is_silent_shortly_before_flower_says_so(now: float, silent: bool) -> None:
    assert is_silent(NodeInfo(node_id=1, online_until=1000.0), now) is silent
    assert not is_silent(NodeInfo(node_id=1), now), "nodes of a simulation have no heartbeat"
