"""The gateway: a `Site` over gRPC on the site's own machine, and the client that makes it look like a `Site` again.

A ClientApp process lives for one message; the gateway lives on and keeps the teacher warm. It listens on a Unix socket that only
its own user can open, or on loopback, where every user of the machine can reach it: prefer the socket. Imports no torch.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from consilium.clients import gateway_pb2 as pb
from consilium.clients import gateway_pb2_grpc as rpc
from consilium.clients.address import check_address
from consilium.clients.port import SitePort
from consilium.common.errors import PUBLIC_TEXT, ErrorCode, MachineError, SettingsError, WireError
from consilium.common.wire import (
    DescribeReply,
    DescribeRequest,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    FineTuneReply,
    FineTuneRequest,
    PredictReply,
    PredictRequest,
    validated,
)

LOG: Final = logging.getLogger(__name__)
CODE_KEY: Final = "consilium-code"
_MIB: Final = 2**20
_FRAME_MIB: Final = 16  # what a message's own framing may add to the policy's bound
_WORKERS: Final = 8
_CALL_LIMIT_S: Final = 12 * 3600.0  # Flower's own limit for an answer

MessageT = TypeVar("MessageT", bound=Envelope)


def to_protobuf(message: Envelope) -> Any:
    """Give a message its form on gRPC: the protobuf message of the same name and fields."""
    return getattr(pb, type(message).__name__)(**dict(message))


def from_protobuf(kind: type[MessageT], message: Any) -> MessageT:
    """Read a message from gRPC; `WireError` as `wire.validated` has it."""
    fields = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    return validated(kind, {name: list(value) if _repeated(value) else value for name, value in fields.items()})


def _repeated(value: object) -> bool:
    return not isinstance(value, str | bytes | int | float)


class _Servicer(rpc.GatewayServicer):
    """Hands each call to the site; lets nothing but a code out."""

    def __init__(self, site: SitePort) -> None:
        self._site = site

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's spelling
        return _serve(self._site.describe, DescribeRequest, request, context)

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's spelling
        return _serve(self._site.predict, PredictRequest, request, context)

    def Evaluate(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's spelling
        return _serve(self._site.evaluate, EvaluateRequest, request, context)

    def FineTune(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's spelling
        return _serve(self._site.fine_tune, FineTuneRequest, request, context)


def _serve(
    call: Callable[[MessageT], Envelope], kind: type[MessageT], request: Any, context: grpc.ServicerContext
) -> Any:
    try:
        return to_protobuf(call(from_protobuf(kind, request)))
    except WireError as error:
        code = error.code
    except Exception:
        LOG.exception("the gateway failed")
        code = ErrorCode.SITE_FAILED
    context.set_trailing_metadata(((CODE_KEY, str(code)),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, PUBLIC_TEXT[code])
    return None


class Gateway:
    """A running gateway; a context manager that ends it.

    Attributes
    ----------
    address
        Where it listens; with port 0, the port that was found.
    """

    def __init__(self, server: grpc.Server, address: str, lock: contextlib.ExitStack) -> None:
        self.address: Final = address
        self._server: Final = server
        self._lock: Final = lock

    def wait(self) -> None:
        """Wait until `stop` is called from another thread."""
        self._server.wait_for_termination()

    def stop(self, grace_s: float = 2.0) -> None:
        """Take no more calls, give those that run ``grace_s`` seconds, and free the address; safe to repeat."""
        self._server.stop(grace_s).wait()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(site: SitePort, address: str, *, max_message_mib: int = 512, workers: int = _WORKERS) -> Gateway:
    """Start a gateway in this process.

    Parameters
    ----------
    site
        Who answers.
    address
        ``unix:PATH`` (made with mode 0600) or a port on loopback; port 0 takes a free one.
    max_message_mib
        The site's bound on a message; larger ones are refused before they are read.
    workers
        Calls answered at a time; as many again may wait, the rest are refused.

    Raises
    ------
    SettingsError
        If other machines could reach the address.
    MachineError
        If the address is taken, or its folder is another user's.
    """
    try:
        check_address(address)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    server = grpc.server(
        ThreadPoolExecutor(workers, thread_name_prefix="gateway"),
        maximum_concurrent_rpcs=2 * workers,
        options=[
            ("grpc.max_receive_message_length", (max_message_mib + _FRAME_MIB) * _MIB),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    rpc.add_GatewayServicer_to_server(_Servicer(site), server)  # type: ignore[no-untyped-call]  # generated
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    held = contextlib.ExitStack()
    try:
        with _bind_rights(address, held):
            port = server.add_insecure_port(address)
    except RuntimeError:
        held.close()
        raise MachineError(f"the gateway cannot listen on {address}: is the address taken?") from None
    server.start()
    found = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    return Gateway(server, found, held)


@contextlib.contextmanager
def _bind_rights(address: str, held: contextlib.ExitStack) -> Iterator[None]:
    """Let only one gateway have a socket (gRPC would take it over), and only this user open it."""
    if not address.startswith("unix:"):
        yield
        return
    path = Path(address.removeprefix("unix:"))
    _own_folder(path.parent)
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise MachineError(f"another gateway listens on {address}; stop it first") from None
    held.callback(os.close, descriptor)
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
    path.chmod(0o600)


def _own_folder(folder: Path) -> None:
    """Make the socket's folder if need be; refuse one that another user could have laid out for us."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    owner = folder.stat().st_uid
    if owner not in (os.getuid(), 0):
        raise MachineError(f"the gateway's socket lies in a folder of this user; {folder} belongs to user {owner}")


