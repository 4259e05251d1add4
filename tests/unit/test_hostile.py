"""A hostile ClientApp, or a hostile server behind it, at a real gateway: nothing comes out but what the policy allows.

Everything a ClientApp could do is a call at the gateway's socket, so that is where the lies are told; each is a named case.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest

from consilium.clients import audit
from consilium.clients import gateway_pb2 as pb
from consilium.clients import gateway_pb2_grpc as rpc
from consilium.clients.consent import ConsentBook
from consilium.clients.gateway import CODE_KEY, GatewayClient, serve, to_protobuf
from consilium.clients.site import Site
from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import planes, sealing, wire
from consilium.common.catalogue import SIGNATURE_DOMAIN, CatalogueImage, build
from consilium.common.errors import ErrorCode, WireError
from consilium.common.identity import signing
from consilium.common.settings import to_toml
from tests.unit.test_sealing import describe, sealed_study
from tests.unit.test_site import SIZE, Coordinator, echo, label_data, make_home

WORKERS = 4
TODAY = datetime.now(UTC).date()


@dataclass
class Hospital:
    """A site with consent to one study, behind its gateway."""

    folder: Path
    coordinator: Coordinator
    address: str
    client: GatewayClient
    honest: wire.DescribeRequest

    def decide(self, decision: str = "approved", days: int = 1) -> None:
        book = ConsentBook(self.folder / "consents", "north")
        book.decide(self.honest, self.coordinator.catalogue.signer, decision, TODAY + timedelta(days=days))

    def lines(self) -> list[dict[str, object]]:
        return list(audit.checked(self.folder / "audit.jsonl"))

    def masks_gone(self) -> int:
        return sum(int(str(line["masks"])) for line in self.lines())


@pytest.fixture
def hospital() -> Iterator[Hospital]:
    root = Path(tempfile.mkdtemp(prefix="consilium-"))  # a Unix socket's path is short
    coordinator, _, seals = sealed_study(root)
    policy = {"auto-approve": False, "sealed": True, "max-message-mib": 1, "mask-budget": 4, "max-students": 1}
    home = make_home(root / "north", **policy)
    label_data(home)
    honest = describe(coordinator, seals)
    with (
        serve(Site(home, ModuleTeacher(echo)), f"unix:{root}/s", max_message_mib=1, workers=WORKERS) as gateway,
        GatewayClient(gateway.address, timeout_s=60) as client,
    ):
        made = Hospital(home.folder, coordinator, gateway.address, client, honest)
        with pytest.raises(WireError):
            client.describe(honest)
        made.decide()
        client.describe(honest)
        yield made
    shutil.rmtree(root)


def stranger() -> np.ndarray:
    return np.random.default_rng(99).integers(0, 256, (1, SIZE, SIZE), np.uint8)


def other_catalogue(hospital: Hospital) -> wire.DescribeRequest:
    """The approved study on images of the attacker's choice, signed by the trusted coordinator itself."""
    made = build(hospital.folder / "evil", "shared", [CatalogueImage(stranger(), "x")], hospital.coordinator.key)
    signature = sealing.sign_study_key(hospital.coordinator.key, made.hash, hospital.honest.sealing_key)
    return hospital.honest.model_copy(
        update={
            "manifest": made.manifest_bytes,
            "signature": made.signature,
            "catalogue": made.hash,
            "sealing_signature": signature,
        }
    )


def signed_by_a_thief(hospital: Hospital) -> wire.DescribeRequest:
    thief = signing.make_signing_key(hospital.folder / "thief" / "key.pem")
    signature = signing.sign(thief, SIGNATURE_DOMAIN, hospital.honest.manifest)
    public = signing.public_key_of(thief)
    return hospital.honest.model_copy(update={"signature": signature, "signer": public})


def more_actions(hospital: Hospital) -> wire.DescribeRequest:
    study = hospital.coordinator.study.model_copy(update={"seed": 77})
    return hospital.honest.model_copy(update={"settings": to_toml(study), "study": study.digest})


def manifest_with_a_path(hospital: Hospital) -> wire.DescribeRequest:
    """Names become folders: the trusted coordinator names its catalogue by a path."""
    document = json.loads(hospital.honest.manifest)
    document["name"] = "../../north/keys"
    data = json.dumps(document).encode()
    signature = signing.sign(hospital.coordinator.key, SIGNATURE_DOMAIN, data)
    return hospital.honest.model_copy(update={"manifest": data, "signature": signature})


def swapped_key(hospital: Hospital) -> wire.DescribeRequest:
    return hospital.honest.model_copy(update={"sealing_key": b"\x09" + bytes(31)})


