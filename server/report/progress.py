"""`consilium status`: where a study is, for a terminal and for machines."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from consilium.server.board import STAGE_LABELS
from consilium.server.report.table import Cell, Table
from consilium.server.report.tables import NONE, bytes_text, plain, seconds_text, stack_text
from consilium.server.status import TERMINAL, status

EVERY_S: Final = 1.0
NOTHING_YET: Final = frozenset({"waiting", NONE})
WORDS: Final = {
    "not-begun": "has not begun",
    "running": "is going on",
    "interrupted": "was interrupted: nobody works on it. Start the same command again; it goes on from here",
    "failed": "failed",
    "awaits-consent": "waits for consent",
    "awaits-answer": "has stopped to wait for an answer file",
    "finished": "is finished",
}


def follow_status(root: Path, console: Console, *, watch: bool, as_json: bool) -> str:
    """Print where a study is; with ``watch`` until nothing more happens. Gives the study's last state.

    Where there is no terminal, ``watch`` prints anew whenever something but the clock changed.
    """
    told = status(root)
    if as_json or not (watch and console.is_terminal):
        _print(told, console, as_json)
        while watch and told["status"] not in TERMINAL:
            time.sleep(EVERY_S)
            before, told = told, status(root)
            if _facts(told) != _facts(before):
                _print(told, console, as_json)
        return str(told["status"])
    with Live(console_status(told), console=console, auto_refresh=False) as live:
        while told["status"] not in TERMINAL:
            time.sleep(EVERY_S)
            told = status(root)
            live.update(console_status(told), refresh=True)
    return str(told["status"])


def _print(told: Mapping[str, Any], console: Console, as_json: bool) -> None:
    if as_json:
        console.file.write(json.dumps(told) + "\n")
        console.file.flush()
    else:
        console.print(console_status(told))


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told, without what changes with the clock."""
    stages = {name: stage | {"seconds": 0} for name, stage in told["stages"].items()}
    sites = {name: site | {"last_seen": ""} for name, site in told["sites"].items()}
    return {**told, "stages": stages, "sites": sites}


def console_status(told: Mapping[str, Any]) -> Group:
    """Lay out what `status` gave: state, stages, sites, and each site's last event; readable from 80 columns on."""
    parts: list[Table | Text] = [Text(f"Study {told['study']} {WORDS[told['status']]}.", style="bold")]
    if held_up := told["failure"] or told["awaits"]:
        parts.append(Text(held_up))
    if told["stack"]:
        parts.append(Text(f"The pseudo masks are a stack's, {stack_text(told['stack'])}."))
    if told["stages"]:
        parts += [Text(""), _stages(told["stages"])]
    parts += [Text(""), _sites(told["sites"])]
    for site, held in told["sites"].items():
        if event := held["last_event"]:
            parts.append(Text(f"{site}, {event['stage']}, {_ago(event['at'])}: {plain(event['text'], 300)}"))
    return Group(*parts)


def _stages(stages: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            Cell(STAGE_LABELS.get(name, name)),
            Cell("done" if stage["finished"] else f"{stage['done']:,} of {stage['total']:,}"),
            Cell(plain(stage["note"], 40)),
            Cell(seconds_text(stage["seconds"])),
        )
        for name, stage in stages.items()
    )
    return Table("Stages", ("", "", "", "Took"), rows, 3)


def _sites(sites: Mapping[str, Any]) -> Table:
    def row(name: str, held: Mapping[str, Any]) -> tuple[Cell, ...]:
        images = held["images"]
        answered = NONE if images["total"] is None else f"{images['answered']:,} of {images['total']:,}"
        answered += f", not {images['abstained']:,}" if images["abstained"] else ""
        here = {True: "connected", False: "away", None: NONE}[held["connected"]]
        words = (name, here, held["describe"], held["evaluate"], held["fine_tune"] or NONE)
        moved = (bytes_text(held["bytes_sent"]), bytes_text(held["bytes_received"]))
        return tuple(map(Cell, (*words, _ago(held["last_seen"]), answered, *moved)))

    columns = ("Site", "Now", "Told", "Evaluates", "Fine-tunes", "Last seen", "Images answered", "Sent", "Received")
    rows = tuple(row(name, held) for name, held in sites.items())
    idle = [
        column for column, *cells in zip(columns, *rows, strict=True) if {cell.text for cell in cells} <= NOTHING_YET
    ]
    spare = (*idle, "Received", "Sent", "Last seen", "Fine-tunes", "Evaluates", "Told")
    return Table("Sites", columns, rows, 5, spare=tuple(dict.fromkeys(spare)))


def _ago(time_text: str | None) -> str:
    if time_text is None:
        return NONE
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time_text)).total_seconds()
    return f"{seconds_text(max(0.0, round(seconds)))} ago".replace(".0 s", " s")
