"""The site's resident ClientApp: one process that answers every message, and runs installed code only.

Flower's SuperNode, left to itself, unpacks the bundle that the server shipped, puts it first on ``sys.path`` and starts
a fresh process on it for every message. With ``--isolation process`` it instead hands each message to whoever shows
the site's own secret on its loopback interface. That is this process. It

- never unpacks or runs the shipped bundle: the ClientApp is the one of the installed package;
- is there already: a message costs about 0.1 s here instead of the 1.5 s that a process start takes;
- answers a failure with a fixed text: an exception's own text, which Flower would send, stays in the site's log.
"""

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from consilium.common.errors import PUBLIC_TEXT, SettingsError
from consilium.common.errors import ErrorCode as PublicCode

LOG: Final = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for every poll

_SHORTEST_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.5  # an idle SuperNode asks the SuperLink every 3 s only
_OBJECT_POLL_S: Final = 0.05  # the SuperNode hands a message out a moment before its parts have arrived
_LOOK_EVERY_S: Final = 1.0
_ACQUIRE_TASK: Final = "/flwr.proto.Runtime/AcquireTask"


@dataclass(frozen=True)
class _Task:
    """One message to answer, and the settings of its run."""

    message: Message
    context: Context


def load_client_app(reference: str) -> ClientApp:
    """Import ``module:attribute``.

    Raises
    ------
    SettingsError
        If there is no ClientApp of that name.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        app = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"a ClientApp is named module:attribute; {reference!r} can not be imported") from error
    if not isinstance(app, ClientApp):
        raise SettingsError(f"{reference!r} is a {type(app).__name__}, not a ClientApp")
    return app


def answer_for_ever(address: str, secret: bytes, app: ClientApp) -> None:
    """Take every message the SuperNode at ``address`` (``host:port``, loopback) has and answer it with ``app``."""
    tasks = _connect(
        address,
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({_ACQUIRE_TASK})),
    )
    pause_s = _SHORTEST_POLL_S

    def acquire() -> str:
        return str(tasks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])).token)

    token = ""
    while True:
        token = token or acquire()
        if token:
            token = _answer(address, token, app, acquire)
            pause_s = _SHORTEST_POLL_S
        else:
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, _LONGEST_POLL_S)


def _connect(address: str, *interceptors: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address, True, None, interceptors, retry_invoker=make_simple_http_retry_invoker()
    )


class _Superseded(Exception):  # noqa: N818 - not a fault
    """The SuperNode offers another message while parts of this one are missing."""

    def __init__(self, token: str) -> None:
        self.token: Final = token
        super().__init__(token)


class _Supersession:
    """Looks, while a part of a message is waited for, whether the SuperNode offers another one.

    A SuperNode fetches one message at a time, and the next only once this one is answered. If the run ends while it fetches
    (its coordinator was killed), it drops the message but not the task: the missing parts would be waited for for ever.
    """

    def __init__(self, acquire: Callable[[], str]) -> None:
        self._acquire: Final = acquire
        self._lock: Final = threading.Lock()  # several parts are fetched at a time
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    def around(self, pull: Callable[[str], bytes]) -> Callable[[str], bytes]:
        """Give ``pull``, which raises `_Superseded` in place of waiting for what will not come."""

        def pull_or_stop(object_id: str) -> bytes:
            try:
                return pull(object_id)
            except ObjectUnavailableError:
                with self._lock:
                    if time.monotonic() >= self._look_at:
                        self._look_at = time.monotonic() + _LOOK_EVERY_S
                        if token := self._acquire():
                            raise _Superseded(token) from None
                raise

        return pull_or_stop


def _answer(address: str, token: str, app: ClientApp, acquire: Callable[[], str]) -> str:
    """Answer one message; a message that can not be fetched or answered costs that message only.

    Gives the token of another one that came in its place, or an empty text.
    """
    client = _connect(
        address, RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), RuntimeTokenHttpInterceptor(token)
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    context, sub_status, details = None, SubStatus.FAILED, PUBLIC_TEXT[PublicCode.SITE_FAILED]
    other = ""
    try:
        task = _pull(client, _Supersession(acquire))
        context = task.context
        reply, sub_status, details = _reply(app, task)
        push_message(client, reply, context)
    except _Superseded as superseded:
        LOG.warning("a message of a run that has ended was dropped")
        other = superseded.token
    except Exception:
        LOG.exception("a message could not be answered")
    finally:
        push_task_output(client=client, context=context, sub_status=sub_status, details=details)
        heartbeat.stop()
        client.close()
    return other


def _pull(client: RuntimeHttpClient, supersession: _Supersession) -> _Task:
    """Fetch the message and its context."""
    context = context_from_proto(client.PullTaskInput(PullTaskInputRequest()).context)
    tree = client.PullMessages(PullAppMessagesRequest()).message_object_trees[0]
    node = Node(node_id=context.node_id)
    message = pull_and_inflate_object_from_tree(
        tree,
        supersession.around(make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, context.run_id),
        return_type=Message,
        initial_backoff=_OBJECT_POLL_S,
    )
    # A message does not carry its own id, and a reply must name it.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return _Task(message, context)


def _reply(app: ClientApp, task: _Task) -> tuple[Message, str, str]:
    """Run the ClientApp; return the reply, and how Flower is to record it."""
    try:
        return app(message=task.message, context=task.context), SubStatus.COMPLETED, ""
    except Exception:
        LOG.exception("the ClientApp failed on a %s message", task.message.metadata.message_type)
        text = PUBLIC_TEXT[PublicCode.SITE_FAILED]
        error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=text)
        return Message(error, reply_to=task.message), SubStatus.FAILED, text


def main(arguments: list[str]) -> None:
    """Run: ``python -m consilium.clients.resident ADDRESS SECRET_FILE MODULE:ATTRIBUTE``."""
    address, secret_file, reference = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = load_client_app(reference)
    LOG.info("the resident ClientApp %s answers for the SuperNode at %s", reference, address)
    answer_for_ever(address, Path(secret_file).read_bytes(), app)


if __name__ == "__main__":
    main(sys.argv[1:])
