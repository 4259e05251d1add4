"""``report.html``: one file that needs nothing else, for a reader who was not there."""

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from consilium.common import wire
from consilium.common.errors import StateError
from consilium.common.training.settings import TrainingSettings
from consilium.server import exclusion
from consilium.server.report import figures, gallery, tables
from consilium.server.report.evaluation import best_teacher, evaluation_tables, evaluation_verdict
from consilium.server.report.selection import Selection, read_selection
from consilium.server.report.tables import Metrics
from consilium.server.status import State, state_of
from consilium.server.study_run import StudyRun

MAX_EVENTS: Final = 200
_OPTIMIZERS: Final = {"adam": "Adam", "adamw": "AdamW"}


@dataclass(frozen=True)
class Number:
    """One headline number, what it is and what to hold it against."""

    value: str
    unit: str
    label: str
    beside: str = ""


def render(run: StudyRun, metrics: Metrics) -> str:
    """Make the page.

    Parameters
    ----------
    run
        The study, in any state.
    metrics
        Of `consilium.server.report.metrics`: every number shown comes from it.
    """
    environment = Environment(
        loader=PackageLoader("consilium.server.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    state, selection = state_of(run.folder, run.study, run.ledger), _selection(run)
    pictures = gallery.gallery(run, selection)
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        state=state,
        numbers=_numbers(run, metrics),
        way=_way(run, metrics, state),
        verdict=tables.verdict(metrics),
        dice=tables.dice_table(metrics),
        by_label=tables.label_table(metrics),
        fusion=tables.fusion_table(metrics),
        agreement=tables.agreement_table(metrics),
        traffic=tables.traffic_table(metrics),
        images=tables.images_table(metrics),
        collections=tables.collections_table(metrics),
        seconds=tables.seconds_table(metrics),
        bars=_bars(metrics),
        evaluation=_evaluation(run, metrics),
        gallery=pictures,
        examples=gallery.examples(run, selection) if selection else (),
        histograms=_histograms(run, selection) if selection else (),
        rule=_rule(run),
        loss=_loss(run),
        student=_student(run, metrics),
        events=_events(run),
        more_events=max(0, len(run.ledger.events()) - MAX_EVENTS),
        settings=run.folder.study.read_text("utf-8"),
        versions=wire.versions() | {"python": platform.python_version()},
        labels=run.study.labels,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _selection(run: StudyRun) -> Selection | None:
    stage = run.ledger.stage("select")
    if stage is None:
        return None
    if stage.finished:
        return read_selection(run.folder)
    with suppress(StateError):  # a stage that was interrupted may have left half a file; it is written anew
        return read_selection(run.folder)
    return None


def _numbers(run: StudyRun, metrics: Metrics) -> list[Number]:
    student, ensemble, best = (
        metrics["student"]["pooled_dice"],
        metrics["ensemble"]["pooled_dice"],
        tables.best_teacher(metrics),
    )
    numbers = []
    if student and student["n"]:
        beside = f"{tables.against(student['mean'], best)} the best teacher" if best else ""
        numbers.append(Number(f"{student['mean']:.1f}", "%", "Dice of the student, pooled test images", beside))
    if best:
        numbers.append(Number(f"{best.mean:.1f}", "%", f"Dice of the best single teacher, {best.name}, same images"))
    if ensemble and ensemble["n"]:
        beside = f"{tables.against(ensemble['mean'], best)} the best teacher" if best else ""
        numbers.append(
            Number(f"{ensemble['mean']:.1f}", "%", "Dice of the ensemble of all teachers, same images", beside)
        )
    images = metrics["images"]
    if images["kept"] is not None:
        share = f"{100 * images['kept'] / images['transferal']:.0f} %" if images["transferal"] else ""
        label = "shared images kept for the student's training"
        numbers.append(Number(f"{images['kept']:,}", f"of {images['transferal']:,}", label, share))
    answered = sum(entry["images"]["answered"] > 0 for entry in metrics["sites"].values())
    masks = sum(entry["images"]["answered"] for entry in metrics["sites"].values())
    numbers.append(Number(str(answered), f"of {len(run.study.sites)}", "sites answered", f"{masks:,} soft masks"))
    return numbers


def _way(run: StudyRun, metrics: Metrics, state: State) -> str:
    """The whole way in one sentence: what was done, or is to be."""
    images, done = metrics["images"], state.word == "finished"
    sites = "1 hospital" if len(run.study.sites) == 1 else f"{len(run.study.sites)} hospitals"
    moved = tables.bytes_text(sum(entry["bytes_sent"] for entry in metrics["sites"].values()))
    kept = f"the {images['kept']:,} images" if images["kept"] is not None else "the images"
    network, fused = metrics["student"]["network"], f"the {run.study.fusion.method.replace('-', ' ')} of the answers"
    if metrics["stack"]:
        fused += f", {tables.stack_text(metrics['stack'])},"
    if done:
        return (
            f"{sites} showed {images['transferal']:,} shared, unlabelled images to their own models; {fused} "
            f"became one pseudo mask an image, and {kept} with a salient target taught one student ({network}). "
            f"No hospital's own images, labels or model weights left it; soft masks and scores did, {moved} in all."
        )
    return (
        f"In this study {sites} show {images['transferal']:,} shared, unlabelled images to their own models; {fused} "
        f"becomes one pseudo mask an image, and {kept} with a salient target teach one student ({network}). "
        f"No hospital's own images, labels or model weights leave it; soft masks and scores do, {moved} so far."
    )


def _bars(metrics: Metrics) -> Markup | None:
    held = tables.rivals(metrics)
    return figures.dice_bars(held) if held else None


def _evaluation(run: StudyRun, metrics: Metrics) -> dict[str, Any] | None:
    """Tables, sentences and figures of the evaluation; None if there is none."""
    summary = metrics["evaluation"]
    if not summary or not summary["grids"]:
        return None
    held = evaluation_tables(summary)
    first = summary["grids"][0]
    charts = [("How far to trust a probability", figures.reliability(first["predictors"]))]
    rival = best_teacher(first)
    if rival and (dice := _dice_values(run, rival["name"])):
        charts.append(
            (f"Dice of each test image: student and {rival['name']}", figures.paired_dice(*dice, rival["name"]))
        )
    return {
        "tables": held,
        "notes": list(dict.fromkeys(note for table in held for note in table.notes)),
        "verdict": evaluation_verdict(summary),
        "charts": charts,
    }


def _dice_values(run: StudyRun, teacher: str) -> tuple[list[float], list[float]] | None:
    """Dice of each test image in percent: the teacher's and the student's."""
    theirs = run.ledger.results("test.pooled.values").get(teacher)
    own = run.ledger.results("test.student.values").get("")
    if not theirs or not own:
        return None
    return [100 * value for value in json.loads(theirs)], [100 * value for value in json.loads(own)]


def _soft(run: StudyRun) -> bool:
    return any(json.loads(card)["output"] == "soft" for card in run.ledger.sites().values())


def _least(run: StudyRun) -> float:
    """Alpha at the study's image size, in pixels."""
    return run.study.exclusion.alpha * run.study.image.size**2 / exclusion.PAPER_SIZE**2


def _rule(run: StudyRun) -> str:
    alpha, beta, size = run.study.exclusion.alpha, run.study.exclusion.beta, run.study.image.size
    said = (
        f"An image is left out where its pseudo mask has fewer than {_least(run):.4g} target pixels "
        f"(alpha = {alpha:g} at {exclusion.PAPER_SIZE} x {exclusion.PAPER_SIZE}, scaled to {size} x {size})"
    )
    if run.study.exclusion.rule == "consensus":
        return f"{said}, or fewer sites than a quorum see a target (fusion.gate = {run.study.fusion.gate})."
    if _soft(run):
        return f"{said}, or a gray-level entropy above {beta:g} bits (beta)."
    return f"{said}. All teachers are binary, so entropy does not decide."


def _histograms(run: StudyRun, selection: Selection) -> tuple[Markup, ...]:
    if not len(selection.indices):
        return ()
    beta = run.study.exclusion.beta if _soft(run) and run.study.exclusion.rule == "paper" else None
    return (
        figures.entropy_histogram(selection.entropy_bits, selection.kept, beta),
        figures.target_histogram(selection.target_pixels, selection.kept, _least(run)),
    )


def _loss(run: StudyRun) -> Markup | None:
    curve = json.loads(run.ledger.results("history").get("", "[]"))
    return figures.loss_curve([(int(step), float(loss)) for step, loss in curve]) if curve else None


def _augmentation(training: TrainingSettings) -> str:
    mixed = f", CutMix of {100 * training.cutmix:g} %" if training.cutmix else ""
    end = (
        f"; none in the last {100 * (1 - training.augment_until):g} % of the steps"
        if training.augment_until < 1
        else ""
    )
    return f"{training.augment}{mixed}{end}"


def _student(run: StudyRun, metrics: Metrics) -> list[tuple[str, str]]:
    settings, images = run.study.student, metrics["images"]["kept"]
    training, parameters = settings.training, metrics["student"]["parameters"]
    encoder = f", encoder {settings.network.encoder}" if "net" not in settings.network.name else ""
    steps = settings.generations * training.steps(images) if images else 0
    student, best = metrics["student"]["pooled_dice"], tables.best_teacher(metrics)
    facts = [
        ("Network", settings.network.name + encoder),
        ("Parameters", f"{parameters:,}" if parameters else tables.NONE),
        ("Trained on", f"{images:,} images" if images else tables.NONE),
        ("Length", f"{steps:,} steps of {training.batch} images" if steps else tables.NONE),
        ("Optimiser", f"{_OPTIMIZERS[training.optimizer]}, learning rate {training.learning_rate:g}"),
        ("Augmentation", _augmentation(training)),
    ]
    if student and best and best.mean > 0:
        facts.append(
            ("Knowledge transfer capability", f"{100 * student['mean'] / best.mean:.1f} % of the best teacher")
        )
    return facts


def _events(run: StudyRun) -> list[dict[str, Any]]:
    return [
        {
            "at": datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S"),
            "site": tables.plain(event.site) or "server",
            "stage": event.stage,
            "text": tables.plain(event.text, 1000),
        }
        for event in run.ledger.events()[:MAX_EVENTS]
    ]
