"""The settings of an ablation: how a ladder is laid, what the shipped ones say, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from consilium.common.errors import SettingsError
from consilium.common.settings import parse
from consilium.common.study import StudentSettings, Study
from consilium.server.ablation.settings import load
from tests.small_ablation import SHIPPED, document, settings_of

SCENARIOS = SHIPPED.with_name("consensus-scenarios.toml")


def test_the_shipped_ladder_is_valid_at_every_scale_and_starts_with_the_papers_study() -> None:
    full, small, tiny = (load(SHIPPED, scale) for scale in ("full", "small", "tiny"))
    first = full.recipe("paper")
    assert (first.fusion.method, first.fusion.gate, first.fusion.weights) == ("weighted-mean", "none", {})
    assert (first.exclusion.rule, first.exclusion.beta, first.student.image_weights) == ("paper", 2.5, "none")
    assert (first.student.training.optimizer, first.student.training.schedule) == ("adam", "constant")
    assert first.transferal == ("ddti",)
    assert full.scenario[0].sites == {}
    preset = full.recipe("consensus")
    assert (small.image.size, tiny.image.size, tiny.data["busi"].data_set) == (128, 48, "phantoms")
    scaled = tiny.recipe("consensus").student.training  # lengths are the scale's, ingredients the preset's
    assert (scaled.image_budget, scaled.epochs) == (160, 0)
    assert (scaled.dice_share, scaled.ema) == (preset.student.training.dice_share, preset.student.training.ema)
    assert "consensus-ablation.toml" in SHIPPED.read_text().splitlines()[0]


@pytest.mark.parametrize("file", [SHIPPED, SCENARIOS])
def test_a_shipped_consensus_step_is_the_preset_in_all_but_network_length_and_learning_rate(file: Path) -> None:
    settings = load(file)
    step = settings.recipe("consensus")
    own = {
        "network",
        "image_budget",
        "epochs",
        "batch",
        "learning_rate",
        "augment_until",
        "precision",
        "device",
        "threads",
    }
    preset = parse(Study, {"name": "any", "sites": ["one", "two"]}, "the preset")

    def said(student: StudentSettings) -> dict[str, Any]:
        return student.model_dump(exclude={"network": True, "training": own})

    assert step.fusion == preset.fusion
    assert step.exclusion == preset.exclusion
    assert said(step.student) == said(preset.student)


def test_the_shipped_scenarios_have_the_ablations_scene_so_that_both_share_teachers_and_students() -> None:
    ladder, scenarios = load(SHIPPED), load(SCENARIOS)
    same = {"image", "data", "labelled", "split", "sites", "fedavg"}
    assert scenarios.model_dump(include=same) == ladder.model_dump(include=same)
    assert scenarios.recipe("paper") == ladder.recipe("paper")
    assert scenarios.recipe("consensus") == ladder.recipe("consensus")
    assert scenarios.recipe("median") == ladder.recipe("median")
    assert [one.name for one in scenarios.scenario] == ["unequal", "under-confident", "inverted", "benign-only"]
    tiny = load(SCENARIOS, "tiny")
    assert (
        tiny.sites_in(tiny.scenario[0])["delta"].training.image_budget == 160
    )  # no scale but the full one has its length


def test_the_example_in_the_documents_is_an_ablation(tmp_path: Path) -> None:
    text = (SHIPPED.parents[1] / "docs" / "experiments.md").read_text("utf-8")
    (tmp_path / "mine.toml").write_text(text.split("```toml\n")[2].split("```")[0])
    settings = load(tmp_path / "mine.toml")
    assert settings.sites_in(settings.scenario[1])["bravo"].inverted
    assert settings.recipe(settings.judged).fusion.weights == "validation"


def test_each_step_is_laid_over_the_one_before_it_or_the_one_it_names(tmp_path: Path) -> None:
    steps = [
        *document()["step"],
        {"name": "longer", "student": {"training": {"epochs": 3}}},
        {"name": "aside", "after": "paper", "fusion": {"gate": 2}},
    ]
    settings = settings_of(tmp_path, step=steps, consensus="consensus")
    longer, aside = settings.recipe("longer"), settings.recipe("aside")
    assert (longer.student.training.epochs, longer.student.training.image_budget) == (3, 0)
    assert (longer.fusion.calibrated, longer.student.training.dice_share, longer.transferal) == (True, 0.75, ())
    assert (aside.fusion.calibrated, aside.fusion.gate, aside.transferal) == (False, 2, ("far",))
    assert [settings.below(step.name) for step in settings.step] == ["", "paper", "consensus", "paper"]


def test_faults_of_partial_studies_and_sites_are_told_where_they_are(tmp_path: Path) -> None:
    wrong = [document()["step"][0], {"name": "worse", "student": {"training": {"emma": 0.9}}}]
    odd = [{"name": "odd", "sites": {"alpha": {"share": -1.0}}}]
    with pytest.raises(SettingsError) as told:
        settings_of(tmp_path, step=wrong, scenario=odd)
    assert "step.worse.student.training.emma" in str(told.value)
    assert "scenario.odd.sites.share" in str(told.value)
    with pytest.raises(SettingsError) as told:
        settings_of(tmp_path, labelled="nowhere", consensus="none", scenario=[{"name": "odd", "sites": {"zulu": {}}}])
    for fault in ("labelled names nowhere", "consensus names none", "scenario.odd.sites names zulu"):
        assert fault in str(told.value)


def test_a_head_start_without_pretraining_is_refused(tmp_path: Path) -> None:
    steps = [*document()["step"], {"name": "begun", "head-start": {"image-budget": 8}}]
    with pytest.raises(SettingsError, match=r"step\.begun\.head-start: the sites begin with .* needs pretraining"):
        settings_of(tmp_path, step=steps)


def test_a_stack_without_the_coordinators_images_is_refused(tmp_path: Path) -> None:
    steps = [*document()["step"], {"name": "stack", "fusion": {"method": "stack"}}]
    with pytest.raises(SettingsError, match=r"step\.stack\.fusion\.method: a stack .* split\.labelled"):
        settings_of(tmp_path, step=steps)
    with pytest.raises(SettingsError, match="test, transferal and labelled leave the sites something"):
        settings_of(tmp_path, split={"labelled": 0.55})
