"""Replies that come over Flower's grid: each by itself."""

import time
from typing import Any, cast

from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from consilium.server.replies import Replies


def reply_to(ticket: str) -> Message:
    metadata = Metadata(1, "", 7, SUPERLINK_NODE_ID, ticket, "", time.time(), 60.0, "query.predict")
    reply = make_message(metadata, content=RecordDict({"answer": ConfigRecord({"to": ticket})}))
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


class SuperLinkInMemory:
    """Answers as Flower's does: an announced reply is forgotten, its parts are given when they are there."""

    def __init__(self, *replies: Message) -> None:
        self.node, self.run, self._runtime_client = (
            Node(node_id=SUPERLINK_NODE_ID),
            type("Run", (), {"run_id": 1}),
            self,
        )
        self.replies = {reply.metadata.reply_to_message_id: reply for reply in replies}
        self.parts: dict[str, bytes | None] = {}
        self.asked: list[str] = []

    def arrive(self, reply: Message) -> None:
        self.parts |= {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}

    def lose(self, reply: Message) -> None:
        self.parts |= dict.fromkeys(get_all_nested_objects(reply))

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802 - Flower's spelling
        self.asked += request.message_ids
        found = [self.replies.pop(ticket) for ticket in request.message_ids if ticket in self.replies]
        trees = [get_object_tree(reply) for reply in found]
        return PullAppMessagesResponse(messages_list=map(message_to_proto, found), message_object_trees=trees)

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 - Flower's spelling
        content = self.parts.get(request.object_id, b"")
        there = content is not None
        return PullObjectResponse(object_found=there, object_available=bool(content), object_content=content or b"")

    def ConfirmMessageReceived(  # noqa: N802 - Flower's spelling
        self, _request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()


def pulled(replies: Replies, *tickets: str) -> list[tuple[str, Any]]:
    """What comes first."""
    deadline = time.monotonic() + 10
    while not (found := replies.pull(tickets)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [(ticket, reply and reply.content["answer"]["to"]) for ticket, reply in found]


def test_a_reply_that_is_still_being_sent_keeps_no_other_waiting_and_comes_when_it_is_there() -> None:
    slow, ready = reply_to("slow"), reply_to("ready")
    superlink = SuperLinkInMemory(slow, ready)
    superlink.arrive(ready)
    replies = Replies(cast(HttpGrid, superlink))
    assert pulled(replies, "slow", "ready") == [("ready", "ready")]
    superlink.arrive(slow)
    assert pulled(replies, "slow") == [("slow", "slow")]
    assert superlink.asked == ["slow", "ready"], "what was announced is not asked for again"


def test_a_reply_whose_parts_are_gone_is_lost() -> None:
    reply = reply_to("gone")
    superlink = SuperLinkInMemory(reply)
    superlink.lose(reply)
    assert pulled(Replies(cast(HttpGrid, superlink)), "gone") == [("gone", None)]
