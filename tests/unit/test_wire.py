"""The wire: frozen bytes, strict reading, and errors that tell nothing."""

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given
from hypothesis import strategies as st

from consilium.common import wire
from consilium.common.errors import PUBLIC_TEXT, ErrorCode, WireError

GOLDEN = Path(__file__).parents[1] / "golden" / "wire.json"
ENVELOPE = {"package": "0.0.0", "study": "5" * 64, "catalogue": "c" * 64}
A, B = "a" * 64, "b" * 64
MESSAGES: list[wire.Envelope] = [
    wire.DescribeRequest(
        **ENVELOPE,
        settings="name = 'x'\n",
        manifest=b"{}",
        signature=b"s",
        signer=b"p",
        sealing_key=b"k",
        sealing_signature=b"t",
    ),
    wire.DescribeReply(
        **ENVELOPE, site="north", output="soft", labels=["lesion"], teacher="{}", missing=b"\x80", signer=b"p"
    ),
    wire.PredictRequest(**ENVELOPE, ids=[A, B], pixels=[b"\x01"]),
    wire.PredictReply(
        **ENVELOPE, site="north", ids=[A], masks=[b"\x01"], abstained=[B], key=b"k", signature=b"s", seconds=0.5
    ),
    wire.EvaluateRequest(**ENVELOPE, card="{}", weights=b"w"),
    wire.EvaluateReply(
        **ENVELOPE,
        site="north",
        teacher_mean=80.5,
        teacher_std=2.0,
        student_mean=90.25,
        student_std=1.0,
        test_images=4,
        train_images=9,
    ),
    wire.FineTuneRequest(**ENVELOPE, card="{}", weights=b"w"),
    wire.FineTuneReply(**ENVELOPE, site="north", mean=91.0, std=1.5, test_images=4, train_images=9),
]


def on_flower(message: wire.Envelope) -> bytes:
    return recorddict_to_proto(wire.to_record(message)).SerializeToString(deterministic=True)


def from_flower(data: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def fields(message: wire.Envelope, **changes: object) -> RecordDict:
    return RecordDict({wire.RECORD: ConfigRecord(message.model_dump(by_alias=True) | changes)})


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_bytes_on_flower_are_frozen(message: wire.Envelope) -> None:
    golden = bytes.fromhex(json.loads(GOLDEN.read_text())[type(message).__name__])
    assert on_flower(message) == golden
    assert wire.from_record(type(message), from_flower(golden)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_unknown_missing_and_wrong_fields_are_bad_messages(message: wire.Envelope) -> None:
    whole = message.model_dump(by_alias=True)
    bad = [fields(message, surprise=1), fields(message, study="x"), fields(message, catalogue=7)]
    bad += [RecordDict({wire.RECORD: ConfigRecord({k: v for k, v in whole.items() if k != "study"})}), RecordDict()]
    for content in bad:
        with pytest.raises(WireError) as refused:
            wire.from_record(type(message), content)
        assert refused.value.code is ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize("protocol", [0, 1, "2", 2.5])
def test_another_protocol_is_named_as_such(protocol: object) -> None:
    with pytest.raises(WireError) as refused:
        wire.from_record(wire.PredictRequest, fields(MESSAGES[2], protocol=protocol))
    assert refused.value.code is ErrorCode.BAD_PROTOCOL


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_crosses_as_its_code_alone(code: ErrorCode) -> None:
    content = wire.error_record(code)
    assert dict(content.config_records[wire.ERROR_RECORD]) == {"code": str(code)}
    with pytest.raises(WireError) as told:
        wire.from_record(wire.PredictReply, content)
    assert told.value.code is code
    assert PUBLIC_TEXT[code] in str(told.value)


@given(
    st.dictionaries(
        st.text(max_size=12), st.one_of(st.integers(0, 9), st.text(max_size=9), st.binary(max_size=9)), max_size=8
    )
)
def test_arbitrary_fields_are_refused_and_never_crash(values: dict[str, int | str | bytes]) -> None:
    for kind in wire.REPLIES:
        with pytest.raises(WireError):
            wire.validated(kind, {"protocol": 2, **values})


@given(st.lists(st.booleans(), max_size=40))
def test_flags_survive_packing(flags: list[bool]) -> None:
    assert wire.from_bits(wire.to_bits(flags), len(flags)) == flags


def test_flags_are_packed_most_significant_first() -> None:
    assert wire.to_bits([True, False, False, False, False, False, False, True, True]) == b"\x81\x80"
    with pytest.raises(WireError):
        wire.from_bits(b"\x81", 9)


def test_every_request_has_an_action_and_a_reply() -> None:
    assert wire.ACTIONS.keys() == wire.REPLIES.keys()
