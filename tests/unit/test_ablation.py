"""The ablation: who gets which images, what each baseline computes, how a ladder is laid, and what is met or missed."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from consilium.common.datasets import phantoms
from consilium.common.errors import ConsiliumError, DataError, SettingsError
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.settings import parse
from consilium.common.soft_mask import quantise
from consilium.common.study import StudentSettings, Study
from consilium.common.training.loop import fit
from consilium.common.training.settings import TrainingSettings
from consilium.server.ablation import fedavg
from consilium.server.ablation.rows import POOLED, UNLABELLED, Kind, Place, Row, read_rows, scored
from consilium.server.ablation.run import Ablator, Cell, cells, run
from consilium.server.ablation.scene import Parts, SitePart, lay_out, share_out
from consilium.server.ablation.settings import (
    Ablation,
    Recipe,
    SiteSettings,
    SiteTrainingSettings,
    SplitSettings,
    load,
)
from consilium.server.ablation.tables import answering_table
from consilium.server.ablation.targets import targets
from consilium.server.cli import app
from consilium.server.experiment import stages
from consilium.server.experiment.data import DataSet
from consilium.server.experiment.store import Store
from consilium.server.fusion import stack

CONFIGS = Path(__file__).parents[2] / "configs"
FILE = CONFIGS / "consensus-ablation.toml"
SCENARIOS = CONFIGS / "consensus-scenarios.toml"
NETWORK = {"name": "unet", "width": 4}
SHORT = {"image-budget": 32, "batch": 8, "learning-rate": 5e-3, "threads": 1}
SITE = SiteSettings(network=NetworkSettings(name="unet"))
SHARES = SplitSettings()


def document(**other: Any) -> dict[str, Any]:
    """Two sites, two steps, phantoms."""
    return {
        "kind": "ablation",
        "name": "small",
        "seeds": [0],
        "labelled": "home",
        "image": {"size": 48},
        "data": {
            "home": {"data-set": "phantoms", "hospital": "west", "count": 60},
            "far": {"data-set": "phantoms", "hospital": "south", "count": 6},
        },
        "sites": {"alpha": {"network": NETWORK, "training": SHORT}, "bravo": {"network": NETWORK, "training": SHORT}},
        "step": [
            {
                "name": "paper",
                "exclusion": {"beta": 8.0, "alpha": 0.0},
                "student": {"network": NETWORK, "training": SHORT},
            },
            {
                "name": "consensus",
                "fusion": {"calibrated": True, "views": "flip", "weights": "validation"},
                "student": {"image-weights": "agreement", "training": {"dice-share": 0.75}},
                "transferal": [],
            },
        ],
        "fedavg": {"rounds": 2},
        **other,
    }


def settings_of(folder: Path, **other: Any) -> Ablation:
    path = folder / "ablation.toml"
    path.write_text(tomli_w.dumps(document(**other)))
    return load(path)


def a_set(images: int, start: int = 0) -> DataSet:
    """Phantoms as a data set."""
    pixels, masks = phantoms.make("north", images, 48, 0, start=start)
    names = tuple(f"{start + i}" for i in range(images))
    return DataSet("phantoms", pixels, masks, names, names, ("",) * images, names, f"{images} from {start}")


# --- who gets what


@given(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=60, max_size=90), st.integers(0, 9))
def test_every_image_is_in_one_part_and_no_group_is_torn(groups: list[str], seed: int) -> None:
    kinds = ["benign" if i % 3 else "malignant" for i in range(len(groups))]
    try:
        parts = share_out(groups, kinds, {"alpha": SITE, "bravo": SITE}, SHARES, seed)
    except DataError:  # large groups may leave a part without any
        return
    every = [
        parts.transferal,
        *(each for site in parts.sites.values() for each in (site.train, site.validation, site.test)),
    ]
    assert sorted(np.concatenate(every).tolist()) == list(range(len(groups)))
    for name in set(groups) - {""}:
        assert sum(any(groups[i] == name for i in part) for part in every) == 1


def test_parts_have_the_shares_they_are_given() -> None:
    """Of 200 images 40 are transferal; of the other 160, 120 and 40 by share 3 to 1; of these 5/16 test, a fifth of the rest."""
    sites = {"large": SITE.model_copy(update={"share": 3.0}), "small": SITE}
    parts = share_out([""] * 200, ["x"] * 200, sites, SHARES, 0)
    assert len(parts.transferal) == 40
    sizes = {name: (len(one.train), len(one.validation), len(one.test)) for name, one in parts.sites.items()}
    assert sizes["large"] == pytest.approx((66, 16.5, 37.5), abs=1)
    assert sizes["small"] == pytest.approx((22, 5.5, 12.5), abs=1)


def test_a_site_of_one_kind_sees_no_other_and_the_pooled_test_keeps_the_mix() -> None:
    kinds = ["benign"] * 140 + ["malignant"] * 60
    groups = ["pair"] + [""] * 198 + ["pair"]  # a benign image with a malignant near duplicate
    sites = {"alpha": SITE, "charlie": SITE.model_copy(update={"kinds": ("benign",)})}
    parts = share_out(groups, kinds, sites, SHARES, 3)
    charlie = parts.sites["charlie"]
    assert {kinds[i] for part in (charlie.train, charlie.validation, charlie.test) for i in part} == {"benign"}
    assert 0 not in np.concatenate([charlie.train, charlie.validation, charlie.test])
    test = np.concatenate([one.test for one in parts.sites.values()])
    for part, images in ((test, 50), (parts.transferal, 40)):
        assert len(part) == pytest.approx(images, abs=2)
        assert np.mean([kinds[i] == "malignant" for i in part]) == pytest.approx(0.3, abs=0.02)


def test_a_site_cannot_have_more_of_a_kind_than_there_is() -> None:
    with pytest.raises(DataError, match=r"charlie sees rare only, and should get 80 images; 4 such"):
        share_out([""] * 200, ["rare"] * 5 + ["x"] * 195, {"a": SITE, "charlie": replace_kinds("rare")}, SHARES, 0)


def replace_kinds(kind: str) -> SiteSettings:
    return SITE.model_copy(update={"kinds": (kind,)})


def test_the_pooled_test_is_the_sites_tests_one_behind_the_other() -> None:
    part = {"alpha": SitePart(*(np.array(one) for one in ([0], [1], [2, 7]))),
            "bravo": SitePart(*(np.array(one) for one in ([3], [4], [5])))}  # fmt: skip
    scene = lay_out(a_set(8), Parts(part, np.array([6])))
    assert scene.test.sources == ("2", "7", "5")
    assert scene.test.sources[scene.slices["bravo"]] == scene.sites["bravo"].test.sources == ("5",)
    assert np.array_equal(scene.test.truth[2], a_set(8).truth[5])
    assert (scene.pooled.sources, scene.unlabelled.sources) == (("0", "3"), ("6",))


def test_the_coordinators_images_are_nobody_elses_and_without_a_share_all_stays_as_it_is() -> None:
    """Of 200 images 40 are transferal and, with a share of 0.1, 20 the coordinator's; of each site's, 0.25 / 0.7 are test."""
    sites = {"alpha": SITE, "bravo": SITE}
    none = share_out([""] * 200, ["x"] * 200, sites, SHARES, 3)
    some = share_out([""] * 200, ["x"] * 200, sites, SHARES.model_copy(update={"labelled": 0.1}), 3)
    assert (len(none.labelled), len(some.labelled)) == (0, 20)
    assert (some.transferal == none.transferal).all()
    every = [some.labelled, some.transferal]
    every += [each for site in some.sites.values() for each in (site.train, site.validation, site.test)]
    assert sorted(np.concatenate(every).tolist()) == list(range(200))
    assert (
        sum(len(site.test) for site in some.sites.values()) == 50 == sum(len(one.test) for one in none.sites.values())
    )
    assert lay_out(a_set(200), none).labelled is None


# --- FedAvg


def test_one_round_of_fedavg_is_the_mean_of_the_sites_weights_by_their_images(tmp_path: Path) -> None:
    """24 images in all over sites of 6 and 2: one trains on 18, the other on 6, and they count 3 to 1."""
    network = NetworkSettings.model_validate(NETWORK)
    training = TrainingSettings(image_budget=24, batch=2, learning_rate=5e-3, threads=1, ema=0.9)
    sites = {"large": a_set(6), "small": a_set(2, start=10)}
    found = fedavg.federated(network, training, sites, rounds=1, seed=5, folder=tmp_path).state_dict()
    own = []
    for node, (name, budget) in enumerate({"large": 18, "small": 6}.items(), 1):
        module = build(network, 1, 1, 5)
        how = TrainingSettings(image_budget=budget, batch=2, learning_rate=5e-3, threads=1)
        seed = int(np.random.SeedSequence([5, 0, node]).generate_state(1)[0] >> 1)
        fit(module, sites[name].images, sites[name].truth * np.uint8(255), how, seed=seed)
        own.append(module.state_dict())
    for name, tensor in found.items():
        wanted = 0.75 * own[0][name].double() + 0.25 * own[1][name].double()
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


def test_rounds_and_sites_together_see_what_the_student_sees_on_its_schedule() -> None:
    training = TrainingSettings(image_budget=1000, batch=10, learning_rate=0.1, schedule="cosine", warm_up=0.1)
    first, last = (fedavg.local_training(training, 30, 100, at, 10) for at in (0, 9))
    assert (first.image_budget, last.image_budget) == (30, 30)  # 1000 images, 10 rounds, three tenths of the images
    assert (first.schedule, first.learning_rate) == ("constant", 0.1)
    assert last.learning_rate == pytest.approx(0.1 * (1 + np.cos(np.pi * 8 / 9)) / 2)
    both = StudentSettings(training=TrainingSettings(epochs=2, batch=4), generations=2)
    twice = Recipe(student=both, transferal=())
    assert twice.images_seen(5, sites=3) == 2 * 12  # 10 images are three batches of four, twice
    followed = twice.model_copy(update={"follow_up": SiteTrainingSettings(image_budget=6)})
    assert followed.images_seen(5, sites=3) == 2 * 24 + 3 * 8  # two studies, and two batches at each site
    begun = twice.model_copy(update={"head_start": SiteTrainingSettings(image_budget=6)})
    assert begun.images_seen(5, sites=3) == 24  # what sites train in a teacher's place counts as little as a teacher


def test_fedavg_that_was_interrupted_goes_on_from_its_last_round_and_ends_alike(tmp_path: Path) -> None:
    network = NetworkSettings.model_validate(NETWORK)
    training = TrainingSettings.model_validate(SHORT)
    sites = {"one": a_set(4), "two": a_set(4, start=10)}

    class StoppedError(ConsiliumError):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        fedavg.federated(network, training, sites, rounds=2, seed=0, folder=tmp_path / "a", tell=stop)
    rounds: list[int] = []
    found = fedavg.federated(
        network, training, sites, rounds=2, seed=0, folder=tmp_path / "a", tell=lambda done, _: rounds.append(done)
    )
    whole = fedavg.federated(network, training, sites, rounds=2, seed=0, folder=tmp_path / "b")
    assert rounds == [1, 2]
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), whole.parameters(), strict=True))


def test_what_fails_at_a_site_is_raised_with_its_own_words(tmp_path: Path) -> None:
    broken = replace(a_set(4), images=np.zeros((4, 1, 48, 48), np.float32))
    with pytest.raises(DataError, match="images are uint8"):
        fedavg.federated(
            NetworkSettings.model_validate(NETWORK),
            TrainingSettings.model_validate(SHORT),
            {"one": a_set(4), "two": broken},
            rounds=1,
            seed=0,
            folder=tmp_path,
        )


# --- settings


def test_the_shipped_ladder_is_valid_at_every_scale_and_starts_with_the_papers_study() -> None:
    full, small, tiny = (load(FILE, scale) for scale in ("full", "small", "tiny"))
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
    assert "consensus-ablation.toml" in FILE.read_text().splitlines()[0]


@pytest.mark.parametrize("file", [FILE, SCENARIOS])
def test_a_shipped_consensus_step_is_the_preset_in_all_but_network_length_and_learning_rate(file: Path) -> None:
    settings = load(file)
    step = settings.recipe("consensus")
    own = {"network", "image_budget", "epochs", "batch", "learning_rate", "precision", "device", "threads"}
    preset = parse(Study, {"name": "any", "sites": ["one", "two"]}, "the preset")

    def said(student: StudentSettings) -> dict[str, Any]:
        return student.model_dump(exclude={"network": True, "training": own})

    assert step.fusion == preset.fusion
    assert step.exclusion == preset.exclusion
    assert said(step.student) == said(preset.student)


def test_the_shipped_scenarios_have_the_ablations_scene_so_that_both_share_teachers_and_students() -> None:
    ladder, scenarios = load(FILE), load(SCENARIOS)
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
    text = (FILE.parents[1] / "docs" / "experiments.md").read_text("utf-8")
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


def test_a_head_start_without_pretraining_is_refused(tmp_path: Path) -> None:
    steps = [*document()["step"], {"name": "begun", "head-start": {"image-budget": 8}}]
    with pytest.raises(SettingsError, match=r"step\.begun\.head-start: the sites begin with .* needs pretraining"):
        settings_of(tmp_path, step=steps)


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


def test_a_stack_without_the_coordinators_images_is_refused(tmp_path: Path) -> None:
    steps = [*document()["step"], {"name": "stack", "fusion": {"method": "stack"}}]
    with pytest.raises(SettingsError, match=r"step\.stack\.fusion\.method: a stack .* split\.labelled"):
        settings_of(tmp_path, step=steps)
    with pytest.raises(SettingsError, match="test, transferal and labelled leave the sites something"):
        settings_of(tmp_path, split={"labelled": 0.55})


# --- targets


def row(
    kind: Kind, seed: int, dice: float, *, step: str = "", model: str = "", part: str = POOLED, gain: float = 0.0
) -> Row:
    return Row("even", seed, step, kind, model, part, 4, 4, dice, dice, dice, "", gain, gain, gain, None, None, None)


def results(
    *students: float, paper: float = 60.0, pooled: float = 75.0, losses: tuple[float, float] = (0.0, 0.0)
) -> list[Row]:
    """Per seed a student beside teachers of 60 and 65; sites alpha and bravo differ by `losses` on their own tests."""
    rows = []
    for seed, student in enumerate(students):
        rows += [row(Kind.TEACHER, seed, dice, model=name) for name, dice in (("alpha", 60.0), ("bravo", 65.0))]
        rows += [row(Kind.STUDENT, seed, student, step="new"), row(Kind.STUDENT, seed, paper, step="paper")]
        rows += [row(Kind.POOLED_DATA, seed, pooled), row(Kind.FEDAVG, seed, 50.0)]
        rows += [
            row(Kind.STUDENT, seed, 0.0, step="new", part=site, gain=loss)
            for site, loss in zip(("alpha", "bravo"), losses, strict=True)
        ]
        rows.append(row(Kind.ENSEMBLE, seed, 99.0, step="new", part=UNLABELLED))
    return rows


def met(rows: list[Row]) -> list[bool | None]:
    return [one.met for one in targets(rows, "even", "new", "paper")]


def test_targets_are_met_at_their_bounds_and_missed_below() -> None:
    assert met(results(65.0, 77.0, losses=(-1.0, 3.0))) == [True, True, True, True, True]  # +6 on average, of 10
    assert met(results(64.9, 77.1)) == [False, True, True, True, True]  # below the best teacher with one seed
    assert met(results(67.9, 67.9)) == [True, False, True, False, True]  # +2.9 of 10
    assert met(results(70.9, 70.9)) == [True, True, True, False, True]  # +5.9 of 10
    assert met(results(71.0, 71.0, paper=66.1)) == [True, True, False, True, True]  # +4.9 over the paper's
    assert met(results(71.0, 71.0, losses=(-1.1, 9.0))) == [True, True, True, True, False]
    assert (
        met(results(64.0, 64.0, pooled=60.0))[3] is True
    )  # everybody's data is worth less than one teacher: nothing to go


def test_a_site_loses_on_average_over_the_seeds() -> None:
    rows = results(71.0, 71.0)
    rows += [row(Kind.STUDENT, seed, 0.0, step="new", part="delta", gain=gain) for seed, gain in enumerate((-2.5, 1.0))]
    assert met(rows)[4] is True  # -0.75
    found = targets(rows, "even", "new", "paper")
    assert "delta -0.75" in found[4].came
    assert found[0].came == "+6.00 (+6.00, +6.00)"


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert met([one for one in results(71.0) if one.step != "paper"])[2] is None
    assert met([]) == [None] * 5


def test_a_row_compares_image_by_image_and_resamples_groups() -> None:
    values, others = np.array([0.5, 0.9, 0.7, 0.7]), np.array([0.4, 0.8, 0.6, 0.6])
    found = scored(Place("even", 0, "new", Kind.STUDENT), POOLED, ["a", "a", "b", ""], values, "bravo", others)
    assert (found.n, found.groups, found.dice_mean, found.difference) == (4, 3, 70.0, 10.0)
    assert found.difference_low == found.difference_high == 10.0  # the same on every image
    one = scored(Place("even", 0, "new", Kind.STUDENT), POOLED, ["a", "a"], values[:2], "bravo", others[:2])
    assert one.dice_low == one.dice_high == 70.0  # one group: nothing varies


# --- whole


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


def test_cells_go_scenario_by_scenario_and_a_scenario_may_want_few(tmp_path: Path) -> None:
    few = {"name": "few", "seeds": [1], "steps": ["consensus"]}
    settings = settings_of(tmp_path, seeds=[0, 1], scenario=[{"name": "even"}, few])
    assert [cell.name for cell in cells(settings) if cell.scenario.name == "few"] == [
        "few/teacher/1", "few/consensus/1", "few/pooled-data/1", "few/fedavg/1", "few/true-masks/1",
    ]  # fmt: skip
    assert len(list(cells(settings))) == 2 * 6 + 5


def test_the_shipped_ablation_runs_on_phantoms_and_shows_what_it_found(tmp_path: Path) -> None:
    few = '[{ name = "even", steps = ["paper", "no-entropy", "consensus"] }, { name = "few", steps = ["paper"] }]'
    text = FILE.read_text().replace("[scale.tiny]\n", f"[scale.tiny]\nscenario = {few}\n")
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
