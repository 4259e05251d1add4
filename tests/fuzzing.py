"""What may be thrown at whoever reads bytes from outside, and what must hold whatever comes.

Each target is a strategy and a check. A check gives whether the input was accepted; it raises if something is wrong: another
error than the reader's own, an answer of another shape, memory out of proportion. `tests/unit/test_fuzz.py` tries some examples,
`benchmarks/fuzz.py` as many as one likes.
"""

import hashlib
import json
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from consilium.clients import gateway_pb2 as pb
from consilium.clients.gateway import from_protobuf, to_protobuf
from consilium.clients.studies import _read_study
from consilium.common import exchange, planes, sealing, soft_mask, wire
from consilium.common.catalogue import Manifest
from consilium.common.errors import ConsiliumError, DataError, ErrorCode, WireError
from consilium.common.identity import signing
from consilium.common.joining import read_join
from consilium.common.settings import to_toml
from consilium.common.study import Study

SHAPES = st.sampled_from([(1, 8, 8), (3, 16, 16), (2, 32, 32), (1, 1, 1)])
DIGEST = "ab" * 32
MEMORY = 8 * 2**20
"""Bytes that reading one small message may take."""


@dataclass(frozen=True)
class Target:
    """Something that reads what comes from outside."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], bool]


@contextmanager
def bounded_memory() -> Any:
    """Fail if the block takes more than `MEMORY` at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY, "memory out of proportion"
    finally:
        tracemalloc.stop()


# --- planes and soft masks


