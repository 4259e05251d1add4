"""A study that follows another: the sites answer with its student as they fine-tuned it, and the new student goes on from it."""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from typer.testing import CliRunner

from consilium.clients import cli as site_cli
from consilium.clients import site_text
from consilium.clients.adopt import adopt
from consilium.clients.audit import what_left
from consilium.clients.settings import load_site
from consilium.common.errors import SettingsError, StateError
from consilium.common.identity.signing import make_signing_key, signing_key
from consilium.common.settings import parse, read_toml, to_toml
from consilium.server import follow_up
from consilium.server.cli import app
from consilium.server.report.tables import TUNED_NOTE
from consilium.server.report.two_studies import two_studies, two_studies_table
from consilium.server.run_folder import RunFolder
from consilium.server.simulate import follow_up_folder, simulate, simulate_follow_up
from consilium.server.simulation import SimulatedStudy

TINY = Path(__file__).parents[1] / "tiny.toml"
LONGER = {"image-budget": 800, "batch": 8, "learning-rate": 3e-3, "threads": 1}


def settings() -> SimulatedStudy:
    """North keeps its teacher, east fine-tunes the student, which has to be good for something."""
    document = read_toml(TINY)
    document["student"] = {"onnx": False, "network": {"name": "unet", "width": 8}, "training": LONGER}
    for site in document["simulation"]["sites"].values():
        site |= {"images": 24, "network": {"name": "unet", "width": 8}, "training": LONGER}
    return parse(SimulatedStudy, document, "tiny")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    simulate(settings(), folder, "inline", Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def second(first: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of the first study, with the one that follows it; and what that measured."""
    folder = first.with_name("followed")
    shutil.copytree(first, folder, symlinks=True)
    return folder, simulate_follow_up(settings(), folder, "inline", Console(quiet=True))


def key_of(run: Path) -> Any:
    return signing_key(run / "coordinator" / "signing.pem")


def follow(run: Path, to: Path, name: str = "second") -> follow_up.FollowUp:
    return follow_up.follow(RunFolder(run), RunFolder(to), name, key_of(run))


# --- the study


def test_sites_that_fine_tuned_answer_with_their_student_and_the_others_as_before(
    second: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = second
    assert found["study"] == "tiny-follow-up"
    tuned = {name: site["teacher"]["fine_tuned_student"] for name, site in found["sites"].items()}
    assert tuned == {"north": False, "east": True}
    page = " ".join((follow_up_folder(folder) / "report.html").read_text().split())
    assert "unet, fine-tuned" in page
    assert TUNED_NOTE.partition("'")[0] in page
    before = json.loads((folder / "metrics.json").read_text())
    assert before["study"] == "tiny"
    assert found["catalogue_hash"] == before["catalogue_hash"]
    assert found["sites"]["east"]["teacher"]["local_dice"] == before["sites"]["east"]["fine_tuned"]["local_dice"]
    assert found["sites"]["north"]["teacher"] == before["sites"]["north"]["teacher"]
    assert TUNED_NOTE.partition("'")[0] not in (folder / "report.html").read_text()


def test_its_student_goes_on_from_the_first_ones(second: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = second
    weights = (folder / "student" / "student.safetensors").read_bytes()
    card = json.loads((follow_up_folder(folder) / "student" / "card.json").read_text())
    assert card["weights-sha256"] == hashlib.sha256(weights).hexdigest()
    assert (follow_up_folder(folder) / "student" / "student.safetensors").read_bytes() != weights


def test_started_again_by_command_it_asks_nobody_twice_and_shows_both(second: tuple[Path, dict[str, Any]]) -> None:
    folder, found = second
    log, file = folder / "sites" / "east" / "audit.jsonl", folder.with_name("tiny.toml")
    left = {name: [one["masks"], one["repeats"]] for name, one in what_left(log)["studies"].items()}
    assert left[found["study_digest"]] == [36, 0]
    file.write_text(to_toml(settings()))
    result = CliRunner().invoke(app, ["simulate", str(file), "--run", str(folder), "--engine", "inline", "--follow-up"])
    assert result.exit_code == 0, result.output
    assert {name: [one["masks"], one["repeats"]] for name, one in what_left(log)["studies"].items()} == left
    assert "Both studies: Dice in percent" in result.output
    for report in (folder / "report.html", follow_up_folder(folder) / "report.html"):
        assert f"Report: {report}" in result.output


def test_both_studies_side_by_side() -> None:
    def metrics(home: float, tuned: float | None, ensemble: float, student: float) -> dict[str, Any]:
        def score(mean: float) -> dict[str, Any]:
            return {"mean": mean, "std": 1.0, "n": 10}

        teacher = {"local_dice": score(home), "pooled_dice": score(home - 5), "pooled_dice_by_label": None}
        east = {"teacher": teacher, "fine_tuned": None if tuned is None else {"local_dice": score(tuned)}}
        whole = {name: {"pooled_dice": score(mean)} for name, mean in (("ensemble", ensemble), ("student", student))}
        return {"labels": ["lesion"], "sites": {"east": east}, **whole}

    table = two_studies_table(metrics(60, 62, 58, 54), metrics(62, 64, 61, 55))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["east", "60.0 ± 1.0", "62.0 ± 1.0", "64.0 ± 1.0"],
        ["all sites together", "55.0 ± 1.0", "58.0 ± 1.0", "61.0 ± 1.0"],
        ["student", "55.0 ± 1.0", "54.0 ± 1.0", "55.0 ± 1.0"],
    ]
    assert [[cell.best for cell in row[1:]] for row in table.rows] == [
        [False, False, True],
        [False, False, True],
        [True, False, True],
    ]
    assert told(metrics(60, 62, 58, 54), metrics(62, 59.9, 61, 55)).endswith("began with at 0 of 1 sites.\n")
    assert told(metrics(60, 62, 58, 54), metrics(62, 60, 61, 55)).endswith("began with at 1 of 1 sites.\n")
    assert "equals or beats" not in told(metrics(60, None, 58, 54), metrics(60, None, 61, 55))


def told(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What a terminal shows."""
    console = Console(width=200, file=StringIO())
    console.print(two_studies(first, second))
    return cast(StringIO, console.file).getvalue()


def test_no_follow_up_where_nobody_fine_tunes(tmp_path: Path) -> None:
    document = TINY.read_text().replace('sites = ["east"]', "sites = []")
    (tmp_path / "none.toml").write_text(document)
    result = CliRunner().invoke(
        app, ["simulate", str(tmp_path / "none.toml"), "--follow-up", "--run", str(tmp_path / "run")]
    )
    assert isinstance(result.exception, SettingsError)
    assert "name them in fine-tune.sites" in str(result.exception)
    assert not (tmp_path / "run").exists()


# --- its run folder


def test_the_first_study_is_only_read_and_the_second_can_do_without_it(first: Path, tmp_path: Path) -> None:
    def held() -> dict[Path, bytes]:
        files = [path for path in first.rglob("*") if path.is_file() and not path.name.startswith("ledger.sqlite-")]
        return {path: path.read_bytes() for path in files}

    before = held()
    made = follow(first, tmp_path / "second")
    assert held() == before
    assert (made.study.name, made.fine_tuned, made.others) == ("second", ("east",), ("north",))
    start = tmp_path / "second" / follow_up.START
    assert made.study.student.network.weights == str(start)
    assert start.read_bytes() == (first / "student" / "student.safetensors").read_bytes()
    same = made.study.model_dump() | {"name": "tiny", "student": settings().student.model_dump()}
    assert same == settings().study.model_dump()
    catalogue = tmp_path / "second" / "catalogue" / "manifest.json"
    assert catalogue.samefile(first / "catalogue" / "manifest.json")  # a link takes no room
    assert (tmp_path / "second" / "sealing.json").read_bytes() != (first / "sealing.json").read_bytes()


def test_made_twice_it_is_left_as_it_is(first: Path, tmp_path: Path) -> None:
    follow(first, tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "test")  # as if stopped half way
    (tmp_path / "second" / "study.toml").unlink()
    kept = (tmp_path / "second" / "sealing.json").read_bytes()
    made = follow(first, tmp_path / "second")
    assert RunFolder(tmp_path / "second").open_study() == made.study
    assert (tmp_path / "second" / "sealing.json").read_bytes() == kept
    assert (tmp_path / "second" / "test" / "index.csv").is_file()
    with pytest.raises(StateError, match=r"holds a study with other settings \(name: 'second' there, 'third' given\)"):
        follow(first, tmp_path / "second", "third")


def test_what_cannot_be_followed_is_refused(first: Path, tmp_path: Path) -> None:
    for to, name in ((first, "second"), (tmp_path / "second", "tiny")):
        with pytest.raises(SettingsError, match="give it another name than tiny, and another folder than"):
            follow(first, to, name)
    make_signing_key(tmp_path / "other.pem")
    with pytest.raises(SettingsError, match=r"the key is that which signed .*, SHA256:.*; got SHA256:"):
        follow_up.follow(
            RunFolder(first), RunFolder(tmp_path / "second"), "second", signing_key(tmp_path / "other.pem")
        )
    unfinished = tmp_path / "unfinished"
    shutil.copytree(first, unfinished, symlinks=True)
    shutil.rmtree(unfinished / "student")
    with pytest.raises(StateError, match="has no student yet: finish that study first"):
        follow(unfinished, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_study_that_nobody_fine_tuned_cannot_be_followed(first: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(first, run, symlinks=True)
    with closing(sqlite3.connect(run / "ledger.sqlite")) as ledger, ledger:
        assert ledger.execute("DELETE FROM result WHERE kind = 'fine-tune'").rowcount == 1
    with pytest.raises(StateError, match="no site has fine-tuned the student of tiny"):
        follow(run, tmp_path / "second")


def test_the_command_says_what_comes_next(first: Path, tmp_path: Path) -> None:
    to, key = tmp_path / "second", first / "coordinator" / "signing.pem"
    result = CliRunner().invoke(app, ["follow-up", str(first), "--key", str(key), "--run", str(to)])
    assert result.exit_code == 0, result.output
    assert "tiny-follow-up follows tiny" in result.output
    assert "At east, before the study is shown to them:" in result.output
    assert "consilium-site adopt SITE.toml tiny" in result.output
    assert "north did not fine-tune the student" in result.output
    assert f"consilium run {to / 'study.toml'} --run {to}" in result.output


# --- the site


@pytest.fixture
def east(first: Path, tmp_path: Path) -> Path:
    """A copy of the site that fine-tuned; gives its settings file."""
    shutil.copytree(first / "sites" / "east", tmp_path / "east")
    return tmp_path / "east" / "site.toml"


def test_a_site_names_its_fine_tuned_student_and_keeps_the_file_as_it_was(east: Path) -> None:
    before, text = load_site(east).settings, east.read_text()
    made = adopt(east, "tiny")
    after = load_site(east).settings
    assert made.former is not None
    assert made.former.read_text() == text
    assert after.model_dump(exclude={"teacher"}) == before.model_dump(exclude={"teacher"})
    assert (east.parent / after.teacher.folder).resolve() == made.folder  # type: ignore[union-attr]
    assert (after.teacher.size, after.teacher.channels, after.teacher.output) == (64, 1, "soft")
    again, once = adopt(east, made.folder.name[:12]), east.read_text()
    assert again.former is None
    assert (again.folder, east.read_text()) == (made.folder, once)
    changed = text.replace("[teacher]\n", "[teacher]\ntemperature = 1.5\n")
    east.write_text(changed)
    later = adopt(east, "tiny").former
    assert later is not None
    assert (later.name, later.read_text(), made.former.read_text()) == ("site.toml.before-tiny-2", changed, text)


def test_the_command_measures_what_a_study_will_weigh(east: Path) -> None:
    result = CliRunner().invoke(site_cli.app, ["adopt", str(east), "tiny"])
    assert result.exit_code == 0, result.output
    card = json.loads((east.parent / "check" / "card.json").read_text())
    assert card["validation"]["images"] == 6
    assert card["teacher"]["fine-tuned-student"] is True
    assert "study" not in card["teacher"]  # it may be another coordinator's
    assert "It answers from the next start of the site on" in result.output


def test_a_binary_teacher_stays_binary(east: Path) -> None:
    east.write_text(east.read_text().replace("[teacher]\n", '[teacher]\noutput = "binary"\n'))
    adopt(east, "tiny")
    assert load_site(east).settings.teacher.offers == "binary"


def test_what_a_site_cannot_adopt_is_refused(east: Path) -> None:
    text = east.read_text()
    with pytest.raises(SettingsError, match=r"'large' is none of those shown to this site: .* \(tiny\)"):
        adopt(east, "large")
    other = text.replace('"lesion"', '"nodule"')
    east.write_text(other)
    with pytest.raises(SettingsError, match="shows lesion, this site's labels are nodule"):
        adopt(east, "tiny")
    assert east.read_text() == other
    east.write_text(text)
    shutil.rmtree(east.parent / "students")
    with pytest.raises(StateError, match=r"no student of tiny was fine-tuned at east: .*fine-tune\.sites \(east\)"):
        adopt(east, "tiny")
    assert east.read_text() == text
    assert not list(east.parent.glob("site.toml.*"))


def test_a_file_that_has_to_be_changed_by_hand_stays_as_it_is(east: Path) -> None:
    inline = east.read_text().split("[teacher]")[0] + "teacher.size = 64\n"
    east.write_text(inline)
    with pytest.raises(
        SettingsError, match=r"put this in the place of the table \[teacher\] yourself:\n\[teacher\]\nsize"
    ):
        adopt(east, "tiny")
    assert east.read_text() == inline
    assert not list(east.parent.glob("site.toml.*"))


# --- the text of its settings


def test_only_the_teachers_tables_are_replaced() -> None:
    text = """# our site
name = "east" # in the register

# what answers
[teacher] # since 2026
folder = "old" # trained in May
# a note on the old one
size = 96
[teacher.network]
name = "unet"

# where the images are
[data]
packed = "data"
"""
    assert (
        site_text.with_teacher(text, '[teacher]\nfolder = "new"\n')
        == """# our site
name = "east" # in the register

# what answers
[teacher]
folder = "new"

# where the images are
[data]
packed = "data"
"""
    )


def test_a_site_without_the_table_gets_one() -> None:
    assert (
        site_text.with_teacher('name = "east"\n', "[teacher]\nsize = 64\n") == 'name = "east"\n\n[teacher]\nsize = 64\n'
    )
    last = 'name = "east"\n[teacher]\nsize = 96\n'
    assert site_text.with_teacher(last, "[teacher]\nsize = 64\n") == 'name = "east"\n[teacher]\nsize = 64\n'


def test_a_text_that_would_mean_something_else_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    inline = 'name = "east"\nteacher = { size = 96 }\n'
    path.write_text(inline)
    changed = site_text.with_teacher(inline, "[teacher]\nsize = 64\n")
    with pytest.raises(SettingsError, match=r"site\.toml: do it yourself"):
        site_text.write(path, changed, {"size": 64}, "do it yourself")
    assert path.read_text() == inline
    assert [one.name for one in tmp_path.iterdir()] == ["site.toml"]
