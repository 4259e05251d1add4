"""Files for a site without a network path: the same masks as over the network, the same checks, and nothing more gets out."""

import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.clients import audit, exchange, review
from consilium.clients import cli as site_cli
from consilium.clients.consent import ConsentBook, State
from consilium.clients.site import Site
from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import wire
from consilium.common.catalogue import CatalogueImage, build
from consilium.common.datasets import labelled
from consilium.common.errors import (
    AnswerFileError,
    ConsentError,
    DataError,
    ErrorCode,
    SettingsError,
    StateError,
    WireError,
)
from consilium.common.exchange import MAGIC, Header, reading, writing
from consilium.common.identity import signing
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.server import cli, labelled_set, status
from consilium.server import exchange as coordinator
from consilium.server.app import run_stages
from consilium.server.ledger import Ledger, stop_of
from consilium.server.participants import Participants
from consilium.server.report.metrics import metrics
from consilium.server.run_folder import RunFolder
from consilium.server.seals import offer_key
from consilium.server.study_run import StudyRun
from tests.federation_in_memory import SitesInMemory
from tests.unit.test_site import SIZE, label_data, make_home

IMAGES, CHUNK = 5, 2
TODAY = datetime.now(UTC).date()
TEACHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "north": lambda images: images,
    "east": lambda images: images**2,
    "west": lambda images: 1 - images,
}