Lie = Callable[[Hospital], wire.Envelope]
LIES: dict[str, tuple[Lie, ErrorCode]] = {
    "an image of no catalogue": (
        lambda h: h.coordinator.predict(
            ids=["0" * 64], pixels=[planes.encode(stranger())]
        ), ErrorCode.UNKNOWN_IMAGE,
    ),
    "a changed image under a known id": (
        lambda h: h.coordinator.predict(0, pixels=[planes.encode(stranger())]), ErrorCode.BAD_IMAGE,
    ),
    "another catalogue for the approved study": (other_catalogue, ErrorCode.NOT_CONSENTED),
    "another study on the approved catalogue": (more_actions, ErrorCode.NOT_CONSENTED),
    "the approved list signed anew": (signed_by_a_thief, ErrorCode.BAD_SIGNATURE),
    "a forged signature": (
        lambda h: h.honest.model_copy(update={"signature": bytes(64)}), ErrorCode.BAD_SIGNATURE,
    ),
    "a study key of one's own": (swapped_key, ErrorCode.BAD_SIGNATURE),
    "no study key, so that masks come in clear": (
        lambda h: h.honest.model_copy(update={"sealing_key": b"", "sealing_signature": b""}),
        ErrorCode.REFUSED_BY_POLICY,
    ),
    "a catalogue named by a path": (manifest_with_a_path, ErrorCode.BAD_MESSAGE),
    "a study named by a path": (
        lambda h: h.honest.model_copy(update={"settings": h.honest.settings.replace('"trial"', '"../../x"')}),
        ErrorCode.BAD_MESSAGE,
    ),
    "more masks than the budget": (lambda h: h.coordinator.predict(0, 1, 2, 3, 4), ErrorCode.REFUSED_BY_POLICY),
    "a message beyond the bound": (
        lambda h: h.coordinator.evaluate(weights=bytes(2**20 + 1)), ErrorCode.TOO_LARGE,
    ),
    "pixels that expand without end": (
        lambda h: h.coordinator.predict(0, pixels=[planes.encode(np.zeros((1, 2048, 2048), np.uint8))]),
        ErrorCode.BAD_IMAGE,
    ),
    "an older protocol": (lambda h: h.coordinator.predict(0, protocol=1), ErrorCode.BAD_PROTOCOL),
}  # fmt: skip


def ask(client: GatewayClient, request: wire.Envelope) -> wire.Envelope:
    calls: dict[type, Callable[..., wire.Envelope]] = {
        wire.DescribeRequest: client.describe,
        wire.PredictRequest: client.predict,
        wire.EvaluateRequest: client.evaluate,
        wire.FineTuneRequest: client.fine_tune,
    }
    return calls[type(request)](request)


@pytest.mark.parametrize("name", LIES)
def test_nothing_comes_of(name: str, hospital: Hospital) -> None:
    lie, code = LIES[name]
    with pytest.raises(WireError) as refused:
        ask(hospital.client, lie(hospital))
    assert refused.value.code == code
    assert hospital.masks_gone() == 0
    assert hospital.client.predict(hospital.coordinator.predict(0)).ids == hospital.coordinator.ids[:1]  # still honest


@pytest.mark.parametrize(("decision", "days"), [("revoked", 1), ("approved", -1)], ids=["revoked", "expired"])
def test_nothing_comes_of_a_consent_that_ended(decision: str, days: int, hospital: Hospital) -> None:
    """Not even an answer that was given before."""
    hospital.client.predict(hospital.coordinator.predict(0))
    hospital.decide(decision, days)
    c = hospital.coordinator
    for request in (hospital.honest, c.predict(0), c.predict(1), c.evaluate(), c.fine_tune()):
        with pytest.raises(WireError) as refused:
            ask(hospital.client, request)
        assert refused.value.code == ErrorCode.NOT_CONSENTED


def test_a_consent_that_was_edited_is_none(hospital: Hospital) -> None:
    (page,) = (hospital.folder / "consents").glob("*.json")
    page.write_text(page.read_text().replace(str(TODAY + timedelta(days=1)), "2999-01-01"))
    with pytest.raises(WireError) as refused:
        hospital.client.predict(hospital.coordinator.predict(0))
    assert refused.value.code == ErrorCode.NOT_CONSENTED


def test_replays_tell_nothing_new_and_cost_nothing(hospital: Hospital) -> None:
    """A hundred repeats of four images, where four masks may leave."""
    request = hospital.coordinator.predict(0, 1, 2, 3)
    sizes = {tuple(map(len, hospital.client.predict(request).masks)) for _ in range(25)}
    assert len(sizes) == 1
    assert hospital.masks_gone() == 4
    with pytest.raises(WireError) as refused:
        hospital.client.predict(hospital.coordinator.predict(4))
    assert refused.value.code == ErrorCode.REFUSED_BY_POLICY


