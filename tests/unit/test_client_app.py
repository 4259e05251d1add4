"""The ClientApp relays, and holds nothing."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.app.metadata import validate_message_type

from consilium.clients import app as client_app
from consilium.common import wire
from consilium.common.errors import ErrorCode, WireError

SECRET = "/srv/patients/jane-doe.dcm"  # noqa: S105 - not to get out
ENVELOPE = {"study": "a" * 64, "catalogue": "b" * 64}
EXCHANGES: list[tuple[wire.Envelope, wire.Envelope]] = [
    (
        wire.DescribeRequest(
            **ENVELOPE, settings='name = "x"', manifest=b"{}", signature=b"s", signer=b"k", sealing_key=b"",
            sealing_signature=b"",
        ),
        wire.DescribeReply(**ENVELOPE, site="north", output="soft", labels=["lesion"], teacher="{}", missing=b"", signer=b""),
    ),
    (
        wire.PredictRequest(**ENVELOPE, ids=["c" * 64], pixels=[]),
        wire.PredictReply(
            **ENVELOPE, site="north", ids=["c" * 64], masks=[b"\0\1"], abstained=[], key=b"", signature=b"", seconds=0.25,
        ),
    ),
    (
        wire.EvaluateRequest(**ENVELOPE, card="{}", weights=b"w"),
        wire.EvaluateReply(
            **ENVELOPE, site="north", teacher_mean=99.5, teacher_std=0.1, student_mean=1.0, student_std=0.0,
            test_images=3, train_images=0,
        ),
    ),
    (
        wire.FineTuneRequest(**ENVELOPE, card="{}", weights=b"w"),
        wire.FineTuneReply(**ENVELOPE, site="north", mean=50.0, std=1.0, test_images=3, train_images=4),
    ),
]  # fmt: skip


class OneAnswer:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def _say(self, _request: wire.Envelope) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    describe = predict = evaluate = fine_tune = _say


@pytest.mark.parametrize(("request_", "reply"), EXCHANGES, ids=lambda message: type(message).__name__)
def test_a_reply_is_what_the_site_said(request_: wire.Envelope, reply: wire.Envelope) -> None:
    content = client_app.answer(OneAnswer(reply), type(request_), wire.to_record(request_))
    assert wire.from_record(type(reply), content) == reply


@pytest.mark.parametrize(
    ("said", "code"),
    [(WireError(ErrorCode.NO_DATA, SECRET), "no-data"), (OSError(SECRET), "site-failed"), (SECRET, "site-failed")],
    ids=["a refusal", "a failure", "no message at all"],
)
def test_an_error_is_a_code_and_nothing_else(said: object, code: str) -> None:
    content = client_app.answer(OneAnswer(said), wire.PredictRequest, wire.to_record(EXCHANGES[1][0]))
    assert dict(content.config_records) == {wire.ERROR_RECORD: ConfigRecord({"code": code})}
    assert len(content) == 1


@pytest.mark.parametrize(
    "content", [RecordDict(), RecordDict({wire.RECORD: ConfigRecord({"protocol": wire.PROTOCOL})})]
)
def test_content_that_is_no_message_is_answered_with_a_code(content: RecordDict) -> None:
    answer = client_app.answer(OneAnswer(None), wire.PredictRequest, content)
    assert answer.config_records[wire.ERROR_RECORD] == {"code": "bad-message"}


def test_every_action_of_the_wire_is_a_flower_message_type_and_is_answered() -> None:
    assert all(validate_message_type(action) for action in wire.ACTIONS.values())
    for kind, action in wire.ACTIONS.items():
        (request,) = (one for one, _ in EXCHANGES if isinstance(one, kind))
        assert ask(action, request, {"gateway": "unix:/no/such.sock"}).has_content()


def ask(action: str, request: wire.Envelope, node: dict[str, str | int], run: dict[str, str] | None = None) -> Message:
    message = Message(wire.to_record(request), metadata=Metadata(1, "m", 2, 1, "", "", time.time(), 60.0, action))
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run or {})
    reply: Message = client_app.app(message, context)
    return reply


@pytest.mark.parametrize(
    "node", [{"gateway": "unix:/no/such.sock"}, {}, {"partition-id": 9}], ids=["gone", "not named", "no such site"]
)
def test_a_gateway_that_cannot_be_reached_is_told_by_code(node: dict[str, str | int]) -> None:
    run = {"sites-folder": "/no/such", "sites": "north"} if "partition-id" in node else {}
    reply = ask("query.predict", EXCHANGES[1][0], node, run)
    assert reply.content.config_records[wire.ERROR_RECORD] == {"code": "gateway-unreachable"}


RELAY_WITHOUT_TORCH = """
import sys
import time
from consilium.clients import app
from consilium.clients.gateway import serve
from consilium.common import wire
from flwr.app import Context, Message, Metadata, RecordDict

class Site:
    def predict(self, request):
        return wire.PredictReply(study=request.study, catalogue=request.catalogue, site="north", ids=request.ids,
                                 masks=[b"mask"], abstained=[], key=b"", signature=b"", seconds=0.0)

request = wire.PredictRequest(study="a" * 64, catalogue="b" * 64, ids=["c" * 64], pixels=[])
with serve(Site(), "unix:" + sys.argv[1] + "/s") as gateway:
    context = Context(1, 1, {"gateway": gateway.address}, RecordDict(), {})
    metadata = Metadata(1, "m", 2, 1, "", "", time.time(), 60.0, "query.predict")
    reply = app.app(Message(wire.to_record(request), metadata=metadata), context)
assert wire.from_record(wire.PredictReply, reply.content).masks == [b"mask"]
print("torch" in sys.modules, "consilium.clients.site" in sys.modules)
"""


def test_the_relay_imports_no_torch() -> None:
    with tempfile.TemporaryDirectory(prefix="consilium-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", RELAY_WITHOUT_TORCH, folder], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_in_flowers_simulation_the_site_is_opened_in_the_process(tmp_path: Path) -> None:
    """Two sites, of which the second is this partition's; without a trained teacher it can only say that it cannot be opened."""
    for name in ("north", "east"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.toml").write_text(f'name = "{name}"\n')
    run = {"sites-folder": str(tmp_path), "sites": "north,east"}
    reply = ask("query.predict", EXCHANGES[1][0], {"partition-id": 1, "num-partitions": 2}, run)
    assert reply.content.config_records[wire.ERROR_RECORD] == {"code": "gateway-unreachable"}