@dataclass
class Federation:
    """A study of three sites in a run folder, and the sites' homes; west is offline."""

    folder: Path
    key: Ed25519PrivateKey
    run: StudyRun

    def site(self, name: str, **policy: object) -> Site:
        home = make_home(self.folder / name, **{"sealed": True} | policy)
        return Site(named(home, name), ModuleTeacher(TEACHERS[name]))

    def answer(self, request: Path, out: str = "west.answer", **policy: object) -> Path:
        path = self.folder / out
        site = self.site("west", **policy)
        exchange.answer(
            named(make_home(self.folder / "west", **{"sealed": True} | policy), "west"), site, request, path
        )
        return path

    def export(self, out: str = "west.request", site: str = "west") -> Path:
        return coordinator.export(self.run.folder.root, site, self.key, self.folder / out)

    def take(self, path: Path) -> coordinator.Imported:
        return coordinator.import_answer(self.run, path, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        return signing.fingerprint(
            signing.public_key_of(signing.signing_key(self.folder / "west" / "keys" / "answers.pem"))
        )

    def post(self, *names: str) -> SitesInMemory:
        return SitesInMemory({name: self.site(name) for name in names})

    def collect(self, *names: str) -> np.ndarray:
        post = self.post(*names)
        self.run.collect(post, self.run.describe(post))
        return np.array(self.run.pseudo_masks.read())


def named(home: object, name: str) -> object:
    settings = home.settings.model_copy(update={"name": name})
    return type(home)(settings, home.folder)


def federation(
    folder: Path, offline: tuple[str, ...] = ("west",), labelled_images: int = 0, **study: object
) -> Federation:
    run = RunFolder(folder / "run")
    training = {"image-budget": 8, "batch": 2, "device": "cpu", "threads": 1, "augment": False}
    values = {
        "name": "trial",
        "preset": "paper",
        "sites": ["north", "east", "west"],
        "image": {"size": SIZE},
        "collect": {"chunk": CHUNK, "connect-s": 0.1, "offline": list(offline)},
        "exclusion": {"alpha": 0.0, "beta": 8.0},
        "student": {"onnx": False, "network": {"name": "unet", "width": 4}, "training": training},
        "fine-tune": {"sites": ["west"], "training": training},
    } | study
    run.create(parse(Study, values, "test"))
    key = signing.signing_key(folder / "signing.pem")
    images = np.random.default_rng(1).integers(0, 256, (IMAGES, 1, SIZE, SIZE), np.uint8)
    own = labelled.Labelled(images, images // 128, ("x",) * IMAGES, ("",) * IMAGES).take(np.arange(labelled_images))
    if labelled_images:
        labelled_set.pack(run, own, ["lesion"])
    listed = [*labelled_set.catalogue_images(own), *(CatalogueImage(image, "x") for image in images[labelled_images:])]
    made = build(run.catalogue, "shared", listed, key)
    offer_key(run, made.hash, key)
    return Federation(folder, key, StudyRun(run, run.open_study(), made, Ledger.open(run.ledger)))


@pytest.fixture
def case(tmp_path: Path) -> Federation:
    return federation(tmp_path)


@pytest.mark.parametrize("method", ["weighted-mean", "stack"])
def test_the_pseudo_masks_are_those_of_a_connected_site_bit_for_bit(tmp_path: Path, method: str) -> None:
    more = {"labelled_images": 3, "fusion": {"method": method}}
    connected, offline = federation(tmp_path / "a", (), **more), federation(tmp_path / "b", **more)
    taken = offline.take(offline.answer(offline.export()))
    assert (taken.site, taken.masks, taken.abstained) == ("west", IMAGES, 0)
    expected = connected.collect("north", "east", "west")
    np.testing.assert_array_equal(offline.collect("north", "east"), expected)
    assert set(offline.run.ledger.answers()) == {"north", "east", "west"}
    assert {site for site, _ in offline.run.ledger._database.execute("SELECT site, chunk FROM ask")} == {
        "north",
        "east",
    }
    np.testing.assert_array_equal(offline.run.watched.of("west"), connected.run.watched.of("west"))


def test_no_request_is_written_for_a_stack_that_cannot_be_fitted(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="lists none"):
        federation(tmp_path, fusion={"method": "stack"}).export()


def test_a_study_whose_sites_are_all_offline_asks_nobody(tmp_path: Path) -> None:
    case = federation(tmp_path, ("west",), sites=["west"])
    case.take(case.answer(case.export()))
    np.testing.assert_array_equal(case.collect(), 255 - case.run.catalogue.pixels)


def test_a_study_awaits_the_file_which_is_no_fault_and_asks_the_others_for_no_mask(case: Federation) -> None:
    with pytest.raises(AnswerFileError, match="awaits the answer file of west") as waiting:
        case.collect("north", "east")
    case.run.ledger.awaits(waiting.value)
    assert isinstance(stop_of(case.run.folder.ledger), AnswerFileError)
    told = status.status(case.run.folder.root)
    assert (told["status"], told["sites"]["west"]["describe"]) == ("awaits-answer", "no file yet")
    assert "west" in told["awaits"]
    assert case.run.ledger.answered_images() == {}
    case.take(case.answer(case.export()))
    told = status.status(case.run.folder.root)
    assert (told["status"], told["sites"]["west"]["describe"]) == ("awaits-answer", "done")
    assert "start the same command again" in told["awaits"]


def test_a_study_that_also_waits_for_consent_says_both(case: Federation) -> None:
    careful = SitesInMemory({"north": case.site("north", **{"auto-approve": False}), "east": case.site("east")})
    with pytest.raises(ConsentError, match=r"waits for consent: north(.|\n)*awaits the answer file of west"):
        case.run.describe(careful)


def test_with_a_quorum_the_study_goes_on_without_the_file_and_one_that_comes_too_late_is_refused(
    tmp_path: Path,
) -> None:
    case = federation(tmp_path, collect={"chunk": CHUNK, "connect-s": 0.1, "offline": ["west"], "quorum": 2})
    answer = case.answer(case.export())
    case.collect("north", "east")
    assert set(case.run.ledger.answers()) == {"north", "east"}
    assert any(event.site == "west" and "not imported" in event.text for event in case.run.ledger.events())
    with pytest.raises(StateError, match="of no use"):
        case.take(answer)


def test_an_offline_site_does_not_evaluate_or_fine_tune_and_the_report_says_so(case: Federation) -> None:
    torch.set_num_threads(1)
    for name in ("north", "east"):
        label_data(make_home(case.folder / name))
    case.take(case.answer(case.export()))
    run_stages(case.run, case.post("north", "east"))
    measured = json.loads(case.run.folder.metrics.read_text())
    assert measured["status"] == "finished"
    assert [entry["offline"] for entry in measured["sites"].values()] == [False, False, True]
    assert measured["sites"]["west"]["images"]["answered"] == IMAGES
    assert measured["sites"]["west"]["student"]["local_dice"] is None
    assert measured["sites"]["north"]["student"]["local_dice"]["n"] > 0
    assert "offline" in case.run.folder.report.read_text()
    told = status.status(case.run.folder.root)["sites"]["west"]
    assert (told["describe"], told["evaluate"], told["fine_tune"]) == ("done", "offline", "offline")


# --- consent


def test_nothing_leaves_without_consent_and_a_person_decides_by_the_file_alone(
    case: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, out = case.export(), tmp_path / "west.answer"
    with pytest.raises(ConsentError, match="review"):
        case.answer(request, **{"auto-approve": False})
    assert not out.exists()
    assert not list(tmp_path.glob("*.partial"))
    (line,) = audit.checked(tmp_path / "west" / "audit.jsonl")
    assert (line["action"], line["result"], line["masks"]) == ("describe", "not-consented", 0)

    site_toml = tmp_path / "west" / "site.toml"
    site_toml.write_text(f'name = "west"\n[teacher]\nsize = {SIZE}\n[data]\nsize = {SIZE}\n[policy]\nmin-images = 1\n')

    def say(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            site_cli.main([arguments[0], str(site_toml), *arguments[1:]])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert f"{IMAGES} of {IMAGES} images are here" in say("review", str(request))
    assert "consents to trial" in say("approve", str(request))
    case.answer(request, **{"auto-approve": False})
    told = audit.what_left(tmp_path / "west" / "audit.jsonl")["studies"][case.run.study.digest]
    assert (told["masks"], told["repeats"], told["refusals"]) == (IMAGES, 0, {"not-consented": 1})
    say("revoke", str(request))
    with pytest.raises(ConsentError, match="revoked"):
        case.answer(request, "again.answer", **{"auto-approve": False})


def test_a_consent_revoked_while_it_answers_leaves_no_file(case: Federation, tmp_path: Path) -> None:
    request = case.export()
    home = named(make_home(tmp_path / "west", **{"sealed": True, "auto-approve": False}), "west")
    shown = exchange.show(home, request)
    book = ConsentBook(home.consents, "west")
    book.decide(shown.request, shown.signer, "approved", TODAY)
    asked = []

    def revoking(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        if len(asked) == 2:
            book.decide(shown.request, shown.signer, "revoked", TODAY)
        return images

    with pytest.raises(WireError) as refused:
        exchange.answer(home, Site(home, ModuleTeacher(revoking)), request, tmp_path / "out")
    assert refused.value.code == ErrorCode.NOT_CONSENTED
    assert not (tmp_path / "out").exists()
    assert audit.what_left(tmp_path / "west" / "audit.jsonl")["studies"][case.run.study.digest]["masks"] == CHUNK


def test_the_budget_and_the_sites_own_images_hold_as_behind_the_gateway(case: Federation, tmp_path: Path) -> None:
    request = case.export()
    with pytest.raises(WireError) as refused:
        case.answer(request, **{"mask-budget": 3})
    assert refused.value.code == ErrorCode.REFUSED_BY_POLICY
    own = np.array(case.run.catalogue.pixels[3:4])
    labelled.pack(make_home(tmp_path / "west").train_set, labelled.Labelled(own, own * 0, ("patient",), ("",)))
    assert case.take(case.answer(request)).abstained == 1
    case.collect("north", "east")
    assert case.run.ledger.abstentions("west") == {3}


def traffic(run: StudyRun, site: str, action: str) -> tuple[int, int]:
    """Bytes that a site sent and received with one kind of message."""
    query = "SELECT sent, received FROM traffic WHERE site = ? AND action = ?"
    return run.ledger._database.execute(query, (site, action)).fetchone()


def test_what_travelled_in_files_is_counted_as_over_the_network_and_told_the_same_everywhere(tmp_path: Path) -> None:
    connected, offline = federation(tmp_path / "a", ()), federation(tmp_path / "b")
    connected.collect("north", "east", "west")
    request = offline.export()
    offline.take(offline.answer(request))
    offline.collect("north", "east")
    asked, told = (
        [wire.size_of(one) for one in messages(path)] for path in (request, request.with_name("west.answer"))
    )
    assert traffic(offline.run, "west", "describe") == (told[0], asked[0])
    assert traffic(offline.run, "west", "predict") == (sum(told[1:]), sum(asked[1:]))
    assert sum(asked[1:]) == traffic(connected.run, "west", "predict")[1]
    west = metrics(offline.run)["sites"]["west"]
    shown = status.status(offline.run.folder.root)["sites"]["west"]
    assert [west[key] for key in ("bytes_sent", "bytes_received")] == [sum(told), sum(asked)]
    assert [shown[key] for key in ("bytes_sent", "bytes_received")] == [sum(told), sum(asked)]
    assert west["bytes_per_mask"] == metrics(connected.run)["sites"]["west"]["bytes_per_mask"]


def test_an_import_that_was_killed_is_done_again_and_counts_once_even_with_another_file(
    case: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file has no mask of the fourth image, which is the site's own; then it is not any more."""
    request, home = case.export(), make_home(case.folder / "west")
    own = np.array(case.run.catalogue.pixels[3:4])
    labelled.pack(home.train_set, labelled.Labelled(own, own * 0, ("patient",), ("",)))
    first = case.answer(request, "first.answer")
    shutil.rmtree(home.train_set)
    second = case.answer(request, "second.answer")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Participants, "takes_part", killed)
        with pytest.raises(KeyboardInterrupt):
            case.take(first)
    assert case.run.ledger.abstentions("west") == {3}
    assert case.run.ledger.traffic() == {}
    assert case.take(second).abstained == 0
    assert case.run.ledger.abstentions("west") == set()
    assert case.run.ledger.traffic()["west"][0] == sum(map(wire.size_of, messages(second)))


def test_interrupted_and_started_again_it_gives_no_image_a_second_mask(case: Federation, tmp_path: Path) -> None:
    request = case.export()
    home = named(make_home(tmp_path / "west", sealed=True), "west")
    calls = []

    def tired(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1 - images

    def retrained(images: torch.Tensor) -> torch.Tensor:
        return images * 0

    with pytest.raises(KeyboardInterrupt):
        exchange.answer(home, Site(home, ModuleTeacher(tired)), request, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told: list[tuple[int, int]] = []
    exchange.answer(home, Site(home, ModuleTeacher(retrained)), request, tmp_path / "out", lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]
    case.take(tmp_path / "out")
    case.collect("north", "east")
    own = case.run.watched.of("west")
    np.testing.assert_array_equal(own[:CHUNK], 255 - case.run.catalogue.pixels[:CHUNK])
    assert not own[CHUNK:].any()
    left = audit.what_left(tmp_path / "west" / "audit.jsonl")["studies"][case.run.study.digest]
    assert (left["masks"], left["repeats"]) == (IMAGES, CHUNK)


# --- what is refused


def parts(path: Path) -> tuple[dict[str, object], list[bytes]]:
    """The header and the messages of a file, read as the page on the wire has it."""
    data = path.read_bytes()
    assert data.startswith(b"consilium exchange 1\n")
    at, found = 21, []
    while at < len(data) - 64:
        (size,) = struct.unpack_from(">I", data, at)
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return json.loads(found[0]), found[1:]


def signed(path: Path, header: dict[str, object], messages: list[bytes], key: Ed25519PrivateKey) -> Path:
    """Write a file as the page on the wire has it: what someone with the key could make."""
    data = b"consilium exchange 1\n"
    for part in (json.dumps(header, separators=(",", ":")).encode(), *messages):
        data += struct.pack(">I", len(part)) + part
    domain = f"consilium exchange {header['kind']} 1".encode()
    path.write_bytes(data + signing.sign(key, domain, hashlib.sha256(data).digest()))
    return path


def test_the_file_is_what_the_page_on_the_wire_says(case: Federation, tmp_path: Path) -> None:
    header, messages = parts(case.export())
    assert header == {
        "kind": "request", "site": "west", "study": case.run.study.digest, "catalogue": case.run.catalogue.hash,
        "signer": case.run.catalogue.signer.hex(), "messages": 4,
    }  # fmt: skip
    assert wire.from_bytes(wire.DescribeRequest, messages[0]).manifest == case.run.catalogue.manifest_bytes
    asked = [wire.from_bytes(wire.PredictRequest, message) for message in messages[1:]]
    assert [name for one in asked for name in one.ids] == [entry.id for entry in case.run.catalogue.manifest.images]
    again = signed(tmp_path / "by-hand", header, messages, case.key)
    assert again.read_bytes() == (tmp_path / "west.request").read_bytes()


def messages(path: Path) -> list[wire.Envelope]:
    """The messages of a file, read."""
    header, held = parts(path)
    kinds: tuple[type[wire.Envelope], type[wire.Envelope]] = (wire.DescribeReply, wire.PredictReply)
    if header["kind"] == "request":
        kinds = (wire.DescribeRequest, wire.PredictRequest)
    return [wire.from_bytes(kinds[number > 0], data) for number, data in enumerate(held)]


@pytest.fixture
def answered(case: Federation) -> Federation:
    case.answer(case.export())
    return case


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the header": lambda data: flip(data, 100),
    "a bit in the middle": lambda data: flip(data, len(data) // 2),
    "a bit of the signature": lambda data: flip(data, len(data) - 1),
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "cut to the header": lambda data: data[:300],
    "cut in the header": lambda data: data[:40],
    "something behind it": lambda data: data + b"x",
    "nothing": lambda _data: b"",
    "another format": lambda data: b"PK\3\4" + data,
    "a length without end": lambda data: data[:21] + b"\xff\xff\xff\xff" + data[25:],
    "a header that is no JSON": lambda data: data[:21] + struct.pack(">I", 3) + b"{{{" + data[25:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_on_either_side_and_leaves_nothing(name: str, answered: Federation) -> None:
    request, answer = answered.folder / "west.request", answered.folder / "west.answer"
    for path in (request, answer):
        path.write_bytes(DAMAGES[name](path.read_bytes()))
    with pytest.raises(DataError):
        answered.answer(request, "second.answer")
    with pytest.raises((DataError, SettingsError)):  # a bit of the header may make it another study's
        answered.take(answer)
    assert not (answered.folder / "second.answer").exists()
    assert answered.run.ledger.sites() == {}
    assert answered.run.ledger.answered_images() == {}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_file_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    for prefix in (b"", MAGIC, MAGIC + b"\0\0\0\x10"):
        (tmp_path / "x").write_bytes(prefix + data)
        with pytest.raises(DataError), reading(tmp_path / "x", "request") as file:
            file.verify()


PATHS = ["../../etc/passwd", "/etc/passwd", "WEST", "", "a" * 64]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("field", ["site", "study", "catalogue"])
def test_a_name_that_is_a_path_reaches_no_file(name: str, field: str, answered: Federation) -> None:
    folder = answered.folder
    key = signing.signing_key(folder / "west" / "keys" / "answers.pem")
    for path, signer in ((folder / "west.request", answered.key), (folder / "west.answer", key)):
        header, messages = parts(path)
        signed(path, header | {field: name}, messages, signer)
    before = sorted(folder.rglob("*"))
    for refuse in (
        lambda: answered.answer(folder / "west.request", "second"),
        lambda: answered.take(folder / "west.answer"),
    ):
        with pytest.raises((DataError, SettingsError)):
            refuse()
    assert sorted(folder.rglob("*")) == before


def test_a_request_is_answered_only_by_the_site_it_is_for_and_for_a_coordinator_it_trusts(tmp_path: Path) -> None:
    case = federation(tmp_path, ("west", "east"))
    with pytest.raises(DataError, match=r"is for east; this is west"):
        case.answer(case.export("east.request", "east"))
    request = case.export()
    with pytest.raises(WireError) as refused:
        case.answer(request, **{"trusted-signers": ["0" * 64]})
    assert refused.value.code == ErrorCode.REFUSED_BY_POLICY
    thief = signing.make_signing_key(tmp_path / "thief.pem")
    header, messages = parts(request)
    signed(request, header | {"signer": signing.public_key_of(thief).hex()}, messages, thief)
    with pytest.raises(DataError, match="another key"):
        case.answer(request)
    with pytest.raises(DataError, match="other kind"):
        case.take(request)


def test_a_message_larger_than_the_policy_allows_is_not_read(case: Federation) -> None:
    header, messages = parts(case.export())
    signed(case.folder / "west.request", header, [messages[0], bytes(3 * 2**20)], case.key)
    with pytest.raises(DataError, match="cut off"):
        case.answer(case.folder / "west.request")
    signed(case.folder / "west.request", header | {"messages": 2}, [messages[0], bytes(3 * 2**20)], case.key)
    with pytest.raises(DataError, match=r"message 2: at most 2097152 bytes"):
        case.answer(case.folder / "west.request", **{"max-message-mib": 1})


def lie_about(field: str, value: object, number: int = 1) -> Callable[[list[bytes]], list[bytes]]:
    def lie(messages: list[bytes]) -> list[bytes]:
        kind = wire.PredictReply if number else wire.DescribeReply
        changed = wire.from_bytes(kind, messages[number]).model_copy(update={field: value})
        return [*messages[:number], wire.to_bytes(changed), *messages[number + 1 :]]

    return lie


LIES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "masks in clear": (lie_about("key", b""), "bad-seal"),
    "a seal that was changed": (lie_about("signature", bytes(64)), "bad-seal"),
    "one answer twice": (lambda m: [m[0], m[1], m[1], m[3]], "bad-mask"),
    "two answers exchanged": (lambda m: [m[0], m[2], m[1], m[3]], "bad-mask"),
    "an answer too few": (lambda m: m[:-1], "has 4 messages"),
    "an answer too many": (lambda m: [*m, m[-1]], "has 4 messages"),
    "an image that nobody asked for": (lie_about("ids", ["0" * 64] * CHUNK), "bad-mask"),
    "another study inside": (lie_about("study", "0" * 64), "another study"),
    "another catalogue inside": (lie_about("catalogue", "0" * 64, 0), "another study"),
    "another site inside": (lie_about("site", "east"), "in the name of east"),
    "a description of another site": (lie_about("site", "east", 0), "not by west"),
    "another key in the description": (lie_about("signer", bytes(32), 0), "not by west"),
    "labels that nobody asked for": (lie_about("labels", ["cat"], 0), "bad-message"),
    "a card that is no JSON": (lie_about("teacher", "}", 0), "bad-message"),
    "no description": (lambda m: [m[1], *m[1:]], "bad-message"),
    "nonsense": (lambda m: [m[0], b"nonsense", *m[2:]], "bad-message"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_lies_is_refused_though_the_site_signed_it(name: str, answered: Federation) -> None:
    path = answered.folder / "west.answer"
    header, messages = parts(path)
    lie, told = LIES[name]
    made = lie(messages)
    key = signing.signing_key(answered.folder / "west" / "keys" / "answers.pem")
    signed(path, header | {"messages": len(made)}, made, key)
    with pytest.raises(DataError, match=told):
        answered.take(path)
    assert answered.run.ledger.sites() == {}
    assert answered.run.ledger.answered_images() == {}


def test_an_answer_of_another_study_or_of_a_connected_site_is_refused(answered: Federation, tmp_path: Path) -> None:
    other = federation(tmp_path / "other", seed=7)
    with pytest.raises(SettingsError, match="answers study"):
        coordinator.import_answer(other.run, answered.folder / "west.answer", answered.fingerprint)
    none = federation(tmp_path / "none", ())
    with pytest.raises(SettingsError, match=r"collect\.offline \(empty\)"):
        coordinator.import_answer(none.run, answered.folder / "west.answer", answered.fingerprint)
    with pytest.raises(SettingsError, match=r"collect\.offline \(west\)"):
        answered.export("north.request", "north")


def test_an_answer_is_taken_once(answered: Federation) -> None:
    answered.take(answered.folder / "west.answer")
    with pytest.raises(StateError, match="imported already"):
        answered.take(answered.folder / "west.answer")
    second = answered.answer(answered.folder / "west.request", "second.answer")  # the same masks, sealed anew
    with pytest.raises(StateError, match="imported already"):
        answered.take(second)
    assert answered.run.ledger.answered_images() == {"west": IMAGES}


def test_an_import_that_was_killed_is_done_again(answered: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Participants, "takes_part", killed)
        with pytest.raises(KeyboardInterrupt):
            answered.take(answered.folder / "west.answer")
    with pytest.raises(AnswerFileError):
        answered.collect("north", "east")
    answered.take(answered.folder / "west.answer")
    answered.collect("north", "east")


def test_a_key_that_is_not_known_has_to_be_confirmed_and_then_no_other_is_taken(answered: Federation) -> None:
    path, fingerprint = answered.folder / "west.answer", answered.fingerprint
    for given_word in ("", "SHA256:something"):
        with pytest.raises(SettingsError, match="by telephone"):
            coordinator.import_answer(answered.run, path, given_word)
    header, messages = parts(path)
    forger = signing.make_signing_key(answered.folder / "forger.pem")
    forged = signed(answered.folder / "forged", header, messages, forger)
    with pytest.raises(DataError, match="not signed by"):
        coordinator.import_answer(answered.run, forged, fingerprint)
    coordinator.import_answer(answered.run, path, fingerprint)
    public = signing.public_key_of(forger)
    signed(forged, header | {"signer": public.hex()}, messages, forger)
    with pytest.raises(SettingsError, match="the key of west is"):
        coordinator.import_answer(answered.run, forged, signing.fingerprint(public))


def test_a_request_needs_the_coordinators_key_and_a_key_to_seal_to(case: Federation, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the key is that which signed"):
        coordinator.export(case.run.folder.root, "west", signing.make_signing_key(tmp_path / "k.pem"), tmp_path / "r")
    case.run.folder.sealing_key.unlink()
    with pytest.raises(StateError, match="catalogue seal"):
        case.export()


def test_no_file_is_overwritten_and_none_is_left_half_written(case: Federation, tmp_path: Path) -> None:
    request = case.export()
    before = request.read_bytes()
    with pytest.raises(SettingsError, match="not overwritten"):
        case.export()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for out in ("west.request", "link", "no/such/folder"):
        with pytest.raises(SettingsError):
            case.answer(request, out)
    assert (request.read_bytes(), request.stat().st_mode & 0o777) == (before, 0o600)
    with reading(request, "request") as file:
        header: Header = file.header
    with pytest.raises(ValueError, match="promises 4 messages; got 0"), writing(tmp_path / "none", header, case.key):
        pass
    assert not list(tmp_path.glob("none*"))


# --- the commands


def test_a_study_goes_through_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = federation(tmp_path)
    root = case.run.folder.root
    case.run.ledger.close()
    monkeypatch.chdir(tmp_path)

    def say(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["consilium", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
        told = capsys.readouterr()
        return " ".join((told.out + told.err).split())

    told = say("exchange", "export", str(root), "--site", "west", "--key", str(tmp_path / "signing.pem"))
    assert "trial-west.request" in told
    assert signing.fingerprint(signing.public_key_of(case.key)) in told
    answer = case.answer(tmp_path / "trial-west.request")
    assert "by telephone" in say("exchange", "import", str(root), str(answer), code=2)
    assert f"{IMAGES} masks" in say("exchange", "import", str(root), str(answer), "--signed-by", case.fingerprint)
    assert "imported already" in say("exchange", "import", str(root), str(answer), code=1)


def test_a_site_answers_by_command_and_3_is_its_exit_status_without_consent(
    case: Federation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = case.export()
    home = make_home(case.folder / "west")
    path = home.folder / "site.toml"
    home.folder.mkdir(exist_ok=True)
    (home.folder / "asked.py").write_text("def teacher(images):\n    return images / 255\n")
    path.write_text(
        'name = "west"\n[teacher]\nkind = "callable"\nfunction = "asked:teacher"\ncode = "."\noutput = "probabilities"\n'
        f"[data]\nsize = {SIZE}\n"
    )
    monkeypatch.chdir(case.folder)

    def say(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            site_cli.main([arguments[0], str(path), *arguments[1:]])
        assert (ended.value.code or 0) == code
        told = capsys.readouterr()
        return told.out + told.err

    assert "is not answered: nobody here has consented" in say("answer", str(request), code=3)
    (one,) = review.listed(named(home, "west"))
    assert one.state == State.WAITING
    say("approve", str(request))
    told = say("answer", str(request))
    assert f"{IMAGES} masks, sealed, in west.answer" in told
    assert case.fingerprint in told
    assert case.take(case.folder / "west.answer").masks == IMAGES
