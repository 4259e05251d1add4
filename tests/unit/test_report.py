import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rich.console import Console
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from consilium.common import soft_mask
from consilium.common.catalogue import CatalogueImage, build, image_id
from consilium.common.datasets import labelled, phantoms
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import DataError
from consilium.common.identity.signing import make_signing_key
from consilium.common.metrics import dice
from consilium.common.networks.build import build as build_network
from consilium.common.networks.student_files import save_student, student_card
from consilium.common.study import Study
from consilium.common.wire import EvaluateReply, FineTuneReply
from consilium.server.cli import app
from consilium.server.fusion import weighted_mean
from consilium.server.ledger import Ledger
from consilium.server.pooled_evaluation import native_truths, write_test_sites
from consilium.server.report import write_report
from consilium.server.report.evaluation import console_evaluation
from consilium.server.report.gallery import gallery, outline
from consilium.server.report.tables import (
    bytes_text,
    console_table,
    dice_table,
    fusion_table,
    rivals,
    seconds_text,
    verdict,
)
from consilium.server.run_folder import RunFolder
from consilium.server.study_run import StudyRun

SITES = ("north", "east", "south")
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def make_study(sites: tuple[str, ...], size: int, *, tuned: bool, labels: tuple[str, ...], channels: int) -> Study:
    return Study.model_validate(
        {
            "name": "small",
            "preset": "paper",
            "sites": sites,
            "labels": labels,
            "image": {"size": size, "channels": channels},
            "collect": {"chunk": 8},
            "exclusion": {"alpha": 500.0, "beta": 5.0},
            "student": {
                "network": {"name": "unet", "width": 4},
                "training": {"image-budget": 64, "augment-until": 0.75},
            },
            "fine-tune": {"sites": sites[1:2] if tuned else ()},
        }
    )