def mutated(data: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Change, cut out or double bytes: (what, where, value)."""
    held = bytearray(data)
    for what, where, value in changes:
        at = where % max(1, len(held))
        if what == 0 and held:
            held[at] ^= value or 1
        elif what == 1:
            del held[at : at + value]
        elif what == 2:
            held[at:at] = held[at : at + value]
        else:
            held[at:at] = bytes([value])
    return bytes(held)


CHANGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)


def _encoded(shape: tuple[int, int, int], seed: int) -> bytes:
    return planes.encode(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


@st.composite
def coded_planes(draw: st.DrawFn) -> tuple[bytes, tuple[int, int, int]]:
    """A coding that was changed, one that expands without end, or any bytes."""
    shape = draw(SHAPES)
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=300)), shape
    if kind == 1:
        bomb = zlib.compressobj(9)
        size = draw(st.integers(0, 2**24))
        return bomb.compress(bytes(size)) + bomb.flush(), shape
    if kind == 2:
        return _encoded(draw(SHAPES), draw(st.integers(0, 99))) + draw(st.binary(max_size=20)), shape
    return mutated(_encoded(shape, draw(st.integers(0, 99))), draw(CHANGES)), shape


def check_planes(given: tuple[bytes, tuple[int, int, int]]) -> bool:
    """Decoding gives planes of the shape that code to the same planes again, or a refusal; never more memory than that."""
    data, shape = given
    with bounded_memory():
        try:
            found = planes.decode(data, shape)
        except planes.PlanesError:
            found = None
    if found is None:
        with pytest.raises(WireError) as told:
            soft_mask.decode(data, shape)
        assert told.value.code == ErrorCode.BAD_MASK
        return False
    assert (found.shape, found.dtype) == (shape, np.uint8)
    assert (planes.decode(planes.encode(found), shape) == found).all()
    return True


# --- messages

SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=70), st.binary(max_size=70)
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    SCALARS,
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.floats(), max_size=3),
    st.lists(st.text(max_size=70), max_size=3),
    st.lists(st.binary(max_size=70), max_size=3),
    st.just(DIGEST),
    st.lists(st.just(DIGEST), min_size=1, max_size=3),
)
ENVELOPE = {"study": DIGEST, "catalogue": DIGEST}
VALID: tuple[wire.Envelope, ...] = (
    wire.DescribeRequest(
        **ENVELOPE,
        settings="",
        manifest=b"{}",
        signature=b"s" * 64,
        signer=b"k" * 32,
        sealing_key=b"p" * 32,
        sealing_signature=b"t" * 64,
    ),
    wire.DescribeReply(
        **ENVELOPE, site="a", output="soft", labels=["lesion"], teacher="{}", missing=b"\x80", signer=b"k" * 32
    ),
    wire.PredictRequest(**ENVELOPE, ids=[DIGEST], pixels=[b"p"]),
    wire.PredictReply(
        **ENVELOPE, site="a", ids=[DIGEST], masks=[b"m"], abstained=[], key=b"", signature=b"", seconds=0.5
    ),
    wire.EvaluateRequest(**ENVELOPE, card="{}", weights=b"w"),
    wire.EvaluateReply(
        **ENVELOPE,
        site="a",
        teacher_mean=1.0,
        teacher_std=0.0,
        student_mean=2.0,
        student_std=0.0,
        test_images=1,
        train_images=1,
    ),
    wire.FineTuneRequest(**ENVELOPE, card="{}", weights=b"w"),
    wire.FineTuneReply(**ENVELOPE, site="a", mean=1.0, std=0.0, test_images=1, train_images=1),
)
KINDS = st.sampled_from([type(message) for message in VALID])


@st.composite
def records(draw: st.DrawFn) -> tuple[type[wire.Envelope], RecordDict]:
    """A valid message with some fields changed, added or left out, under the right name or another; or an error."""
    message = draw(st.sampled_from(VALID))
    fields = dict(message.model_dump(by_alias=True))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(fields or {"x": 0})), st.text(max_size=12)))
        if draw(st.booleans()):
            fields.pop(name, None)
        else:
            fields[name] = draw(VALUES)
    name = draw(st.sampled_from([wire.RECORD, wire.RECORD, wire.RECORD, wire.ERROR_RECORD, "other"]))
    kind = draw(st.one_of(st.just(type(message)), KINDS))
    return kind, RecordDict({name: ConfigRecord(fields)})


def check_record(given: tuple[type[wire.Envelope], RecordDict]) -> bool:
    """Reading gives a message that travels unchanged, or a `WireError`."""
    kind, record = given
    try:
        found = wire.from_record(kind, record)
    except WireError:
        return False
    assert type(found) is kind
    assert wire.from_record(kind, wire.to_record(found)) == found
    assert wire.from_bytes(kind, wire.to_bytes(found)) == found
    return True


@st.composite
def kept_bytes(draw: st.DrawFn) -> tuple[type[wire.Envelope], bytes]:
    """What a ledger holds, damaged."""
    message = draw(st.sampled_from(VALID))
    kind = draw(st.one_of(st.just(type(message)), KINDS))
    changed = mutated(wire.to_bytes(message), draw(CHANGES))
    return kind, draw(st.one_of(st.just(changed), st.binary(max_size=200)))


def check_bytes(given: tuple[type[wire.Envelope], bytes]) -> bool:
    """As `check_record`, from bytes."""
    kind, data = given
    try:
        found = wire.from_bytes(kind, data)
    except WireError:
        return False
    assert wire.from_bytes(kind, wire.to_bytes(found)) == found
    return True


@st.composite
def gateway_bytes(draw: st.DrawFn) -> tuple[type[wire.Envelope], bytes]:
    """Bytes that claim to be a protobuf message of the gateway."""
    message = draw(st.sampled_from(VALID))
    data = to_protobuf(message).SerializeToString()
    kind = draw(st.one_of(st.just(type(message)), KINDS))
    return kind, draw(st.one_of(st.just(mutated(data, draw(CHANGES))), st.binary(max_size=200), st.just(data)))


def check_gateway_bytes(given: tuple[type[wire.Envelope], bytes]) -> bool:
    """As `check_record`, in the form that the gateway reads."""
    kind, data = given
    try:
        parsed = getattr(pb, kind.__name__).FromString(data)
    except DecodeError:
        return False
    try:
        found = from_protobuf(kind, parsed)
    except WireError:
        return False
    assert from_protobuf(kind, to_protobuf(found)) == found
    return True


# --- sealed answers

STUDY_KEY = X25519PrivateKey.from_private_bytes(b"s" * 32)
SITE_KEY = Ed25519PrivateKey.from_private_bytes(b"e" * 32)
SUBJECT = sealing.about(DIGEST, DIGEST, "a", [DIGEST], [])
SEALED = sealing.seal(
    [b"a mask", b"another"],
    STUDY_KEY.public_key().public_bytes_raw(),
    SITE_KEY,
    SUBJECT,
    X25519PrivateKey.from_private_bytes(b"o" * 32),
)


@st.composite
def sealed_answers(draw: st.DrawFn) -> sealing.Sealed:
    """An answer of which parts were changed, left out, swapped, or signed anew by the site itself."""
    key = draw(st.one_of(st.just(SEALED.key), st.binary(max_size=40), CHANGES.map(lambda it: mutated(SEALED.key, it))))
    whole = st.sampled_from(SEALED.masks)
    masks = draw(st.lists(st.one_of(whole, CHANGES.map(lambda it: mutated(SEALED.masks[0], it))), max_size=3))
    if draw(st.booleans()):
        masks = list(SEALED.masks)
    signature = draw(st.one_of(st.just(SEALED.signature), st.binary(max_size=70)))
    if draw(st.booleans()):
        signature = signing.sign(SITE_KEY, sealing.ANSWER_DOMAIN, sealing._signed(SUBJECT, key, masks))
    return sealing.Sealed(key, masks, signature)


def check_sealed(given: sealing.Sealed) -> bool:
    """Opened are only the masks that were sealed, each in its place; all else is refused."""
    try:
        found = sealing.unseal(given, STUDY_KEY, SITE_KEY.public_key().public_bytes_raw(), SUBJECT)
    except WireError as error:
        assert error.code == ErrorCode.BAD_SEAL  # noqa: PT017 - not only a test's
        return False
    assert found == [b"a mask", b"another"][: len(found)]
    return True


# --- lists of images

MANIFEST = (
    b'{"channels":1,"images":[{"group":"","id":"' + DIGEST.encode() + b'","role":"transferal"}],"name":"c",'
    b'"schema-version":1,"size":32}'
)
manifests = st.one_of(
    st.binary(max_size=200), CHANGES.map(lambda changes: mutated(MANIFEST, changes)), st.just(MANIFEST)
)


def check_manifest(data: bytes) -> bool:
    """Reading gives a list, or an error of ours."""
    try:
        found = Manifest.from_bytes(data)
    except ConsiliumError:
        return False
    assert found.size >= 1
    return True


@st.composite
def flags(draw: st.DrawFn) -> tuple[bytes, int]:
    """Packed flags, and how many there should be."""
    return draw(st.binary(max_size=20)), draw(st.integers(0, 200))


def check_flags(given: tuple[bytes, int]) -> bool:
    """As many flags as asked for, or a refusal."""
    data, count = given
    try:
        found = wire.from_bits(data, count)
    except WireError:
        return False
    assert len(found) == count
    return True


# --- texts: a study's settings, and the file with which a site asks to join

STUDY = to_toml(Study(name="s", sites=("a", "b"), preset="paper")).encode()
JOIN = json.dumps(
    {
        "format": "consilium-join-1",
        "name": "a",
        "authority": "SHA256:x",
        "public-key": ec.derive_private_key(12345, ec.SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode(),
        "made": "2026-01-01T00:00:00+00:00",
        "invitation-tag": "0" * 64,
        "signature": "AAAA",
    }
).encode()
DEEPEST = 15_000
"""Most levels of brackets, or digits of a number: more than Python follows."""


@st.composite
def texts(draw: st.DrawFn, valid: bytes, opening: bytes) -> bytes:
    """A valid text that was changed, one that has something without end in the place of a value, or any bytes."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind == 1:
        return mutated(valid, draw(CHANGES))
    if kind == 2:
        return valid
    places = [place for place, letter in enumerate(valid) if letter in b"=:"]
    at = draw(st.sampled_from(places)) + 1
    endless = draw(st.sampled_from([b"[", opening, b"9", b'"'])) * draw(st.integers(1, DEEPEST))
    return valid[:at] + endless + valid[at:] if draw(st.booleans()) else valid[:at] + endless


def check_settings(data: bytes) -> bool:
    """Reading gives a study that is written and read again the same, or a refusal."""
    try:
        found = _read_study(data.decode("utf-8", "replace"))
    except WireError as error:
        assert error.code == ErrorCode.BAD_MESSAGE  # noqa: PT017 - not only a test's
        return False
    assert _read_study(to_toml(found)) == found
    return True


def check_join(data: bytes) -> bool:
    """No join file is taken: none of these is signed."""
    with _as_file(data) as path, pytest.raises(DataError):
        read_join(path)
    return False


# --- exchange files


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _exchange_file() -> bytes:
    signer = SITE_KEY.public_key().public_bytes_raw().hex()
    header = exchange.Header(kind="answer", site="a", study=DIGEST, catalogue=DIGEST, signer=signer, messages=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer"
        with exchange.writing(path, header, SITE_KEY) as write:
            write(VALID[1])
            write(VALID[3])
        return path.read_bytes()


EXCHANGE = _exchange_file()


@st.composite
def exchange_files(draw: st.DrawFn) -> bytes:
    """An answer file that was changed on its way, one that the site itself wrote wrong and signed, or any bytes."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.sampled_from([b"", exchange.MAGIC])) + draw(st.binary(max_size=300))
    if kind == 1:
        return mutated(EXCHANGE, draw(CHANGES))
    if kind == 2:
        return EXCHANGE
    body = mutated(EXCHANGE[: -exchange.SIGNATURE_BYTES], draw(CHANGES))
    return body + signing.sign(SITE_KEY, b"consilium exchange answer 1", hashlib.sha256(body).digest())


def check_exchange(data: bytes) -> bool:
    """Reading gives messages that travel unchanged, or an error of ours; never more memory than the file's own size allows."""
    with _as_file(data) as path, bounded_memory():
        try:
            with exchange.reading(path, "answer") as file:
                file.verify()
                found = list(file.messages(wire.DescribeReply, wire.PredictReply, 2**16))
        except DataError:
            return False
    assert len(found) == file.header.messages
    assert all(wire.from_bytes(type(one), wire.to_bytes(one)) == one for one in found)
    return True


TARGETS = (
    Target("planes", coded_planes(), check_planes),
    Target("wire records", records(), check_record),
    Target("kept answers", kept_bytes(), check_bytes),
    Target("gateway messages", gateway_bytes(), check_gateway_bytes),
    Target("sealed answers", sealed_answers(), check_sealed),
    Target("manifests", manifests, check_manifest),
    Target("flags", flags(), check_flags),
    Target("settings of a study", texts(STUDY, b"{a="), check_settings),
    Target("join files", texts(JOIN, b'{"a":'), check_join),
    Target("exchange files", exchange_files(), check_exchange),
)
