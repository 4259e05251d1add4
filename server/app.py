"""The ServerApp: Flower's grid on one side, the stages of a study on the other. It translates and calls."""

import time
from collections.abc import Callable
from contextlib import suppress
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Final, TypeVar

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.logger import log
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid.http_grid import HttpGrid

from consilium.common import wire
from consilium.common.catalogue import open_catalogue
from consilium.common.errors import ConsiliumError, ErrorCode, SettingsError, WaitingError, WireError
from consilium.common.settings import parse
from consilium.common.study import Study, from_run_config
from consilium.server.disk import in_words
from consilium.server.inquiry import PAUSE_S, Letter
from consilium.server.ledger import AWAITED, Ledger
from consilium.server.replies import Replies
from consilium.server.run_folder import RunFolder
from consilium.server.study_run import StudyRun

app = ServerApp()

RUN_FOLDER_KEY: Final = "run-folder"
POLL_S: Final = 0.2
MARGIN_S: Final = 5.0
"""How much sooner than Flower this side takes a site that is silent for away.

Flower does when two heartbeats of 30 s are due. An `Inquiry` looks every 2 s, and a dead site is to be told of within 60 s.
"""
T = TypeVar("T")


class GridPost:
    """Carries messages over a Flower grid, to sites by the name their key was registered under.

    In Flower's simulation nodes have no names and no data of their own: each plays the site that a message is for, which
    is the message's group.
    """

    def __init__(self, grid: Grid, sites: tuple[str, ...]) -> None:
        self._grid: Final = grid
        self._sites: Final = sites
        self._pending: Final[dict[str, tuple[str, str]]] = {}  # site, and when its SuperNode had joined
        self._joined: Final[dict[str, str]] = {}
        self._replies: Final = Replies(grid) if isinstance(grid, HttpGrid) else None

    def connected(self) -> set[str]:
        """Sites that are online."""
        return set(self._nodes())

    def _nodes(self) -> dict[str, int]:
        nodes = [node for node in _patiently(self._grid.get_nodes) if not is_silent(node, time.time())]
        named = {node.name: node.node_id for node in nodes if node.name in self._sites}
        self._joined.update({node.name: node.last_activated_at for node in nodes if node.name in named})
        if named or any(node.name for node in nodes):
            return named
        return dict(zip(self._sites, sorted(node.node_id for node in nodes), strict=False))

    def send(self, site: str, action: wire.Action, content: RecordDict, timeout_s: float) -> str:
        """Send a request to a site; `WireError` ``site-unreachable`` if it is not connected."""
        node = self._nodes().get(site)
        if node is None:
            raise WireError(ErrorCode.SITE_UNREACHABLE)
        message = Message(content, dst_node_id=node, message_type=action, ttl=timeout_s, group_id=site)
        [ticket] = _patiently(lambda: self._grid.push_messages([message])) or [""]
        if not ticket:
            raise WireError(ErrorCode.SITE_UNREACHABLE, "the SuperLink did not take the message")
        self._pending[ticket] = (site, self._joined.get(site, ""))
        return ticket

    def receive(self) -> list[Letter]:
        """Collect answers, and what became of messages that will have none.

        One that was lost comes back as ``site-unreachable``, one that the site's ClientApp failed at as ``site-failed``. A
        SuperNode that has joined anew since a message was sent has forgotten it, and Flower waits for its answer in vain.
        """
        lost = [ticket for ticket, (site, joined) in self._pending.items() if self._joined.get(site, "") != joined]
        letters = [Letter(ticket, ErrorCode.SITE_UNREACHABLE) for ticket in lost]
        waiting = [ticket for ticket in self._pending if ticket not in lost]
        for ticket, message in _patiently(lambda: self._pull(waiting)):
            self._pending.pop(ticket, None)
            letters.append(Letter(ticket, _content(message)))
        for ticket in lost:
            del self._pending[ticket]
        if not letters:
            time.sleep(POLL_S)
        return letters

    def _pull(self, tickets: list[str]) -> list[tuple[str, Message | None]]:
        if self._replies is not None:
            return self._replies.pull(tickets)
        # The sender of an error may be the SuperLink: go by what is replied to.
        return [(reply.metadata.reply_to_message_id, reply) for reply in self._grid.pull_messages(tickets)]


