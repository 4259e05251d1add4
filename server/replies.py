"""Fetching replies from a SuperLink, each by itself, so that one that is still being sent keeps no other waiting.

A reply is announced before its parts are there. Flower waits in `Grid.pull_messages` for the parts of one reply after the other:
those of a site that was killed while it sent them for three minutes, while everybody else's answers lie ready.
"""

import queue
import threading
from collections.abc import Sequence
from logging import WARNING
from typing import Final

from flwr.app import Message
from flwr.common.logger import log
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

_FIRST_PAUSE_S: Final = 0.05  # the parts follow the announcement at once; Flower waits a second


class Replies:
    """What became of messages that were sent over a grid.

    Parameters
    ----------
    grid
        Of Flower's deployment engine.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._grid: Final = grid
        self._client: Final = grid._runtime_client
        self._arriving: Final[set[str]] = set()
        self._fetched: Final[queue.SimpleQueue[tuple[str, Message | None]]] = queue.SimpleQueue()

    def pull(self, tickets: Sequence[str]) -> list[tuple[str, Message | None]]:
        """Give what has come in reply to some messages: the message's id, and its reply, or None if it was lost on its way."""
        asked = [ticket for ticket in tickets if ticket not in self._arriving]
        if asked:  # the SuperLink forgets what it has announced
            announced = self._client.PullMessages(PullAppMessagesRequest(message_ids=asked))
            for message, tree in zip(announced.messages_list, announced.message_object_trees, strict=True):
                ticket, name = message.metadata.reply_to_message_id, message.metadata.message_id
                parts = [part.object_id for part in iterate_object_tree(tree)]
                self._arriving.add(ticket)
                # As a daemon: at the end of the study nobody waits for what is still on its way.
                threading.Thread(target=self._fetch, args=(ticket, name, parts), daemon=True).start()
        found = []
        while not self._fetched.empty():
            found.append(self._fetched.get())
            self._arriving.discard(found[-1][0])
        return found

    def _fetch(self, ticket: str, name: str, parts: list[str]) -> None:
        reply = None
        try:
            node, run = self._grid.node, self._grid.run.run_id
            contents = pull_objects(
                parts,
                make_pull_object_fn_protobuf(self._client.PullObject, node, run),
                initial_backoff=_FIRST_PAUSE_S,
            )
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=name)
            )
            held = inflate_object_from_contents(name, contents)
            if isinstance(held, Message):
                held.metadata.__dict__["_message_id"] = name
                reply = held
        except Exception as error:  # whatever it is, the site is asked again
            log(WARNING, "consilium: a reply did not arrive whole (%s)", error)
        finally:
            self._fetched.put((ticket, reply))
