"""An in-memory Flower grid: the same ServerApp and ClientApp in one process, for debugging and for tests.

Messages are answered one at a time, in order, by a thread of their own: what a site computes does not depend on what
the others do, so every engine gives the same masks.
"""

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from consilium.common.study import RunConfig

CLIENT_APP_FAILED: Final = 1
"""Flower's error code for a ClientApp that raised."""
POLL_S: Final = 0.005
"""Between two looks for replies."""


class InMemoryGrid(Grid):
    """Flower's `Grid` without a network.

    Parameters
    ----------
    app
        Answers every message.
    contexts
        A context for each site, by name; nodes are numbered from 1 in this order.
    """

    def __init__(self, app: ClientApp, contexts: Mapping[str, Context]) -> None:
        self._app: Final = app
        self._contexts: Final = dict(enumerate(contexts.values(), 1))
        self._names: Final = dict(enumerate(contexts, 1))
        self._inbox: Final[queue.SimpleQueue[Message | None]] = queue.SimpleQueue()
        self._replies: Final[dict[str, Message]] = {}
        self._numbers: Final = itertools.count(1)
        self._run = Run.create_empty(1)
        self._thread: Final = threading.Thread(target=self._answer_all, name="in-memory sites", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread that answers."""
        self._inbox.put(None)
        self._thread.join()

    def _answer_all(self) -> None:
        while (message := self._inbox.get()) is not None:
            try:
                reply = self._app(message, self._contexts[message.metadata.dst_node_id])
            except Exception as error:  # as Flower does: a ClientApp's exception becomes an error reply
                reply = Message(Error(CLIENT_APP_FAILED, type(error).__name__), reply_to=message)
            self._replies[message.metadata.message_id] = reply

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._names)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, with their sites' names."""
        return [NodeInfo(node_id=number, name=name) for number, name in self._names.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are answered in the background."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            self._inbox.put(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give the replies that are there."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for all replies, as strategies of Flower do; they come in the order of the nodes.

        A sum of numbers with a point depends on its order, so that a strategy gives the same bytes every time.
        """
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        end = None if timeout is None else time.monotonic() + timeout
        while waiting and (end is None or time.monotonic() < end):
            found = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
            if not found:
                time.sleep(POLL_S)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def site_contexts(run_config: RunConfig, sites: tuple[str, ...]) -> dict[str, Context]:
    """Contexts as Flower's simulation gives them: each node is a partition."""
    return {
        name: Context(
            run_id=1,
            node_id=number + 1,
            node_config={"partition-id": number, "num-partitions": len(sites)},
            state=RecordDict(),
            run_config=run_config,
        )
        for number, name in enumerate(sites)
    }


@contextmanager
def in_memory_grid(app: ClientApp, run_config: RunConfig, sites: tuple[str, ...]) -> Iterator[InMemoryGrid]:
    """A grid of sites that live in this process."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = (
        1  # Flower's own processes set it at their start
    )
    grid = InMemoryGrid(app, site_contexts(run_config, sites))
    try:
        yield grid
    finally:
        grid.close()