def test_a_flood_is_answered_within_the_budget_by_so_many_threads_and_the_gateway_lives(hospital: Hospital) -> None:
    codes: list[str] = []

    def flood() -> None:
        with GatewayClient(hospital.address, timeout_s=60) as client:
            for number in range(5):
                try:
                    client.predict(hospital.coordinator.predict(number))
                    codes.append("answered")
                except WireError as error:
                    codes.append(error.code)

    before = set(threading.enumerate())  # other tests' gateways may still be ending
    threads = [threading.Thread(target=flood) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(codes) == 120
    started = set(threading.enumerate()) - before
    assert sum(thread.name.startswith("gateway") for thread in started) <= WORKERS
    assert set(codes) <= {"answered", ErrorCode.REFUSED_BY_POLICY, ErrorCode.GATEWAY_UNREACHABLE}
    assert hospital.masks_gone() <= 4
    for number in range(5):  # whatever was turned away in the crowd, the budget is there still, and no more
        with suppress(WireError):
            hospital.client.predict(hospital.coordinator.predict(number))
    assert hospital.masks_gone() == 4


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "\0" * 64, "a" * 65])
def test_a_name_that_is_no_digest_reaches_no_file(name: str, hospital: Hospital) -> None:
    """Written straight to the socket, as no client of this package would."""
    before = sorted(hospital.folder.rglob("*"))
    whole = to_protobuf(hospital.coordinator.predict(0))
    tricks = [pb.PredictRequest.FromString(whole.SerializeToString()) for _ in range(3)]
    tricks[0].study = tricks[1].catalogue = name
    tricks[2].ids[0] = name
    with grpc.insecure_channel(hospital.address) as channel:
        for trick in tricks:
            with pytest.raises(grpc.RpcError) as refused:
                rpc.GatewayStub(channel).Predict(trick, timeout=20)
            told = {item.key: item.value for item in refused.value.trailing_metadata()}
            assert told[CODE_KEY] == "bad-message"
    assert sorted(hospital.folder.rglob("*")) == before


def test_bytes_that_are_no_message_do_not_end_the_gateway(hospital: Hospital) -> None:
    with grpc.insecure_channel(hospital.address) as channel:
        for data in (b"\xff" * 100, b"", b"\x0a\xff\xff\xff\xff\x7f"):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/consilium.Gateway/Predict")(data, timeout=20)
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/consilium.Gateway/Weights")(b"", timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert hospital.client.predict(hospital.coordinator.predict(0)).ids == hospital.coordinator.ids[:1]


POLICY_OF_THE_BUNDLE = """
def _allow(*_args, **_named): return None
require_permission = require_signer = require_sealing = require_study = require_budget = require_students = _allow
Policy = _allow
"""
CLIENT_OF_THE_BUNDLE = """
import sys, grpc
from consilium.clients import policy
assert policy.__file__.startswith(sys.argv[1]), policy.__file__
with grpc.insecure_channel(sys.argv[2]) as channel:
    for request in sys.argv[3:]:
        try:
            channel.unary_unary("/consilium.Gateway/Predict")(bytes.fromhex(request), timeout=20)
            print("answered")
        except grpc.RpcError as error:
            print(dict(error.trailing_metadata())["consilium-code"])
"""


def test_a_bundle_with_a_consilium_package_of_its_own_replaces_nothing_in_the_gateway(hospital: Hospital) -> None:
    """Its process does import its own policy, which allows everything; the gateway, another process, keeps to the site's."""
    bundle = hospital.folder.parent / "bundle"
    (bundle / "consilium" / "clients").mkdir(parents=True)
    for name, text in {"__init__.py": "", "clients/__init__.py": "", "clients/policy.py": POLICY_OF_THE_BUNDLE}.items():
        (bundle / "consilium" / name).write_text(text)
    (bundle / "client.py").write_text(CLIENT_OF_THE_BUNDLE)
    c = hospital.coordinator
    asked = [c.predict(0, 1, 2, 3, 4), c.predict(ids=["0" * 64], pixels=[planes.encode(stranger())]), c.predict(0)]
    requests = [to_protobuf(request).SerializeToString().hex() for request in asked]
    told = subprocess.run(
        [sys.executable, "client.py", str(bundle), hospital.address, *requests],
        cwd=bundle, env=os.environ | {"PYTHONPATH": str(bundle)}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout.split() == ["refused-by-policy", "unknown-image", "answered"]
    assert hospital.masks_gone() == 1


def test_a_second_student_made_to_measure_the_labels_is_refused(hospital: Hospital) -> None:
    """The policy lets one student be evaluated; Dice of many would tell the site's labels, bit by bit."""
    make = hospital.coordinator
    home_codes = []
    for card in (make.student()[0], make.student()[0], make.student()[0] + " "):
        try:
            hospital.client.evaluate(make.evaluate(card=card))
            home_codes.append("answered")
        except WireError as error:
            home_codes.append(str(error.code))
    assert home_codes == ["answered", "answered", "refused-by-policy"]
