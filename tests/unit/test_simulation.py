import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from consilium.server.simulation import SOURCES, SimulatedStudy, read_data

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
    hands["transferal"] = [source for source, _ in data.transferal]
    subjects = {
        name: {Path(source).name.partition("_")[0] for source in getattr(held, "sources", held)}
        for name, held in hands.items()
    }
    assert sum(map(len, hands.values())) == 36  # the two images without masks are nobody's
    assert sum(map(len, subjects.values())) == len(set.union(*subjects.values())) == 12
    assert len(hands["transferal"]) == 9


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
