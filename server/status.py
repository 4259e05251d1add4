"""Where a study is: read from its run folder, by anyone, at any time, without disturbing whoever works there."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from consilium.common.datasets import labelled
from consilium.common.errors import ErrorCode
from consilium.common.study import Study
from consilium.server import stacking
from consilium.server.ledger import NOT_CONSENTED, Ledger, Stage
from consilium.server.run_folder import RunFolder

WRONG: Final = frozenset({"failed", "interrupted"})
"""States that are not as they should be: `consilium status` ends with 1."""
REFUSALS: Final = tuple(map(str, (ErrorCode.BAD_SIGNATURE, ErrorCode.REFUSED_BY_POLICY, ErrorCode.NO_DATA)))
"""Codes by which a site says that it does not want to, or has nothing to do it with."""
TERMINAL: Final = frozenset({"finished", "failed", "interrupted", "awaits-consent", "awaits-answer"})
"""States in which nothing more happens unless someone starts the study (again)."""


@dataclass(frozen=True)
class State:
    """How far a study is.

    Attributes
    ----------
    word
        finished, failed, awaits-consent, awaits-answer or unfinished.
    told
        What stopped it, what it waits for, or what is still to do.
    """

    word: str
    told: str


def state_of(folder: RunFolder, study: Study, ledger: Ledger) -> State:
    """How far a study is, and what stopped it, as the ledger has it."""
    wanted = ["describe", "collect", "select", "distill"]
    wanted += ["test"] if labelled.is_packed(folder.test_set) else []
    wanted += ["evaluate"] + (["fine-tune"] if study.tuning else [])
    held = {stage.name: stage for stage in ledger.stages()}
    open_stages = [name for name in wanted if name not in held or not held[name].finished]
    if not open_stages:
        return State("finished", "")
    if failure := ledger.results("failure").get("", ""):
        return State("failed", failure)
    if awaited := ledger.results("awaited").get("", ""):
        return State("awaits-consent", awaited)
    if awaited := ledger.results("awaited-answer").get("", ""):
        return State("awaits-answer", awaited)
    return State(
        "unfinished", f"Still to do, or under way: {', '.join(open_stages)}. The same command goes on from here."
    )


def status(root: Path) -> dict[str, Any]:
    """Tell where a study is. `docs/status.md` documents every key.

    Raises
    ------
    StateError
        If there is no study in the folder, or its ledger is damaged.
    """
    folder = RunFolder(root)
    study = folder.open_study()
    in_use = folder.in_use()
    if not folder.ledger.exists():
        word = "running" if in_use else "not-begun"
        sites = {site: _site(site, study, None, in_use) for site in study.sites}
        return {
            "study": study.name,
            "status": word,
            "failure": None,
            "awaits": None,
            "fusion": study.fusion.method,
            "stack": None,
            "stages": {},
            "sites": sites,
        }
    ledger = Ledger.open(folder.ledger)
    try:
        state = state_of(folder, study, ledger)
        begun = bool(ledger.stages())
        word = state.word
        if word != "finished" and in_use:
            word = "running"
        elif word == "unfinished":
            word = "interrupted" if begun else "not-begun"
        return {
            "study": study.name,
            "status": word,
            "failure": state.told if word == "failed" else None,
            "awaits": state.told if word.startswith("awaits-") else None,
            "fusion": study.fusion.method,
            "stack": stacking.facts(study, ledger),
            "stages": {stage.name: _stage(stage) for stage in ledger.stages()},
            "sites": {site: _site(site, study, ledger, in_use) for site in study.sites},
        }
    finally:
        ledger.close()


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "done": stage.done,
        "total": stage.total,
        "seconds": round(stage.seconds, 1),
        "finished": stage.finished,
        "note": stage.note,
    }


def _site(site: str, study: Study, ledger: Ledger | None, running: bool) -> dict[str, Any]:
    tunes, offline = site in study.fine_tune.sites, site in study.collect.offline
    if ledger is None:
        return {
            "connected": None,
            "last_seen": None,
            "describe": "waiting",
            "images": {"answered": 0, "abstained": 0, "total": None},
            "evaluate": "waiting",
            "fine_tune": "waiting" if tunes else None,
            "bytes_sent": 0,
            "bytes_received": 0,
            "last_event": None,
        }
    stages = {stage.name: stage for stage in ledger.stages()}
    events = [event for event in ledger.events() if event.site == site]
    seen, connected = ledger.seen().get(site, (None, None))
    sent, received = ledger.traffic().get(site, (0, 0))

    without_consent = site in ledger.without_consent()

    def refused_in(stage: str) -> bool:
        return any(event.stage == stage and event.text == NOT_CONSENTED for event in events)

    def visited(stage: str, answered: bool) -> str:
        if without_consent and (stage == "describe" or (refused_in(stage) and not answered)):
            return "not consented"
        if answered:
            return "done"
        if offline:
            return "no file yet" if stage == "describe" else "offline"
        if stage not in stages:
            return "waiting"
        if any(event.stage == stage and event.text.startswith(REFUSALS) for event in events):
            return "refused"
        return "asked" if running and not stages[stage].finished else "no answer"

    return {
        "connected": connected if running else None,
        "last_seen": _time(seen),
        "describe": visited("describe", site in ledger.sites()),
        "images": {
            "answered": ledger.answered_images().get(site, 0),
            "abstained": len(ledger.abstentions(site)),
            "total": stages["collect"].total if "collect" in stages else None,
        },
        "evaluate": visited("evaluate", site in ledger.results("evaluate")),
        "fine_tune": visited("fine-tune", site in ledger.results("fine-tune")) if tunes else None,
        "bytes_sent": sent,
        "bytes_received": received,
        "last_event": (
            {"at": _time(events[-1].at), "stage": events[-1].stage, "text": events[-1].text} if events else None
        ),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
