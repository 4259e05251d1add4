"""What left a hospital is told from a log that shows whether it was touched."""

import hashlib
import json
from pathlib import Path

import pytest

from consilium.clients import cli
from consilium.clients.audit import FIRST, Audit, Event, verify, what_left
from consilium.common.errors import StateError

A, B = "a" * 64, "b" * 64


def written(folder: Path) -> Path:
    log = Audit(folder / "audit.jsonl")
    for event in (
        Event(A, B, "describe", "not-consented"),
        Event(A, B, "predict", "not-consented"),
        Event(A, B, "describe", "answered", bytes_out=100),
        Event(A, B, "predict", "answered", masks=5, abstained=1, bytes_out=1000),
        Event(A, B, "predict", "answered", masks=1, repeats=4, bytes_out=900),
        Event(A, B, "evaluate", "answered", student="s", bytes_out=50),
        Event(A, B, "evaluate", "answered", student="s", bytes_out=50),
        Event(B, B, "predict", "unknown-study"),
    ):
        log.record(event)
    return log.path


def say(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    (folder / "site.toml").write_text('name = "north"\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", str(folder / "site.toml"), *options])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


def test_the_summary_adds_up_by_study(tmp_path: Path) -> None:
    path = written(tmp_path)
    told = what_left(path)
    one, other = told["studies"][A], told["studies"][B]
    counts = {key: one[key] for key in ("masks", "repeats", "abstained", "metrics", "students", "bytes")}
    assert counts == {"masks": 6, "repeats": 4, "abstained": 1, "metrics": 2, "students": 1, "bytes": 2100}
    assert one["refusals"] == {"not-consented": 2}
    assert (other["masks"], other["bytes"], other["refusals"]) == (0, 0, {"unknown-study": 1})
    assert told["lines"] == 8
    assert told["last"] == hashlib.sha256(path.read_bytes().splitlines()[-1]).hexdigest() != FIRST


def damaged(lines: list[str]) -> dict[str, tuple[list[str], int]]:
    return {
        "a line changed": ([*lines[:3], lines[3].replace('"masks":5', '"masks":4'), *lines[4:]], 5),
        "a line taken out": ([*lines[:2], *lines[3:]], 3),
        "the first line taken out": (lines[1:], 1),
        "two lines exchanged": ([lines[0], lines[2], lines[1], *lines[3:]], 2),
        "a line that is none": ([*lines[:4], "{}", *lines[4:]], 5),
        "a number that is a text": ([lines[0].replace('"masks":0', '"masks":"0"'), *lines[1:]], 1),
    }


@pytest.mark.parametrize("name", damaged([""] * 9))
def test_a_damaged_chain_is_named_with_its_line_and_does_not_end_well(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path)
    lines, number = damaged(path.read_text().splitlines())[name]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StateError, match=rf"line {number}\b"):
        verify(path)
    status, text = say(tmp_path, capsys)
    assert (status, f"line {number}" in text) == (1, True)


def test_the_command_tells_people_and_machines_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    status, text = say(tmp_path, capsys)
    assert (status, "chain of 8 lines is whole" in text, what_left(path)["last"] in text) == (0, True, True)
    status, text = say(tmp_path, capsys, "--json")
    assert (status, json.loads(text)) == (0, {"site": "north", **what_left(path)})


def test_a_site_without_a_log_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(tmp_path, capsys)[0] == 2
