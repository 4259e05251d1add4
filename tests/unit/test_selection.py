"""Which images a student is trained on follows from pseudo masks, the ledger, and the sets that images came with."""

from pathlib import Path

import numpy as np
import pytest

from consilium.common import catalogue
from consilium.common.catalogue import CatalogueImage
from consilium.common.identity.signing import make_signing_key
from consilium.common.study import Study
from consilium.server.exclusion import Reason
from consilium.server.ledger import Ledger, Opinion
from consilium.server.run_folder import MaskFile
from consilium.server.selection import Selector

SIZE = 32
AGREEMENT = [0.8, 0.6, 0.3, 0.4, 0.2]
"""Two images of the breast, two of the thyroid, and a test image. All masks are binary: self-Dice is 1."""


def selector(folder: Path, sets: list[str], **exclusion: object) -> Selector:
    images = [
        CatalogueImage(np.full((1, SIZE, SIZE), 40 * i, np.uint8), str(i), collection=name)
        for i, name in enumerate(sets)
    ]
    images.append(CatalogueImage(np.full((1, SIZE, SIZE), 255, np.uint8), "t", role="test"))
    listed = catalogue.build(folder / "catalogue", "c", images, make_signing_key(folder / "key"))
    masks = np.zeros((5, 1, SIZE, SIZE), np.uint8)
    masks[:, :, 8:24, 8:24] = 255
    file = MaskFile(folder / "masks", 5, (1, SIZE, SIZE))
    file.write(0, masks)
    ledger = Ledger.open(folder / "ledger")
    ledger.opinions(0, 0, [Opinion(4, 4, True, agreed) for agreed in AGREEMENT], {})
    study = Study.model_validate(
        {"name": "s", "sites": list("abcd"), "image": {"size": SIZE}, "exclusion": {"rule": "consensus"} | exclusion}
    )
    return Selector(study, listed, ledger, file)


@pytest.mark.parametrize(
    ("least", "thyroid"),
    [({}, Reason.FAR_SET), ({"least-set": 0.5}, Reason.KEPT), ({"least-set": 0}, Reason.KEPT)],
    ids=["the preset", "0.5", "0"],
)
def test_a_set_that_sites_agree_half_as_much_about_is_left_out_by_the_preset(
    tmp_path: Path, least: dict[str, float], thyroid: Reason
) -> None:
    """Means 0.7 and 0.35: exactly one half."""
    _, reasons = selector(tmp_path, ["breast", "breast", "thyroid", "thyroid"], **least).decide()
    assert reasons == [Reason.KEPT, Reason.KEPT, thyroid, thyroid, Reason.KEPT]


def test_images_of_one_set_or_without_a_set_are_not_compared(tmp_path: Path) -> None:
    for number, sets in enumerate((["breast"] * 4, [""] * 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert selector(folder, sets).decide()[1] == [Reason.KEPT] * 5


def test_the_papers_rule_knows_no_sets(tmp_path: Path) -> None:
    found = selector(tmp_path, ["breast", "breast", "thyroid", "thyroid"], rule="paper")
    assert set(found.decide()[1]) == {Reason.KEPT}
