"""Settings: every fault at once, unknown keys, the shipped files, and the way through Flower's run-config."""

from pathlib import Path
from typing import Any

import pytest

from consilium.common.errors import SettingsError
from consilium.common.presets import keys
from consilium.common.settings import load, parse, read_toml, to_toml
from consilium.common.study import Study, from_run_config, to_run_config
from consilium.server.ablation.settings import load as load_ablation
from consilium.server.federation_settings import FederationSettings
from consilium.server.shipped import find_settings
from consilium.server.simulation import SimulatedStudy

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = {"name": "a", "sites": ["north", "east"]}


def test_all_faults_are_told_at_once_with_rule_and_value() -> None:
    values = MINIMAL | {"image": {"size": 8, "depth": 3}, "collect": {"quorum": 9}, "seed": -1}
    with pytest.raises(SettingsError) as told:
        parse(Study, values, "study.toml")
    text = str(told.value)
    assert text.startswith("study.toml: 3 faults")
    assert "image.size: Input should be greater than or equal to 32; got 8" in text
    assert "image.depth: unknown key; known here: size, channels" in text
    assert "seed: Input should be greater than or equal to 0; got -1" in text


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"name": "a"}, "sites: is required"),
        (MINIMAL | {"sites": ["north", "north"]}, "every site is named once"),
        (MINIMAL | {"fine-tune": {"sites": ["south"]}}, "fine-tune.sites names south"),
        (MINIMAL | {"fusion": {"weights": {"west": 2}}}, "fusion.weights names west"),
        (MINIMAL | {"collect": {"quorum": 3}}, "at most the number of sites, 2"),
        (MINIMAL | {"name": "../x"}, "name"),
        (MINIMAL | {"fusion": {"gate": 3}}, "fusion.gate is at most the number of sites, 2; got 3"),
        (MINIMAL | {"preset": "mine"}, "preset"),
        (MINIMAL | {"student": {"training": {"epochs": "many"}}}, 'epochs: .*at least 0, or "paper"; got .many.'),
        (MINIMAL | {"student": {"training": {"epochs": "paper", "image-budget": 9}}}, "got paper and 9"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        parse(Study, values, "x")


def test_a_study_survives_toml_and_run_config() -> None:
    study = parse(Study, MINIMAL | {"fusion": {"weights": {"north": 3}}, "fine-tune": {"sites": ["east"]}}, "x")
    flat = to_run_config(study)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert flat["fusion.weights"] == "north=3"
    assert parse(Study, from_run_config(flat | {"run-folder": "runs/a"}), "run-config") == study


def test_a_study_survives_its_file(tmp_path: Path) -> None:
    study = parse(Study, MINIMAL, "x")
    (tmp_path / "study.toml").write_text(to_toml(study))
    held = load(Study, tmp_path / "study.toml")
    assert held == study
    assert held.digest == study.digest


def test_a_preset_lies_under_what_is_said() -> None:
    consensus = parse(Study, MINIMAL, "x")
    assert consensus.preset == "consensus"
    assert consensus == parse(Study, MINIMAL | {"preset": "consensus"}, "x")
    assert (consensus.fusion.gate, consensus.fusion.weights, consensus.exclusion.rule) == (
        "majority",
        "validation",
        "consensus",
    )
    said = {
        "fusion": {"gate": "none", "weights": {"north": 3}},
        "student": {"training": {"image-budget": 80, "optimizer": "adam"}},
    }
    study = parse(Study, MINIMAL | said, "x")
    assert (study.fusion.gate, study.fusion.weights, study.fusion.calibrated) == ("none", {"north": 3}, True)
    training = study.student.training
    assert (training.epochs, training.image_budget, training.optimizer, training.weight_decay) == (0, 80, "adam", 0.0)
    assert training.ema == consensus.student.training.ema
    paper = parse(Study, MINIMAL | {"preset": "paper"}, "x")
    assert (paper.fusion.gate, paper.fusion.weights, paper.student.training.ema) == ("none", {}, 0.0)


@pytest.mark.parametrize("preset", ["paper", "consensus"])
def test_a_run_config_that_names_a_preset_alone_has_all_of_it(preset: str) -> None:
    config = flat(read_toml(CONFIGS.parent / "pyproject.toml")["tool"]["flwr"]["app"]["config"])
    said = config | {"name": "a", "sites": "north,east", "preset": preset}
    assert parse(Study, from_run_config(said), "run-config") == parse(Study, MINIMAL | {"preset": preset}, "x")


@pytest.mark.parametrize("weights", [{}, {"north": 2}, "validation"])
def test_weights_survive_the_run_config_under_every_preset(weights: object) -> None:
    study = parse(Study, MINIMAL | {"fusion": {"weights": weights}}, "x")
    assert study.fusion.weights == weights
    assert parse(Study, from_run_config(to_run_config(study)), "run-config") == study


def test_any_changed_setting_makes_another_study() -> None:
    study = parse(Study, MINIMAL, "x")
    assert (
        len({study.digest, *(parse(Study, MINIMAL | change, "x").digest for change in ({"seed": 1}, {"name": "b"}))})
        == 3
    )


def test_the_digest_that_the_wire_format_names_is_the_studys() -> None:
    digest = parse(Study, {"name": "s", "sites": ["a"]}, "x").digest
    assert digest in (CONFIGS.parent / "docs" / "wire.md").read_text()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_file_is_a_whole_run_and_says_its_command(path: Path) -> None:
    assert f"{path.name}" in path.read_text().splitlines()[0]
    document = read_toml(path)
    if document.get("kind") == "ablation":
        assert load_ablation(path).step
        return
    if "superlink" in document:
        assert parse(FederationSettings, document, path.name).sites
        return
    if "simulation" in document:
        document["simulation"].setdefault("data", "given on the command line")
        document["simulation"].setdefault("transferal", "given on the command line")
        study = parse(SimulatedStudy, document, path.name).study
    else:
        study = parse(Study, from_run_config(document), path.name)
    assert study.sites


def test_a_simulated_site_knows_some_of_the_studys_labels_in_the_studys_order() -> None:
    document = read_toml(CONFIGS / "labels.toml")
    study = parse(SimulatedStudy, document, "labels.toml")
    assert [study.labels_of(site) for site in study.sites] == [("mass", "cyst"), ("mass",), ("mass", "cyst")]
    document["simulation"]["sites"]["east"]["labels"] = ["mass", "vessel"]
    with pytest.raises(SettingsError, match=r"simulation\.sites\.east\.labels names vessel, not among .* mass, cyst"):
        parse(SimulatedStudy, document, "labels.toml")


def test_shipped_settings_are_found_by_name_and_others_are_named() -> None:
    assert find_settings(Path("demo.toml")).samefile(CONFIGS / "demo.toml")
    assert find_settings(Path("paper.toml")).samefile(CONFIGS / "paper.toml")
    with pytest.raises(SettingsError, match=r"none of that name is shipped \(.*demo.toml"):
        find_settings(Path("nope.toml"))


def test_the_papers_preset_has_the_papers_numbers() -> None:
    study = load(Study, find_settings(Path("paper.toml")))
    assert (study.image.size, study.image.channels) == (384, 1)
    assert (study.exclusion.alpha, study.exclusion.beta) == (256.0, 2.5)
    assert (study.fusion.method, study.fusion.weights, study.quorum) == ("weighted-mean", {}, len(study.sites))
    assert study.student.network.encoder_weights == "none"
    training = study.student.training
    assert (training.learning_rate, training.batch, training.schedule, training.augment) == (
        1e-4,
        4,
        "constant",
        "paper",
    )
    assert [training.on(images).epochs for images in (697, 1237)] == [500, 500]
    assert (study.fine_tune.images, study.fine_tune.training.epochs) == (50, 50)


def test_the_papers_preset_is_what_a_study_has_where_nothing_is_said() -> None:
    written = load(Study, CONFIGS / "paper.toml")
    told = {"preset": "paper", "name": written.name, "sites": written.sites, "fine-tune": {"sites": written.sites}}
    assert parse(Study, told, "defaults") == written


def test_flowers_defaults_are_the_studys_own() -> None:
    config = read_toml(CONFIGS.parent / "pyproject.toml")["tool"]["flwr"]["app"]["config"]
    expected = to_run_config(parse(Study, MINIMAL, "x")) | {"run-folder": "", "name": "", "sites": ""}
    assert flat(config) == expected | dict.fromkeys(keys(), "")


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