def is_silent(node: NodeInfo, now: float) -> bool:
    """Whether a node's next heartbeats are so overdue that Flower is about to take it for offline; ``now`` since 1970."""
    return node.HasField("online_until") and node.online_until - now < MARGIN_S


def _patiently(call: Callable[[], T]) -> T:
    """Call again, for a minute, what failed because the SuperLink is gone for a moment.

    Flower itself repeats without end, but for errors that mention TLS: and of these is a connection that broke off.
    """
    for pause_s in PAUSE_S:
        try:
            return call()
        except httpx.TransportError as error:
            log(WARNING, "consilium: no answer from the SuperLink (%s); asking again", error)
            time.sleep(pause_s)
    return call()


def _content(message: Message | None) -> RecordDict | ErrorCode:
    """What a reply says; where it is an error, whether the SuperLink lost the message or the site failed."""
    if message is None:
        return ErrorCode.SITE_UNREACHABLE
    if not message.has_error():
        return message.content
    from_superlink = message.metadata.src_node_id == SUPERLINK_NODE_ID
    return ErrorCode.SITE_UNREACHABLE if from_superlink else ErrorCode.SITE_FAILED


def open_run(root: Path) -> tuple[RunFolder, StudyRun]:
    """Open a prepared run folder: frozen settings, catalogue, ledger."""
    folder = RunFolder(root)
    study = folder.open_study()
    ledger = Ledger.open(folder.ledger)
    try:
        ledger.check()
        return folder, StudyRun(folder, study, open_catalogue(folder.catalogue), ledger)
    except BaseException:
        ledger.close()
        raise


def run_stages(run: StudyRun, post: GridPost) -> None:
    """All stages in order; those that are finished are passed over."""
    from consilium.server.report import write_report

    missing = run.describe(post)
    run.collect(post, missing)
    kept = run.select()
    run.distill(kept)
    run.test()
    run.evaluate(post)
    run.fine_tune(post)
    write_report(run)


def _report_anyway(run: StudyRun) -> None:
    """Let metrics and report say what stopped the study, if they can still be written."""
    try:
        from consilium.server.report import write_report

        write_report(run)
    except Exception as error:
        log(ERROR, "consilium: the report could not be written: %s", error)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run-config names."""
    root = str(context.run_config.get(RUN_FOLDER_KEY, ""))
    try:
        if not root:
            raise SettingsError(
                f"run-config: {RUN_FOLDER_KEY} is required: the coordinator's folder that holds catalogue/, built with "
                "`consilium catalogue build`"
            )
        folder = RunFolder(Path(root))
        given = from_run_config(dict(context.run_config))
        if given.get("name"):
            folder.create(parse(Study, given, "run-config"))
        with folder.locked():
            folder, run = open_run(Path(root))
            log(INFO, "consilium: study %s (%s) in %s", run.study.name, run.study.digest[:12], folder.root)
            for kind in ("failure", *AWAITED):
                run.ledger.keep_result("", kind, "")
            try:
                run_stages(run, GridPost(grid, run.study.sites))
            except WaitingError as waiting:  # no fault: Flower's run is completed, and the study goes on later
                run.ledger.awaits(waiting)
                _report_anyway(run)
                log(INFO, "consilium: %s", waiting)
            except Exception as error:
                told = in_words(error)
                with suppress(ConsiliumError):  # a ledger that cannot be written cannot say so
                    run.ledger.keep_result("", "failure", str(told) if told else f"{type(error).__name__}: {error}")
                _report_anyway(run)
                if told is None or told is error:
                    raise
                raise told from error
            finally:
                run.ledger.close()
    except ConsiliumError as error:
        log(ERROR, "consilium: %s", error)
        raise
