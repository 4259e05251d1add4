"""Whatever comes from outside is read or refused: no crash, no hang, no memory without bounds, nothing wrong accepted."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.common.serde import recorddict_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.clients.gateway import CODE_KEY, GatewayClient, serve
from consilium.common import planes, wire
from consilium.common.errors import DataError, ErrorCode, WireError
from consilium.common.joining import read_join
from tests.fuzzing import CHANGES, JOIN, TARGETS, VALID, Target, mutated, to_protobuf
from tests.unit.test_site import make_site

EXAMPLES = 150


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_comes_is_read_or_refused(target: Target) -> None:
    @settings(max_examples=EXAMPLES, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
    @given(target.inputs)
    def try_it(given_input: object) -> None:
        target.check(given_input)

    try_it()


@given(st.integers(0, 10**6), st.sampled_from([(1, 1, 1), (1, 8, 8), (3, 17, 5)]))
def test_planes_come_back_as_they_were(seed: int, shape: tuple[int, int, int]) -> None:
    held = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    assert (planes.decode(planes.encode(held), shape) == held).all()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    site = make_site(tmp_path_factory.mktemp("site"))
    with serve(site, "127.0.0.1:0") as running:
        yield running.address
    site.close()


CALLS = ("Describe", "Predict", "Evaluate", "FineTune")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CALLS), st.sampled_from(VALID), CHANGES, st.booleans(), st.binary(max_size=100))
def test_a_gateway_answers_any_bytes_with_a_code_and_goes_on(
    gateway: str, call: str, message: object, changes: list[tuple[int, int, int]], wild: bool, noise: bytes
) -> None:
    data = noise if wild else mutated(to_protobuf(message).SerializeToString(), changes)
    with grpc.insecure_channel(gateway, options=[("grpc.enable_http_proxy", 0)]) as channel:
        raw = channel.unary_unary(
            f"/consilium.Gateway/{call}", request_serializer=lambda held: held, response_deserializer=lambda held: held
        )
        with pytest.raises(grpc.RpcError) as refused:  # no study was described: nothing may be answered
            raw(data, timeout=20)
    error = refused.value
    assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL)
    if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
        told = dict(error.trailing_metadata() or ())
        assert told[CODE_KEY] in set(ErrorCode) - {ErrorCode.SITE_FAILED}


def test_a_gateway_that_was_fuzzed_still_refuses_in_order(gateway: str) -> None:
    with GatewayClient(gateway, timeout_s=20) as client, pytest.raises(Exception, match="unknown-study"):
        client.predict(VALID[2])


def test_a_kept_field_that_has_no_value_is_no_record() -> None:
    record = recorddict_to_proto(wire.to_record(VALID[1]))
    record.items[0].config_record.items[0].value.Clear()
    with pytest.raises(WireError, match="no record"):
        wire.from_bytes(wire.DescribeReply, record.SerializeToString())


def test_a_join_file_with_a_compressed_point_for_a_key_is_refused(tmp_path: Path) -> None:
    fields = json.loads(JOIN)
    kind, blob = fields["public-key"].split()
    at = base64.b64decode(blob)
    point = at.index(b"\x04", at.index(b"nistp384", 20))
    changed = base64.b64encode(at[:point] + b"\x02" + at[point + 1 :]).decode()
    path = tmp_path / "a.join"
    path.write_text(json.dumps(fields | {"public-key": f"{kind} {changed}"}))
    with pytest.raises(DataError, match="not by the key"):
        read_join(path)
