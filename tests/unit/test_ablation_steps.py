"""What a step of an ablation computes: a follow-up, a head start, a stack, no student, a site that is perturbed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.common.errors import SettingsError
from consilium.common.soft_mask import quantise
from consilium.common.training.settings import TrainingSettings
from consilium.server.ablation.rows import POOLED, Kind
from consilium.server.ablation.run import Ablator, Cell, cells
from consilium.server.ablation.tables import answering_table
from consilium.server.experiment import stages
from consilium.server.experiment.store import Store
from consilium.server.fusion import stack
from tests.small_ablation import NETWORK, SHORT, document, settings_of


def test_in_a_follow_up_sites_answer_with_the_first_study_s_student_as_they_fine_tuned_it(tmp_path: Path) -> None:
    steps = [*document()["step"], {"name": "again", "follow-up": {"image-budget": 16, "learning-rate": 1e-3}}]
    settings = settings_of(tmp_path, step=steps)
    work = Ablator(settings, Store(tmp_path / "store"))
    scenario, again = settings.scenario[0], settings.recipe("again")
    assert (settings.judged, again.fusion, again.student) == ("again", again.first.fusion, again.first.student)
    assert again.follow_up
    assert again.at_sites(again.follow_up) == TrainingSettings.model_validate(
        SHORT | {"image-budget": 16, "learning-rate": 1e-3, "dice-share": 0.75}
    )
    student = work.student(scenario, 0, settings.recipe("consensus"))
    tuned = work.answering(scenario, 0, again)
    assert student
    assert [one.model.network for one in tuned.values()] == [student.network] * 2
    before, alpha, bravo = (
        next(iter(model.load().parameters())) for model in (student, tuned["alpha"].model, tuned["bravo"].model)
    )
    assert not torch.equal(before, alpha)
    assert not torch.equal(alpha, bravo)
    second = work.student(scenario, 0, again)
    assert second
    assert second.artefact.digest != student.artefact.digest
    assert work.answering(scenario, 0, again.first) == work.teachers(scenario, 0)


def test_with_a_head_start_sites_answer_with_what_they_made_of_the_pretrained_network(tmp_path: Path) -> None:
    training = {"image-budget": 16, "learning-rate": 1e-3}
    steps = [
        *document()["step"],
        {"name": "begun", "pretraining": {"phantoms": 8, "image-budget": 8}, "head-start": training},
        {"name": "both", "follow-up": training},
    ]
    settings = settings_of(tmp_path, step=steps)
    work = Ablator(settings, Store(tmp_path / "store"))
    scenario, begun, both = settings.scenario[0], settings.recipe("begun"), settings.recipe("both")
    start = work.pretrained(0, begun)
    assert start
    asked = work.answering(scenario, 0, begun)
    assert [one.model.network for one in asked.values()] == [start.network] * 2
    weights = [next(iter(model.load().parameters())) for model in (start, asked["alpha"].model, asked["bravo"].model)]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert work.answering(scenario, 0, both.first) == asked  # the first of two studies is that with the head start
    assert work.answering(scenario, 0, both) != asked

    rows = work.rows(Cell(scenario, 0, Kind.STUDENT, "begun"))
    scores = {row.model: row.dice_mean for row in rows if (row.kind, row.part) == (Kind.ANSWERING, POOLED)}
    test = work.scene(scenario, 0).test
    for name, one in asked.items():
        assert scores[name] == pytest.approx(100 * stages.evaluate(work.store, one.model, test).mean(), abs=1e-3)
    assert not [row for row in work.rows(Cell(scenario, 0, Kind.STUDENT, "consensus")) if row.kind is Kind.ANSWERING]
    before = [row for row in work.rows(Cell(scenario, 0, Kind.TEACHER)) if row.part == POOLED]
    table = answering_table([*before, *rows], ["paper", "begun"])
    assert [line[0].text for line in table.rows] == ["own teacher", "begun"]
    assert [line[3].text for line in table.rows] == [
        f"{max(row.dice_mean for row in before):.2f}", f"{max(scores.values()):.2f}",
    ]  # fmt: skip


def test_another_seed_of_the_student_changes_the_last_student_alone(tmp_path: Path) -> None:
    follow_up = {"image-budget": 8, "learning-rate": 1e-3}
    steps = [*document()["step"], {"name": "second", "follow-up": follow_up}, {"name": "again", "student-seed": 1}]
    settings = settings_of(tmp_path, step=steps, consensus="second")
    work, scenario = Ablator(settings, Store(tmp_path / "store")), settings.scenario[0]
    second, again = settings.recipe("second"), settings.recipe("again")
    assert again.model_copy(update={"student_seed": 0}) == second
    assert work.student(scenario, 0, again.first) == work.student(scenario, 0, second.first)
    assert work.answering(scenario, 0, again) == work.answering(scenario, 0, second)
    one, other = work.student(scenario, 0, second), work.student(scenario, 0, again)
    assert one
    assert other
    assert one.artefact.digest != other.artefact.digest


def test_a_step_may_be_a_stack_fitted_on_the_coordinators_images(tmp_path: Path) -> None:
    steps = [*document()["step"], {"name": "stack", "fusion": {"method": "stack"}, "distil": False}]
    settings = settings_of(tmp_path, step=steps, consensus="consensus", split={"labelled": 0.2})
    work = Ablator(settings, Store(tmp_path / "store"))
    scenario, recipe = settings.scenario[0], settings.recipe("stack")
    scene = work.scene(scenario, 0)
    assert scene.labelled
    answers = [work.masks(scenario, 0, recipe, data) for data in (scene.labelled, scene.test)]
    own, others = ({name: np.asarray(one.masks) for name, one in held.items()} for held in answers)
    learned = stack.fit(own, np.asarray(scene.labelled.truth), recipe.exclusion.alpha)
    found = work.fused(scenario, 0, recipe, scene.test)
    assert (found.pseudo.masks == stack.apply(learned, others)).all()
    mean = work.fused(scenario, 0, settings.recipe("consensus"), scene.test)
    assert (found.consensus == mean.consensus).all()


def test_a_step_may_go_without_a_student_but_not_the_judged_one(tmp_path: Path) -> None:
    paper, consensus = document()["step"]
    settings = settings_of(tmp_path, step=[paper | {"distil": False}, consensus])
    found = Ablator(settings, Store(tmp_path / "store")).rows(
        next(cell for cell in cells(settings) if cell.step == "paper")
    )
    assert {row.kind for row in found} == {Kind.ENSEMBLE}
    with pytest.raises(SettingsError, match=r"step\.consensus\.distil: the step that is held to the targets"):
        settings_of(tmp_path, step=[paper, consensus | {"distil": False}])


def test_a_perturbed_site_answers_so_and_its_validation_knows(tmp_path: Path) -> None:
    odd = {"name": "odd", "sites": {"alpha": {"logits": 0.8}, "bravo": {"inverted": True}}}
    sites = {name: {"network": NETWORK, "training": SHORT | {"image-budget": 400}} for name in ("alpha", "bravo")}
    settings = settings_of(tmp_path, scenario=[{"name": "even"}, odd], sites=sites)
    work = Ablator(settings, Store(tmp_path / "store"))
    even, wrong = settings.scenario
    recipe = settings.recipe("consensus")
    sound, broken = (work.teachers(scenario, 0) for scenario in (even, wrong))
    assert {one.model.artefact.digest for one in sound.values()} == {
        one.model.artefact.digest for one in broken.values()
    }
    image = work.scene(even, 0).test.images[:2]
    asked = {
        (name, place): one.asked(one.model.load(), "one")(image)
        for place, held in (("even", sound), ("odd", broken))
        for name, one in held.items()
    }
    logit = {key: np.log(value / (1 - value)) for key, value in asked.items()}
    np.testing.assert_allclose(logit["alpha", "odd"], 0.8 * logit["alpha", "even"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(asked["bravo", "odd"], 1 - asked["bravo", "even"], atol=1e-6)
    assert quantise(asked["alpha", "odd"]).shape == image.shape
    told, before = work.validation(wrong, 0, recipe), work.validation(even, 0, recipe)
    assert told["alpha"].dice == pytest.approx(before["alpha"].dice)
    assert 0.32 < before["alpha"].temperature < 8  # of 0.25 to 8
    assert told["alpha"].temperature == pytest.approx(0.8 * before["alpha"].temperature, rel=0.02)
    assert told["bravo"].dice != before["bravo"].dice
