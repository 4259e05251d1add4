"""Where a study is: states, what is told of each site, exit status."""

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from consilium.common.errors import StateError
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.server.cli import app
from consilium.server.ledger import Ledger
from consilium.server.report.progress import console_status
from consilium.server.run_folder import RunFolder
from consilium.server.status import status

STAGES = ("describe", "collect", "select", "distill", "evaluate", "fine-tune")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(parse(Study, {"name": "s", "sites": ["north", "east"], "fine-tune": {"sites": ["east"]}}, "x"))
    return made


@pytest.fixture
def ledger(folder: RunFolder) -> Iterator[Ledger]:
    opened = Ledger.open(folder.ledger)
    yield opened
    opened.close()


def told(folder: RunFolder) -> tuple[int, dict[str, Any]]:
    ended = CliRunner().invoke(app, ["status", str(folder.root), "--json"])
    return ended.exit_code, json.loads(ended.stdout)


def finish(ledger: Ledger, *stages: str) -> None:
    for stage in stages:
        ledger.finish(stage, 1.0)


def test_a_study_that_has_not_begun_is_no_fault(folder: RunFolder) -> None:
    code, found = told(folder)
    assert (code, found["status"]) == (0, "not-begun")
    assert found["sites"]["north"]["images"] == {"answered": 0, "abstained": 0, "total": None}


def test_whoever_holds_the_lock_makes_it_run_and_without_it_it_was_interrupted(
    folder: RunFolder, ledger: Ledger
) -> None:
    ledger.advance("collect", 8, 40, 2.0)
    ledger.keep_result("", "failure", "left over from the start before")
    with folder.locked():
        assert told(folder)[0] == 0
        assert told(folder)[1]["status"] == "running"
    ledger.keep_result("", "failure", "")
    code, found = told(folder)
    assert (code, found["status"], found["failure"]) == (1, "interrupted", None)


def test_a_failed_study_says_why_and_ends_with_one(folder: RunFolder, ledger: Ledger) -> None:
    ledger.advance("describe", 0, 2, 2.0)
    ledger.keep_result("", "failure", "1 of 2 sites take part")
    code, found = told(folder)
    assert (code, found["status"], found["failure"]) == (1, "failed", "1 of 2 sites take part")


def test_a_study_that_awaits_consent_is_no_fault_and_a_site_that_consents_or_revokes_is_told(
    folder: RunFolder, ledger: Ledger
) -> None:
    ledger.advance("describe", 0, 2, 2.0)
    ledger.not_consented("describe", "east")
    ledger.keep_result("", "awaited", "s waits for consent: east")
    code, found = told(folder)
    assert (code, found["status"], found["awaits"]) == (0, "awaits-consent", "s waits for consent: east")
    assert (found["failure"], found["sites"]["east"]["describe"]) == (None, "not consented")
    assert found["sites"]["east"]["evaluate"] == "waiting"
    ledger.consented("describe", "east")
    ledger.site_described("east", "{}")
    east = told(folder)[1]["sites"]["east"]
    assert (east["describe"], east["last_event"]["text"]) == ("done", "takes part: consented")
    ledger.not_consented("collect", "east")
    assert told(folder)[1]["sites"]["east"]["describe"] == "not consented"


def test_a_finished_study_stays_finished(folder: RunFolder, ledger: Ledger) -> None:
    finish(ledger, *STAGES)
    assert told(folder)[0] == 0
    with folder.locked():  # `consilium report`, for example
        assert told(folder)[1]["status"] == "finished"
    ledger.keep_result("", "failure", "a report that could not be drawn")
    assert told(folder)[1]["status"] == "finished"


def test_every_site_is_told_stage_by_stage(folder: RunFolder, ledger: Ledger) -> None:
    ledger.site_described("north", json.dumps({"output": "soft"}))
    ledger.not_consented("describe", "east")
    finish(ledger, "describe")
    ledger.advance("collect", 0, 40, 2.0)
    ledger.answered("north", 0, 8, 100, 0.1, abstained=[3, 7])
    ledger.moved("north", "predict", 1000, 10)
    ledger.saw({"north"}, {"east"})
    with folder.locked():
        north, east = (told(folder)[1]["sites"][site] for site in ("north", "east"))
    assert (north["describe"], east["describe"]) == ("done", "not consented")
    assert north["images"] == {"answered": 8, "abstained": 2, "total": 40}
    assert (north["connected"], north["evaluate"], north["fine_tune"]) == (True, "waiting", None)
    assert (north["bytes_sent"], north["bytes_received"]) == (1000, 10)
    assert north["last_seen"] is not None
    assert (east["connected"], east["last_seen"]) == (None, None), "it was never seen"
    assert "not consented" in east["last_event"]["text"]
    ledger.saw({"east"}, {"north"})
    with folder.locked():
        assert told(folder)[1]["sites"]["north"]["connected"] is False