class GatewayClient:
    """A `SitePort` at the other end of a socket; a context manager.

    Parameters
    ----------
    address
        Of the gateway, as `Gateway.address` has it.
    timeout_s
        Seconds an answer may take; fine-tuning takes hours.
    """

    def __init__(self, address: str, *, timeout_s: float = _CALL_LIMIT_S) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_reconnect_backoff_ms", 1000),  # a gateway that was restarted is found again at once
            ],
        )
        self._stub = rpc.GatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def describe(self, request: DescribeRequest, /) -> DescribeReply:
        """Be shown a study; see `SitePort`."""
        return self._call(self._stub.Describe, request, DescribeReply)

    def predict(self, request: PredictRequest, /) -> PredictReply:
        """Give soft masks; see `SitePort`."""
        return self._call(self._stub.Predict, request, PredictReply)

    def evaluate(self, request: EvaluateRequest, /) -> EvaluateReply:
        """Evaluate teacher and student; see `SitePort`."""
        return self._call(self._stub.Evaluate, request, EvaluateReply)

    def fine_tune(self, request: FineTuneRequest, /) -> FineTuneReply:
        """Fine-tune a copy of the student; see `SitePort`."""
        return self._call(self._stub.FineTune, request, FineTuneReply)

    def _call(self, stub: Any, request: Envelope, kind: type[MessageT]) -> MessageT:
        try:
            answer = stub(to_protobuf(request), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise WireError(_code_of(error), str(error.code())) from None
        return from_protobuf(kind, answer)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_healthy(address: str, timeout_s: float = 5.0) -> bool:
    """Ask a gateway's health service (gRPC's own, ``grpc.health.v1``) whether it serves; False if nothing answers in time."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_taken(address: str) -> bool:
    """Tell whether a gateway holds a Unix socket's address; for a port, which anyone may hold, always True."""
    if not address.startswith("unix:"):
        return True
    try:
        descriptor = os.open(address.removeprefix("unix:") + ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _code_of(error: Any) -> ErrorCode:
    """Tell what went wrong: what the site said, or what became of the connection."""
    for key, value in error.trailing_metadata() or ():
        if key == CODE_KEY and value in set(ErrorCode):
            return ErrorCode(value)
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or ""):
        return ErrorCode.TOO_LARGE
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return ErrorCode.SITE_FAILED
    return ErrorCode.GATEWAY_UNREACHABLE
