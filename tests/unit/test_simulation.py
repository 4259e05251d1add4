import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from consilium.server.simulate import simulate
from consilium.server.simulation import SOURCES, SimulatedStudy, read_data
from consilium.server.status import status

TINY = tomllib.loads((Path(__file__).parents[1] / "tiny.toml").read_text("utf-8"))


def study(**simulation: object) -> SimulatedStudy:
    return SimulatedStudy.model_validate(TINY | {"simulation": TINY["simulation"] | simulation})


def make_nerve(root: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, names in (("train", [f"{s}_{i}" for s in range(1, 13) for i in range(1, 4)]), ("test", ["1", "2"])):
        (root / folder).mkdir()
        for name in names:
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(root / folder / f"{name}.tif")
            if folder == "train":
                Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / folder / f"{name}_mask.tif")


def test_a_data_set_is_dealt_to_the_sites_without_tearing_a_group_apart(tmp_path):
    make_nerve(tmp_path)
    data = read_data(study(source="nerve", data=str(tmp_path), **{"transferal-share": 0.25}))
    hands = {f"{name} {part}": getattr(site, part) for name, site in data.sites.items() for part in ("train", "test")}
    hands["transferal"] = [one.source for one in data.transferal]
    subjects = {
        name: {Path(source).name.partition("_")[0] for source in getattr(held, "sources", held)}
        for name, held in hands.items()
    }
    assert sum(map(len, hands.values())) == 36  # the two images without masks are nobody's
    assert sum(map(len, subjects.values())) == len(set.union(*subjects.values())) == 12
    assert len(hands["transferal"]) == 9


def test_a_folder_beside_a_data_sets_own_unlabelled_images_is_a_set_of_its_own(tmp_path):
    make_nerve(tmp_path)
    further = tmp_path / "further"
    further.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(further / "a.png")
    given = {"source": "nerve", "data": str(tmp_path), "transferal-share": 0.25}
    alone = read_data(study(**given)).transferal
    beside = read_data(study(**given, transferal=str(further))).transferal
    assert {one.collection for one in alone} == {""}
    assert [one.collection for one in beside] == ["nerve"] * 9 + ["further"]


def test_only_known_data_sets_with_masks_and_a_folder_can_be_dealt():
    assert "isic2019" not in SOURCES
    with pytest.raises(
        ValidationError, match=r"simulation\.source is one of phantoms, folders, busi, .*; got 'isic2019'"
    ):
        study(source="isic2019", data="x")
    with pytest.raises(
        ValidationError, match=r"simulation\.data: give the folder of voc2012, here or with --data; it holds JPEG"
    ):
        study(source="voc2012")


# --- labelled images of the coordinator


def test_phantoms_and_data_sets_give_the_coordinator_images_that_nobody_else_has(tmp_path):
    make_nerve(tmp_path)
    dealt = read_data(study(source="nerve", data=str(tmp_path), **{"transferal-share": 0.25, "labelled-images": 5}))
    own = {Path(source).name.partition("_")[0] for source in dealt.labelled.sources}
    others = [source for site in dealt.sites.values() for part in (site.train, site.test) for source in part.sources]
    others += [one.source for one in dealt.transferal]
    assert len(dealt.labelled) == 6  # two subjects, of three images each
    assert not own & {Path(source).name.partition("_")[0] for source in others}
    made = read_data(study(**{"labelled-images": 5}))
    assert len(made.labelled) == 5
    assert made.labelled.sources[0] == "phantom north labelled 0"
    assert read_data(study()).labelled is None


def test_other_images_are_the_same_whether_the_coordinator_has_labelled_ones_or_not():
    without, with_some = read_data(study()), read_data(study(**{"labelled-images": 4}))
    assert (without.sites["north"].train.images == with_some.sites["north"].train.images).all()
    for one, other in zip(without.transferal, with_some.transferal, strict=True):
        assert (one.pixels == other.pixels).all()


def test_a_stack_needs_labelled_images_and_folders_cannot_give_them():
    with pytest.raises(ValidationError, match=r"say how many it has, simulation\.labelled-images"):
        SimulatedStudy.model_validate(TINY | {"fusion": {"method": "stack"}})
    with pytest.raises(ValidationError, match=r"labelled-images: phantoms and data sets .* folders do not"):
        study(source="folders", transferal="x", **{"labelled-images": 4})


def test_a_simulated_study_with_a_stack_says_so_and_trains_on_no_labelled_image(tmp_path):
    table = TINY["simulation"] | {"labelled-images": 6}
    sites = {
        name: site | {"training": site["training"] | {"image-budget": 80}} for name, site in table["sites"].items()
    }
    document = TINY | {"fusion": {"method": "stack"}, "simulation": table | {"sites": sites}}
    document |= {"exclusion": {"alpha": 0.0, "beta": 8.0}, "fine-tune": {"sites": []}}
    found = simulate(SimulatedStudy.model_validate(document), tmp_path, "inline", Console(quiet=True))
    assert [found["images"][key] for key in ("labelled", "test", "transferal")] == [6, 12, 24]
    assert found["stack"] == {"labels": {"lesion": {"images": 6, "sites": ["east", "north"]}}, "by_mean": 0}
    assert (status(tmp_path)["fusion"], status(tmp_path)["stack"]) == ("stack", found["stack"])
    rows = list(csv.DictReader((tmp_path / "selection.csv").read_text("utf-8").splitlines()))
    assert [row["role"] for row in rows] == ["labelled"] * 6 + ["test"] * 12 + ["transferal"] * 24
    assert found["images"]["kept"] + sum(found["images"]["excluded"].values()) == 24
    assert found["ensemble"]["pooled_dice"]["n"] == 12
    assert (
        "the stack of the answers, fitted on 6 labelled images of the coordinator,"
        in (tmp_path / "report.html").read_text()
    )
