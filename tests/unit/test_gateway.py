"""The gateway carries messages unchanged, keeps to its machine, and says nothing but codes."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from consilium.clients import gateway as gateway_module
from consilium.clients import gateway_pb2 as pb
from consilium.clients import gateway_pb2_grpc as rpc
from consilium.clients.gateway import CODE_KEY, GatewayClient, from_protobuf, serve, to_protobuf
from consilium.clients.settings import SiteHome, SiteSettings
from consilium.common import wire
from consilium.common.errors import PUBLIC_TEXT, ErrorCode, MachineError, SettingsError, WireError
from consilium.common.processes import free_port
from consilium.common.settings import parse

SECRET = "/srv/patients/jane-doe.dcm"  # noqa: S105 - not to get out
ENVELOPE = {"study": "a" * 64, "catalogue": "b" * 64}
MESSAGES = [
    wire.DescribeRequest(
        **ENVELOPE, settings='name = "x"', manifest=b"{}", signature=b"\0\xff", signer=b"", sealing_key=b"",
        sealing_signature=b"\1",
    ),
    wire.DescribeReply(**ENVELOPE, site="north", output="soft", labels=["a", "b"], teacher="{}", missing=b"\x80", signer=b"\2"),
    wire.PredictRequest(**ENVELOPE, ids=["c" * 64, "d" * 64], pixels=[]),
    wire.PredictReply(
        **ENVELOPE, site="north", ids=["c" * 64], masks=[b"\0\1"], abstained=["d" * 64], key=b"\3", signature=b"",
        seconds=0.25,
    ),
    wire.EvaluateRequest(**ENVELOPE, card="{}", weights=b"w"),
    wire.EvaluateReply(
        **ENVELOPE, site="north", teacher_mean=99.5, teacher_std=0.1, student_mean=1.0, student_std=0.0,
        test_images=3, train_images=0,
    ),
    wire.FineTuneRequest(**ENVELOPE, card="{}", weights=b"w"),
    wire.FineTuneReply(**ENVELOPE, site="north", mean=50.0, std=1.0, test_images=3, train_images=4),
]  # fmt: skip


class Relay:
    """A site that answers every call with the next of `answers`, an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[wire.Envelope] = []

    def _next(self, request: wire.Envelope) -> object:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    describe = predict = evaluate = fine_tune = _next


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="consilium-"))  # a Unix socket's path is short
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_protobuf_and_wire_have_the_same_fields_and_carry_the_same_values(message: wire.Envelope) -> None:
    fields = [field.name for field in to_protobuf(message).DESCRIPTOR.fields]
    assert fields == list(type(message).model_fields)
    data = to_protobuf(message).SerializeToString()
    again = getattr(pb, type(message).__name__).FromString(data)
    assert from_protobuf(type(message), again) == message


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    source = Path(gateway_module.__file__).parent
    (tmp_path / "consilium").mkdir()
    (tmp_path / "consilium" / "clients").symlink_to(source)
    options = ["-I.", "--descriptor_set_out=set", "consilium/clients/gateway.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], cwd=tmp_path, check=True, timeout=60)
    (described,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    for field in (field for message in described.message_type for field in message.field):
        field.ClearField("json_name")  # only the compiler writes it
    generated = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(generated)
    assert generated == described


def test_every_call_reaches_the_site_and_its_answer_comes_back(folder: Path) -> None:
    requests, replies = MESSAGES[::2], MESSAGES[1::2]
    site = Relay(*replies)
    with serve(site, f"unix:{folder}/s") as gateway, GatewayClient(gateway.address, timeout_s=20) as client:
        answers = [
            client.describe(requests[0]), client.predict(requests[1]),
            client.evaluate(requests[2]), client.fine_tune(requests[3]),
        ]  # fmt: skip
    assert (site.asked, answers) == (requests, replies)


def test_only_its_own_user_can_open_the_socket(folder: Path) -> None:
    with serve(Relay(), f"unix:{folder}/s"):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600


def test_a_second_gateway_does_not_take_the_socket_over(folder: Path) -> None:
    with serve(Relay(), f"unix:{folder}/s"), pytest.raises(MachineError, match="another gateway"):
        serve(Relay(), f"unix:{folder}/s")
    with serve(Relay(MESSAGES[1]), f"unix:{folder}/s") as gateway, GatewayClient(gateway.address) as client:
        assert client.describe(MESSAGES[0]) == MESSAGES[1]


def test_a_socket_left_by_a_killed_gateway_is_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/s")
    with serve(Relay(MESSAGES[1]), f"unix:{folder}/s") as gateway, GatewayClient(gateway.address) as client:
        assert client.describe(MESSAGES[0]) == MESSAGES[1]


@pytest.mark.parametrize(
    "address", ["0.0.0.0:9400", "[::]:9400", "gateway.hospital.org:9400", "127.0.0.1", "unix:", ""]
)
def test_no_other_machine_can_reach_a_gateway(address: str) -> None:
    with pytest.raises(SettingsError):
        serve(Relay(), address)
    with pytest.raises(SettingsError, match="gateway"):
        parse(SiteSettings, {"name": "north", "gateway": {"address": address}}, "test")


def test_a_loopback_port_works_and_a_taken_one_is_told() -> None:
    with serve(Relay(MESSAGES[1]), "127.0.0.1:0") as gateway, GatewayClient(gateway.address) as client:
        assert client.describe(MESSAGES[0]) == MESSAGES[1]
        with pytest.raises(MachineError, match="taken"):
            serve(Relay(), gateway.address)


@pytest.mark.parametrize(
    "address", ["unix:/tmp/consilium-no-such.sock", f"127.0.0.1:{free_port()}"], ids=["socket", "port"]
)
def test_a_gateway_that_is_not_there_is_unreachable(address: str) -> None:
    with GatewayClient(address) as client, pytest.raises(WireError) as error:
        client.describe(MESSAGES[0])
    assert error.value.code == ErrorCode.GATEWAY_UNREACHABLE


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_code_travels_and_its_detail_does_not(code: ErrorCode, folder: Path) -> None:
    with serve(Relay(WireError(code, SECRET)), f"unix:{folder}/s") as gateway:
        metadata, details = raw_error(gateway.address)
        assert (metadata[CODE_KEY], details) == (str(code), PUBLIC_TEXT[code])
        assert SECRET not in str(metadata)


@pytest.mark.parametrize(
    "failure", [ValueError(SECRET), KeyError(SECRET), MemoryError(SECRET)], ids=lambda f: type(f).__name__
)
def test_no_text_of_an_exception_leaves_the_gateway(failure: Exception, folder: Path) -> None:
    """Every byte that the server sends is looked at, by a relay between it and the client."""
    with serve(Relay(failure), f"unix:{folder}/s") as gateway:
        metadata, details = raw_error(gateway.address)
    assert metadata == {CODE_KEY: "site-failed"}
    assert details == PUBLIC_TEXT[ErrorCode.SITE_FAILED]


def raw_error(address: str) -> tuple[dict[str, str], str]:
    """All that an error answer holds: its trailing metadata and its text."""
    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            rpc.GatewayStub(channel).Describe(to_protobuf(MESSAGES[0]), timeout=20)
        error = raised.value
        assert SECRET not in repr(error) + error.debug_error_string()
        return {item.key: item.value for item in error.trailing_metadata()}, error.details()


def test_a_message_that_breaks_the_wire_format_does_not_reach_the_site(folder: Path) -> None:
    site = Relay()
    broken = MESSAGES[2].model_copy(update={"ids": ["../etc"]})
    with (
        serve(site, f"unix:{folder}/s") as gateway,
        GatewayClient(gateway.address) as client,
        pytest.raises(WireError) as error,
    ):
        client.predict(broken)
    assert (error.value.code, site.asked) == (ErrorCode.BAD_MESSAGE, [])


def test_a_message_beyond_the_bound_is_refused_before_it_is_read(folder: Path) -> None:
    site = Relay()
    large = MESSAGES[4].model_copy(update={"weights": bytes(18 * 2**20)})
    with (
        serve(site, f"unix:{folder}/s", max_message_mib=1) as gateway,
        GatewayClient(gateway.address) as client,
        pytest.raises(WireError) as error,
    ):
        client.evaluate(large)
    assert (error.value.code, site.asked) == (ErrorCode.TOO_LARGE, [])


def test_a_folder_too_deep_for_a_socket_gets_a_short_one_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    settings = parse(SiteSettings, {"name": "north"}, "test")
    assert SiteHome(settings, Path("/srv/north")).gateway_address == "unix:/srv/north/gateway.sock"
    deep = [SiteHome(settings, Path("/" + letter * 120)).gateway_address for letter in "aab"]
    assert deep[0] == deep[1] != deep[2]
    with serve(Relay(MESSAGES[1]), deep[0]) as gateway, GatewayClient(gateway.address) as client:
        assert client.describe(MESSAGES[0]) == MESSAGES[1]
        assert stat.S_IMODE(Path(deep[0].removeprefix("unix:")).parent.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder, 12345, 12345)
    with pytest.raises(MachineError, match="12345"):
        serve(Relay(), f"unix:{folder}/s")


def test_a_client_finds_a_gateway_that_was_restarted(folder: Path) -> None:
    with GatewayClient(f"unix:{folder}/s") as client:
        for _ in range(2):
            with serve(Relay(*[MESSAGES[1]] * 9), f"unix:{folder}/s"):
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline and not answers(client):
                    time.sleep(0.1)
                assert answers(client)


def answers(client: GatewayClient) -> bool:
    try:
        return client.describe(MESSAGES[0]) == MESSAGES[1]
    except WireError:
        return False


def test_the_umask_is_left_as_it_was(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        with serve(Relay(), f"unix:{folder}/s"):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