def test_a_site_that_did_not_evaluate_is_told_apart_from_one_that_is_asked(folder: RunFolder, ledger: Ledger) -> None:
    finish(ledger, "describe", "collect", "select", "distill")
    ledger.advance("evaluate", 0, 2, 0.0)
    with folder.locked():
        assert told(folder)[1]["sites"]["north"]["evaluate"] == "asked"
    ledger.keep_result("east", "evaluate", "{}")
    finish(ledger, "evaluate")
    found = told(folder)[1]["sites"]
    assert (found["north"]["evaluate"], found["east"]["evaluate"]) == ("no answer", "done")


def test_it_fits_a_terminal(folder: RunFolder, ledger: Ledger) -> None:
    ledger.advance("collect", 8, 40, 2.0, "waiting for east")
    ledger.saw({"north"}, {"east"})
    ledger.tell("collect", "is not connected; it is asked again as soon as it is back", "east")
    with folder.locked():
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(console_status(status(folder.root)))
    text = console.export_text()
    assert "Study s is going on." in text
    assert "8 of 40" in text
    assert "waiting for east" in text
    assert re.search(r"east, collect, \d+ s ago: is not connected", text)
    assert max(map(len, text.splitlines())) <= 100


def at_width(told: dict[str, Any], width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_status(told))
    return console.export_text()


@pytest.mark.parametrize("tuned", [True, False])
def test_at_80_columns_no_word_is_broken_and_what_is_not_shown_is_named(
    folder: RunFolder, ledger: Ledger, tuned: bool
) -> None:
    finish(ledger, "describe")
    ledger.advance("collect", 20_480, 25_000, 61.0, "waiting for east, south, west")
    ledger.answered("north", 0, 20_480, 100, 0.1, abstained=range(37))
    ledger.moved("north", "predict", 204_800_000, 1_234_000_000)
    ledger.not_consented("describe", "east")
    ledger.site_described("north", "{}")
    ledger.saw({"north", "east"}, set())
    ledger.saw({"north"}, {"east"})
    with folder.locked():
        told = status(folder.root)
    if not tuned:
        told["sites"]["east"]["fine_tune"] = None
    wide, narrow = (re.sub(r"\d+ s ago|─", "", at_width(told, width)) for width in (200, 80))
    assert "No room here for" not in wide
    *_, left_out = re.findall(r"No room here for: (.*)\.", narrow) or [""]
    assert set(narrow.replace(f"No room here for: {left_out}.", "").split()) <= set(wide.split())
    assert max(map(len, narrow.splitlines())) <= 80
    for shown in ("north", "connected", "away", "not consented", "20,480 of 25,000, not 37"):
        assert shown in narrow, shown
    assert "Evaluates" in left_out, "nobody was asked yet"
    assert "Told" not in left_out


def test_watching_ends_with_the_study_and_prints_changes_only(folder: RunFolder, ledger: Ledger) -> None:
    ledger.advance("collect", 8, 40, 2.0)
    command = [sys.executable, "-m", "consilium.server.cli", "status", str(folder.root), "--watch", "--json"]
    with folder.locked():
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None
        first = json.loads(watcher.stdout.readline())
        time.sleep(1.5)
        finish(ledger, *STAGES)
    rest = watcher.communicate(timeout=20)[0].splitlines()
    assert first["status"] == "running"
    assert [json.loads(line)["status"] for line in rest] == ["finished"]
    assert watcher.returncode == 0


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"is not a run folder: study\.toml is missing"):
        status(tmp_path)


def test_looking_never_keeps_a_study_from_starting(folder: RunFolder) -> None:
    with folder.locked():
        pass
    command = f"from pathlib import Path; from consilium.server.run_folder import RunFolder\n\
folder = RunFolder(Path({str(folder.root)!r}))\nwhile True: folder.in_use()"
    looker = subprocess.Popen([sys.executable, "-c", command])
    try:
        time.sleep(1.5)
        for _ in range(200):
            with folder.locked():
                pass
    finally:
        looker.kill()
        looker.wait()