def opened(
    root: Path,
    sites: tuple[str, ...] = SITES,
    size: int = 64,
    *,
    tests: int = 6,
    tuned: bool = True,
    labels: tuple[str, ...] = ("lesion",),
    channels: int = 1,
    collections: tuple[str, ...] = ("", "", ""),
) -> StudyRun:
    """A run folder with a catalogue and, where asked for, test images; nothing has been asked yet."""
    folder = RunFolder(root)
    study = make_study(sites, size, tuned=tuned, labels=labels, channels=channels)
    folder.create(study)
    images = np.concatenate([phantoms.make(site, 8, size, 1, lesion_free=0.25)[0] for site in sites])
    listed = [
        CatalogueImage(one, f"{i}.png", collection=collections[i // 8 % 3])
        for i, one in enumerate(images.repeat(channels, axis=1))
    ]
    if tests:
        pixels, truth = phantoms.make(sites[0], tests, size, 2)
        pixels, truth = pixels.repeat(channels, axis=1), truth.repeat(len(labels), axis=1)
        listed += [CatalogueImage(one, f"test {i}", role="test") for i, one in enumerate(pixels)]
        labelled.pack(folder.test_set, Labelled(pixels, truth, tuple(map(image_id, pixels)), ("",) * tests))
    made = build(folder.catalogue, "small", listed, make_signing_key(root / "coordinator.pem"))
    return StudyRun(folder, study, made, Ledger.open(folder.ledger))


def truth_of(run: StudyRun, tests: int) -> npt.NDArray[np.uint8]:
    size = run.study.image.size
    parts = [phantoms.make(site, 8, size, 1, lesion_free=0.25)[1] for site in run.study.sites]
    parts.append(phantoms.make(run.study.sites[0], tests, size, 2)[1])
    return np.concatenate(parts).repeat(len(run.study.labels), axis=1)


def collect(run: StudyRun, tests: int = 6, network: str = "unet", chunks: int = 99) -> None:
    """Every site answers with a blurred, displaced ground truth, each with its own error."""
    truth, size, chunk = truth_of(run, tests), run.study.image.size, run.study.collect.chunk
    rng = np.random.default_rng(0)
    answers = {}
    for number, site in enumerate(run.study.sites):
        card = {"output": "soft", "teacher": {"network": {"name": network}}}
        run.ledger.site_described(site, json.dumps(card))
        moved = np.roll(truth.astype(np.float64), (number * size // 16, -number * size // 24), axis=(2, 3))
        blurred = gaussian_filter(moved, (0, 0, size / 48 * (1 + number), size / 48 * (1 + number)))
        haze = 0.3 * rng.random((len(truth), 1, 1, 1)) ** 3 * gaussian_filter(rng.random(truth.shape), (0, 0, 4, 4))
        answers[site] = soft_mask.quantise(np.clip(blurred + haze, 0, 1))
    for at in range(0, len(truth), chunk)[:chunks]:
        state = weighted_mean.init(answers[run.study.sites[0]][at : at + chunk].shape)
        for site, masks in answers.items():
            part = masks[at : at + chunk]
            weighted_mean.fold(state, part, 1)
            run.watched.keep(site, at, part)
            run.ledger.answered(site, at // chunk, len(part), sum(len(soft_mask.encode(mask)) for mask in part), 0.5)
            run.ledger.moved(site, "predict", 1234 * len(part), 4321)
        run.pseudo_masks.write(at, weighted_mean.finish(state))
        run.ledger.chunk_finished(at // chunk, len(part), len(answers))
    run.ledger.finish("describe", 0.5)
    run.ledger.finish("collect", 61.0)


def train(run: StudyRun) -> None:
    network, size = run.study.student.network, run.study.image.size
    student = build_network(network, 1, 1, 0)
    save_student(run.folder.student, student, student_card(network, 1, 1, size))
    run.ledger.keep_result("", "parameters", "123456")
    run.ledger.keep_result("", "history", json.dumps([(step, 1.0 / step) for step in range(1, 17)]))
    run.ledger.finish("distill", 12.0)


def visit(run: StudyRun) -> None:
    for number, site in enumerate(run.study.sites):
        reply = EvaluateReply(
            **run.envelope,
            site=site,
            teacher_mean=70.0 + number,
            teacher_std=10.0,
            student_mean=71.04,
            student_std=9.0,
            test_images=12,
            train_images=40,
        )
        run.ledger.keep_result(site, "evaluate", reply.model_dump_json())
    run.ledger.finish("evaluate", 2.0)
    for site in run.study.fine_tune.sites:
        tuned = FineTuneReply(**run.envelope, site=site, mean=75.5, std=8.0, test_images=12, train_images=40)
        run.ledger.keep_result(site, "fine-tune", tuned.model_dump_json())
        run.ledger.finish("fine-tune", 3.0)


def reported(run: StudyRun) -> tuple[dict, str]:
    write_report(run)
    return json.loads(run.folder.metrics.read_text("utf-8")), run.folder.report.read_text("utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyRun:
    """A study that came to its end, with a site that calls its network something hostile."""
    run = opened(tmp_path_factory.mktemp("whole") / "run")
    collect(run, network=HOSTILE)
    run.select()
    train(run)
    run.test()
    visit(run)
    run.ledger.tell("collect", f"left out from here on: {HOSTILE}", "east")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(whole: StudyRun) -> str:
    return whole.folder.report.read_text("utf-8")


@pytest.fixture(scope="module")
def metrics(whole: StudyRun) -> dict:
    held: dict = json.loads(whole.folder.metrics.read_text("utf-8"))
    return held


class Reader(HTMLParser):
    """Gathers tags, text, and all that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.unnamed: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.tags.append(tag)
        self.links += [
            held[key] or "" for key in ("src", "href", "xlink:href", "srcset", "action", "data") if key in held
        ]
        named = held.get("alt") or held.get("aria-label") or held.get("aria-hidden")
        if tag in {"img", "svg"} and not named:
            self.unnamed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_numbers_shown_are_those_of_metrics_json(page: str, metrics: dict) -> None:
    text = Reader(page).text
    student, ensemble = metrics["student"]["pooled_dice"], metrics["ensemble"]["pooled_dice"]
    for score in (student, ensemble, *(site["teacher"]["pooled_dice"] for site in metrics["sites"].values())):
        assert f"{score['mean']:.1f} ± {score['std']:.1f}" in text
    assert f"{metrics['images']['kept']} of {metrics['images']['transferal']}" in text
    assert "71.0 ± 9.0" in text
    assert "75.5 ± 8.0" in text
    assert "123,456" in text
    assert metrics["study_digest"] in text
    assert "paper; none in the last 25 % of the steps" in text


def test_who_is_better_off_at_home_is_counted_before_and_after_fine_tuning(metrics: dict) -> None:
    said = " ".join(verdict(metrics))  # teachers 70, 71 and 72; student 71.0; fine-tuned at one site, 75.5
    assert "At home, the student equals or beats the site's own teacher at 2 of 3 sites." in said
    assert "Fine-tuned with a site's own labels, it equals or beats the site's own teacher at 1 of 1 sites." in said


def test_excluded_and_kept_images_are_shown_with_what_decided(page: str, metrics: dict) -> None:
    text = Reader(page).text
    assert metrics["images"]["excluded"]["few-target-pixels"] > 0
    assert "Left out: too few target pixels" in text
    assert "N = 0 px, E = " in text
    assert "fewer than 13.89 target pixels (alpha = 500 at 384 x 384, scaled to 64 x 64)" in text


def test_text_from_a_site_stays_text(page: str) -> None:
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "onerror" in reader.text
    assert "<img src=x" not in page


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert not re.search(r"https?://", page)
    links = Reader(page).links
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_picture_has_words(page: str) -> None:
    assert Reader(page).unnamed == []


def test_the_gallery_shows_teachers_ensemble_student_and_truth_with_the_dice_of_each(
    page: str, whole: StudyRun
) -> None:
    text = Reader(page).text
    worst = min(json.loads(whole.ledger.results("test.ensemble.values")[""]))
    assert "Ensemble: best" in text
    assert f"mask of ensemble, Dice {100 * worst:.1f}" in page
    assert {f"mask of {site}, Dice" in page for site in SITES} == {True}
    assert "mask of student, Dice" in page
    assert page.count('aria-label="ground truth"') == 6


def test_a_site_that_gave_no_mask_is_shown_so_and_one_that_saw_nothing_is_not_taken_for_it(tmp_path: Path) -> None:
    """Of the six test images north abstains from the first and has an empty mask of the second; east answers none."""
    run = opened(tmp_path / "run")
    collect(run)
    first, empty = run.catalogue.indices("test")[:2].tolist()
    chunk = first // run.study.collect.chunk
    masks = np.array(run.watched.of("north"))
    masks[np.searchsorted(run.watched.indices, [first, empty])] = 0
    run.watched.file.write(0, masks)
    run.ledger.answered("north", chunk, 5, 1, 0.5, abstained=[first])
    run.ledger.forget("east", chunk, [])
    page = reported(run)[1]
    assert page.count('aria-label="no mask of north: abstained"') == 1
    assert page.count('aria-label="no mask of east: no answer"') == 6
    assert page.count(">abstained</text>") == 1
    assert "mask of north, Dice 0.0" in page  # of the empty one
    assert "abstained: the site gives no mask" in Reader(page).text
    assert "the site gives no mask" not in reported(opened(tmp_path / "other"))[1]


def test_images_are_not_called_disputed_because_a_site_gave_no_mask_of_them(tmp_path: Path) -> None:
    """Of twelve test images a site abstains from one: the others' Dice of it differ least, so it is not among the disputed."""
    run = opened(tmp_path / "run", tests=12)
    collect(run, tests=12)
    indices, truth = run.test_images()
    place = np.searchsorted(run.watched.indices, indices)
    spread = np.stack([dice(run.watched.of(site)[place], truth) for site in SITES[:2]]).std(axis=0)
    calm = int(indices[int(spread.argmin())])
    row = int(np.searchsorted(run.watched.indices, calm)) + 2 * len(run.watched.indices)
    run.watched.file.write(row, np.zeros_like(run.watched.of("south")[:1]))
    run.ledger.answered("south", calm // run.study.collect.chunk, 7, 1, 0.5, abstained=[calm])
    disputed = [row for row in gallery(run, None).rows if row.title == "Teachers disagree"]
    assert disputed
    assert not any(f"image-{calm}" in str(row.shared) for row in disputed)


def test_the_same_study_gives_the_same_page_but_for_its_date_and_time(whole: StudyRun) -> None:
    def stable(text: str) -> str:
        return re.sub(r"Report of [^.]*\.|[\d,]+ MB \(the", "", text)

    first = whole.folder.report.read_text("utf-8")
    assert stable(reported(whole)[1]) == stable(first)


def test_the_report_is_timed_anew_each_time(whole: StudyRun) -> None:
    measured, _ = reported(whole)
    stage = whole.ledger.stage("report")
    assert stage is not None
    assert stage.finished
    assert stage.seconds < 30
    assert measured["seconds"]["report"] == round(stage.seconds, 3)


def test_the_console_shows_every_row_whole_at_100_columns(metrics: dict) -> None:
    console = Console(width=100, record=True, color_system=None, force_terminal=False, file=io.StringIO())
    console.print(console_table(metrics))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for site in SITES:
        held = metrics["sites"][site]["teacher"]["pooled_dice"]
        line = next(line for line in text.splitlines() if line.startswith(f" {site}"))
        assert f"{held['mean']:.1f} ± {held['std']:.1f}" in line
    for sentence in verdict(metrics):
        assert sentence in re.sub(r"\s+", " ", text)


def test_the_best_of_those_compared_is_marked(metrics: dict) -> None:
    rows = {row[0].text: row for row in dice_table(metrics).rows}
    assert [cell.best for cell in rows["north"]][2] is False  # 70.0 at home, the student has 71.0
    assert rows["north"][4].best
    assert rows["east"][5].best  # fine-tuned, 75.5
    assert rows["south"][2].best  # 72.0
    top = max(rivals(metrics), key=lambda one: one.mean)
    assert [row[0].text for row in dice_table(metrics).rows if row[3].best] == [top.name]


def test_how_much_each_site_counts_is_told_where_it_is_more_than_one_each(metrics: dict) -> None:
    assert fusion_table(metrics) is None
    told = {"dice-mean": 71.25, "images": 17, "temperature": 1.5, "misses": 2, "false-alarms": 0}
    sites = {site: dict(entry) for site, entry in metrics["sites"].items()}
    first, second, *_ = sites
    sites[first]["fusion"] = {"weight": 1000, "validation": told, "silent": 3}
    sites[second]["fusion"] = {"weight": 250, "validation": None, "silent": None}
    table = fusion_table({**metrics, "sites": sites})
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows[:2]] == [
        [first, "100 %", "71.2", "17", "2", "0", "1.50", "3"],
        [second, "25 %", "—", "—", "—", "—", "—", "—"],
    ]
    shown = io.StringIO()
    Console(file=shown, width=100).print(table)
    assert max(map(len, shown.getvalue().splitlines())) <= 100


def test_a_study_that_was_never_answered_has_a_report(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    measured, text = reported(run)
    assert measured["images"]["kept"] is None
    assert "This study is not finished" in text
    Console(width=100, file=io.StringIO()).print(console_table(measured))


def test_a_study_half_collected_shows_only_images_that_were_fused(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", tests=0)
    collect(run, tests=0, chunks=1)
    run.ledger.reopen("collect")
    _, text = reported(run)
    shown = {int(number) for number in re.findall(r'symbol id="image-(\d+)"', text)}
    assert shown
    assert max(shown) < run.study.collect.chunk


def test_a_failed_study_names_what_failed_first(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.ledger.tell("collect", "left out from here on: bad-mask", "east")
    run.ledger.keep_result("", "failure", f"1 site is left, and the quorum is 3 {HOSTILE}")
    _, text = reported(run)
    seen = Reader(text).text
    assert seen.index("This study failed") < seen.index("1 site is left, and the quorum is 3") < seen.index("Results")
    assert "east, collect: left out from here on: bad-mask" in seen
    assert "<img src=x" not in text


def test_without_test_images_and_fine_tuning_the_pooled_numbers_are_null(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", tests=0, tuned=False)
    collect(run, tests=0)
    run.select()
    train(run)
    run.test()
    visit(run)
    measured, text = reported(run)
    assert measured["student"]["pooled_dice"] is None
    assert measured["sites"]["east"]["fine_tuned"] is None
    seen = Reader(text).text
    assert "State: finished" in seen
    assert "No pooled test images were scored" in seen
    assert "there is no ground truth" in seen
    assert "At home, the student equals or beats the site's own teacher at 2 of 3 sites." in seen
    assert "Fine-tuned" not in " ".join(verdict(measured))


def test_colour_images_and_several_labels_are_drawn(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", labels=("lesion", "cyst"), channels=3)
    collect(run)
    run.select()
    _, text = reported(run)
    assert "Labels by line: lesion solid, cyst long dashes." in Reader(text).text
    assert 'class="m ensemble l1 half"' in text


def test_each_transferal_set_tells_what_was_kept_of_it(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", collections=("thyroid", "breast", ""))
    before, _ = reported(run)
    assert before["images"]["collections"]["breast"] == {"catalogue": 8, "kept": None, "excluded": {}}
    collect(run)
    run.select()
    measured, _ = reported(run)
    parts = measured["images"]["collections"]
    assert {name: part["catalogue"] for name, part in parts.items()} == {"thyroid": 8, "breast": 8, "": 8}
    assert sum(part["kept"] for part in parts.values()) == measured["images"]["kept"]
    for reason, count in measured["images"]["excluded"].items():
        assert sum(part["excluded"].get(reason, 0) for part in parts.values()) == count
    for part in parts.values():
        assert part["kept"] + sum(part["excluded"].values()) == part["catalogue"]
    page = run.folder.report.read_text("utf-8")
    assert "By transferal set" in page
    assert "(without a name)" in page
    seen = io.StringIO()
    Console(width=100, file=seen).print(console_table(measured))
    assert "thyroid" in seen.getvalue()


def test_a_site_whose_card_is_not_a_card_has_no_network(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    for site, teacher in zip(SITES, (["x"], {"network": 3}, {"network": {"name": "unet\x1b[31m"}}), strict=True):
        run.ledger.site_described(site, json.dumps({"output": "soft", "teacher": teacher}))
    measured, _ = reported(run)
    assert [measured["sites"][site]["network"] for site in SITES[:2]] == [None, None]
    assert [row[1].text for row in dice_table(measured).rows] == ["—", "—", "unet?[31m"]


def test_the_evaluation_is_in_metrics_json_on_the_page_and_in_files_that_agree(
    whole: StudyRun,
    page: str,
    metrics: dict,
) -> None:
    assert json.loads(whole.folder.evaluation.read_text("utf-8")) == metrics["evaluation"]
    (block,) = metrics["evaluation"]["grids"]
    assert [(one["kind"], one["name"]) for one in block["predictors"]] == [
        *(("teacher", site) for site in sorted(SITES)),
        ("ensemble", "ensemble"),
        ("student", "student"),
    ]
    rows = list(csv.DictReader(io.StringIO(whole.folder.evaluation_rows.read_text("utf-8"))))
    assert len(rows) == 6 * 5
    text = Reader(page).text
    for one in block["predictors"]:
        dice = one["measures"]["dice"]
        assert dice["mean"] == pytest.approx(
            np.mean([float(row["dice"]) for row in rows if row["predictor"] == one["name"]]), abs=1e-3
        )
        assert dice["low"] <= dice["mean"] <= dice["high"]
        assert f"{dice['mean']:.1f} [{dice['low']:.1f}, {dice['high']:.1f}]" in text
    assert "at 64 x 64 pixels, the student's Dice is" in text.replace("At 64", "at 64")
    assert 'aria-label="Reliability; expected calibration error: ' in page


def test_the_evaluation_fits_100_columns(metrics: dict) -> None:
    console = Console(width=100, record=True, color_system=None, force_terminal=False, file=io.StringIO())
    console.print(console_evaluation(metrics["evaluation"]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for one in metrics["evaluation"]["grids"][0]["predictors"]:
        assert f"{one['calibration']['brier']:.4f}" in text


def test_a_run_folder_is_evaluated_at_the_images_own_size_where_true_masks_are_given(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    write_test_sites(run.folder, dict(zip(labelled.open_packed(run.folder.test_set).sources, "nnneee", strict=True)))
    collect(run)
    train(run)
    run.ledger.finish("select", 0.1)
    _, truth = run.test_images()
    (tmp_path / "truth").mkdir()
    for i in range(5):  # the sixth image has none
        Image.fromarray(truth[i, 0].repeat(2, 0).repeat(3, 1) * np.uint8(255)).save(
            tmp_path / "truth" / f"test {i}.png"
        )
    run.ledger.close()
    done = CliRunner().invoke(app, ["evaluate", str(run.folder.root), str(tmp_path / "truth")])
    assert done.exit_code == 0, done.exception
    held = json.loads(run.folder.evaluation.read_text("utf-8"))
    canonical, native = held["grids"]
    assert (canonical["images"], native["images"], native["size"]) == (6, 5, [128, 192])
    assert held["unmatched"] == {"predictions": ["test 5"], "truth": []}
    assert canonical["sites"] == ["e", "n"]
    for here, there in zip(canonical["predictors"], native["predictors"], strict=True):
        first, second = (one["measures"]["dice"]["mean"] for one in (here, there))
        assert second == pytest.approx(first, abs=8)  # the same masks, smoother, on one image less
    assert "at each image's own size" in " ".join(done.output.split())
    assert "test 5" in run.folder.report.read_text("utf-8")


def test_true_masks_of_other_names_are_refused_with_both_names(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    with pytest.raises(DataError, match=r"test 0, test 1, test 2, \.\.\..*given \(scan"):
        native_truths(
            run.folder, list(labelled.open_packed(run.folder.test_set).sources), {"scan": lambda: np.ones((2, 2), bool)}
        )


def test_a_square_is_outlined_at_its_edges() -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[2:4, 2:4] = 255
    path = outline(mask, 127.5)
    start = [int(number) for number in re.findall(r"-?\d+", path)][:2]
    steps = np.array([int(number) for number in re.findall(r"-?\d+", path)][2:]).reshape(-1, 2)
    corners = np.concatenate([[start], start + np.cumsum(steps, axis=0)])
    assert path.count("M") == path.count("z") == 1
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == (
        [16, 16],
        [32, 32],
    )  # pixels 2 and 3, 8 a pixel
    assert outline(np.zeros((6, 6), np.uint8), 127.5) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "—"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
        (5e12, "5.0 TB"),
    ],
)
def test_bytes_are_told_in_powers_of_a_thousand(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.96, "60.0 s"), (61, "1 min 01 s"), (7320, "2 h 02 min")]
)
def test_seconds_are_told_for_people(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_browser_renders_the_page_and_draws_every_picture(whole: StudyRun, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}")
    address = whole.folder.report.as_uri()
    done = subprocess.run([browser, *flags, *quiet, "--dump-dom", address], capture_output=True, timeout=60, check=True)
    seen = Reader(done.stdout.decode())
    assert "What the words mean" in seen.text
    assert "script" not in seen.tags
    assert seen.tags.count("symbol") == 6
    assert seen.tags.count("svg") == Reader(whole.folder.report.read_text("utf-8")).tags.count("svg")


def test_beta_holds_where_at_least_one_teacher_is_soft(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    collect(run)
    exclusion = run.study.exclusion.model_copy(update={"alpha": 0.0, "beta": 1.0})
    run.study = run.study.model_copy(update={"exclusion": exclusion})
    for soft, reasons in ((SITES[:1], {"", "high-entropy"}), ((), {""})):
        for site in SITES:
            output = "soft" if site in soft else "binary"
            run.ledger.site_described(site, json.dumps({"output": output, "teacher": {}}))
        assert set(run.selector.decide()[1]) == reasons
