"""A whole ablation: in which order it goes, that it goes on after a stop, and what the shipped one shows."""

import csv
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Row, read_rows
from consilium.server.ablation.run import Ablator, cells, run
from consilium.server.cli import app
from tests.small_ablation import SHIPPED, settings_of


def without_seconds(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as table:
        return [{key: value for key, value in line.items() if key != "seconds"} for line in csv.DictReader(table)]


def test_an_ablation_that_was_stopped_goes_on_and_ends_with_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = settings_of(tmp_path), tmp_path / "artefacts"
    rows, done = Ablator.rows, list[str]()

    def stops(work: Ablator, cell: Any) -> list[Row]:
        if cell.step == "consensus":
            raise KeyboardInterrupt
        done.append(cell.name)
        return rows(work, cell)

    with monkeypatch.context() as patched:
        patched.setattr(Ablator, "rows", stops)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "run", artefacts=store)
    assert done == ["even/teacher/0", "even/paper/0"]
    partial = read_rows(tmp_path / "run" / "results.csv")
    models = {path: path.stat().st_mtime_ns for path in store.glob("model/*/student.safetensors")}
    assert len(models) == 3
    _, found = run(settings, tmp_path / "run", artefacts=store)
    assert read_rows(tmp_path / "run" / "results.csv") == found
    assert found[: len(partial)] == partial
    assert all(path.stat().st_mtime_ns == before for path, before in models.items()), "nothing was trained again"
    run(settings, tmp_path / "whole")
    assert without_seconds(tmp_path / "whole" / "results.csv") == without_seconds(tmp_path / "run" / "results.csv")
    parts = {
        (row.kind, row.step): [one.part for one in found if (one.kind, one.step) == (row.kind, row.step)]
        for row in found
    }
    for model in ((Kind.STUDENT, "consensus"), (Kind.FEDAVG, ""), (Kind.POOLED_DATA, ""), (Kind.TRUE_MASKS, "")):
        assert parts[model] == [POOLED, "alpha", "bravo"]
    assert parts[Kind.ENSEMBLE, "paper"] == [POOLED, "alpha", "bravo", UNLABELLED]
    assert {(row.images_before, row.images_after) for row in found if row.kind is Kind.STUDENT} == {(18, 18), (12, 12)}


def test_cells_go_scenario_by_scenario_and_a_scenario_may_want_few(tmp_path: Path) -> None:
    few = {"name": "few", "seeds": [1], "steps": ["consensus"]}
    settings = settings_of(tmp_path, seeds=[0, 1], scenario=[{"name": "even"}, few])
    assert [cell.name for cell in cells(settings) if cell.scenario.name == "few"] == [
        "few/teacher/1", "few/consensus/1", "few/pooled-data/1", "few/fedavg/1", "few/true-masks/1",
    ]  # fmt: skip
    assert len(list(cells(settings))) == 2 * 6 + 5


def test_the_shipped_ablation_runs_on_phantoms_and_shows_what_it_found(tmp_path: Path) -> None:
    few = '[{ name = "even", steps = ["paper", "no-entropy", "consensus"] }, { name = "few", steps = ["paper"] }]'
    text = SHIPPED.read_text().replace("[scale.tiny]\n", f"[scale.tiny]\nscenario = {few}\n")
    (tmp_path / "short.toml").write_text(text)
    told = CliRunner().invoke(
        app, ["experiment", str(tmp_path / "short.toml"), "--scale", "tiny", "--run", str(tmp_path / "run")],
        catch_exceptions=False,
    )  # fmt: skip
    assert told.exit_code == 0
    assert {path.stem for path in (tmp_path / "run" / "tables").glob("*.md")} == {
        "targets",
        "ladder",
        "sites",
        "scenarios",
    }
    page = (tmp_path / "run" / "index.html").read_text()
    for words in ('id="ladder"', "What each step changes", "<svg", "at least as good as the best single teacher"):
        assert words in page
    assert "follow-up = {" in page
    assert "var(--" not in (tmp_path / "run" / "ladder.svg").read_text()
    assert str(tmp_path / "run" / "index.html") in told.output.replace("\n", "")
