"""The coordinator's labelled images: in front of the catalogue, their masks beside it, refused in time where they will not do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from consilium.common.catalogue import Catalogue, CatalogueImage, build, open_catalogue
from consilium.common.datasets import labelled
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import ConsiliumError, SettingsError, StateError
from consilium.common.identity.signing import make_signing_key
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.server import labelled_set
from consilium.server.cli import app
from consilium.server.ledger import Ledger
from consilium.server.run_folder import RunFolder
from consilium.server.study_run import StudyRun

SIZE, IMAGES = 32, 3


def some(count: int = IMAGES, labels: int = 1, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, SIZE, SIZE), np.uint8)
    masks = rng.integers(0, 2, (count, labels, SIZE, SIZE), np.uint8)
    return Labelled(images, masks, tuple(map(str, range(count))), ("",) * count)


def shared(count: int = 4) -> list[CatalogueImage]:
    return [CatalogueImage(image, "shared") for image in some(count, seed=1).images]


def study_of(**more: Any) -> Study:
    return parse(
        Study, {"name": "s", "sites": ["east"], "image": {"size": SIZE}, "fusion": {"method": "stack"}} | more, "x"
    )


@dataclass
class Case:
    """A run folder with a catalogue of labelled images, then shared ones."""

    folder: Path
    own: Labelled | None = field(default_factory=some)
    labels: tuple[str, ...] = ("lesion",)
    in_front: bool = True

    def __post_init__(self) -> None:
        self.run = RunFolder(self.folder)
        self.folder.mkdir(exist_ok=True)
        listed = shared()
        if self.own:
            labelled_set.pack(self.run, self.own, self.labels)
            own = list(labelled_set.catalogue_images(self.own))
            listed = own + listed if self.in_front else listed + own
        self.catalogue: Catalogue = build(self.run.catalogue, "c", listed, make_signing_key(self.folder / "key"))

    def true_masks(self, **more: Any) -> np.ndarray:
        return labelled_set.true_masks(self.run, study_of(**more), self.catalogue)


def test_the_true_masks_come_in_the_order_of_the_catalogue_and_are_not_in_it(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert case.catalogue.indices("labelled").tolist() == [0, 1, 2]
    assert case.catalogue.manifest.schema_version == 3
    assert (case.true_masks() == some().masks).all()
    kept = labelled.open_packed(case.run.labelled_set)
    assert list(kept.sources) == [entry.id for entry in case.catalogue.manifest.images[:IMAGES]]
    assert {path.name for path in case.run.catalogue.iterdir()} == {
        *("manifest.json", "signature.bin", "signer.pub", "pixels.u8", "sources.csv")
    }


def no_images(folder: Path) -> Case:
    return Case(folder, own=None)


def others_in_front(folder: Path) -> Case:
    return Case(folder, in_front=False)


def other_labels(folder: Path) -> Case:
    return Case(folder, labels=("cyst",))


def no_masks(folder: Path) -> Case:
    case = Case(folder)
    (case.run.labelled_set / "index.csv").unlink()
    return case


def masks_of_other_images(folder: Path) -> Case:
    case = Case(folder)
    labelled_set.pack(case.run, some(seed=7), ("lesion",))
    return case


def nothing_to_see(folder: Path) -> Case:
    data = some()
    return Case(folder, own=Labelled(data.images, data.masks * 0, data.sources, data.groups))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (no_images, SettingsError, r"lists none: build one with `consilium catalogue build \.\.\. --labelled FOLDER`"),
        (others_in_front, StateError, "stand in front of a catalogue"),
        (other_labels, SettingsError, "masks of cyst; the study's labels are lesion"),
        (no_masks, StateError, "does not hold the true masks"),
        (masks_of_other_images, StateError, "lacks the true masks of 3 of 3 labelled images"),
        (nothing_to_see, SettingsError, "the 3 labelled images do not for lesion"),
    ],
)
def test_a_stack_that_cannot_be_fitted_is_refused_before_anybody_is_asked(
    tmp_path: Path, make: Any, error: type[ConsiliumError], words: str
) -> None:
    case = make(tmp_path / "run")
    study = study_of()
    case.run.create(study)
    run = StudyRun(case.run, study, case.catalogue, Ledger.open(case.run.ledger))
    with pytest.raises(error, match=words):
        run.describe(None)  # asks nobody
    labelled_set.require(case.run, study_of(fusion={"method": "median"}), case.catalogue)


def test_more_labelled_images_than_are_held_at_a_time_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"chunks-in-flight = 2 are held at a time; the catalogue lists 3"):
        Case(tmp_path).true_masks(collect={"chunk": 1, "chunks-in-flight": 2})


def test_an_image_that_is_labelled_and_shared_or_a_test_image_too_is_labelled(tmp_path: Path) -> None:
    data = some()
    listed = [
        *labelled_set.catalogue_images(data),
        CatalogueImage(data.images[0], "shared"),
        CatalogueImage(data.images[1], "test", role="test"),
        *shared(),
    ]
    made = build(tmp_path / "catalogue", "c", listed, make_signing_key(tmp_path / "key"))
    assert made.indices("labelled").tolist() == [0, 1, 2]
    assert len(made.indices("transferal")) == len(made) - IMAGES


# --- the command


def draw(folder: Path, count: int, seed: int, *labels: str) -> Path:
    rng = np.random.default_rng(seed)
    for part in ("images", *labels):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(pixels if part == "images" else (pixels // 128) * np.uint8(255)).save(
                folder / part / f"{i}.png"
            )
    return folder


def command(folder: Path, *more: str) -> Any:
    base = ["catalogue", "build", str(folder / "shared"), "--run", str(folder / "run"), "--key", str(folder / "key")]
    return CliRunner().invoke(app, [*base, "--size", "32", *more])


def test_the_command_lists_labelled_images_first_and_keeps_their_masks(tmp_path: Path) -> None:
    draw(tmp_path / "shared", 4, 0)
    own = draw(tmp_path / "own", 2, 1, "masks")
    told = command(tmp_path, "--labelled", str(own))
    assert told.exit_code == 0, told.output
    assert "labelled: 2 images" in told.output
    run = RunFolder(tmp_path / "run")
    made = open_catalogue(run.catalogue)
    assert [entry.role for entry in made.manifest.images] == ["labelled"] * 2 + ["transferal"] * 4
    assert labelled_set.true_masks(run, study_of(), made).shape == (2, 1, 32, 32)


def test_several_labels_are_named_in_the_studys_order(tmp_path: Path) -> None:
    draw(tmp_path / "shared", 2, 0)
    own = draw(tmp_path / "own", 2, 1, "masks/cyst", "masks/mass")
    assert command(tmp_path, "--labelled", str(own), "--label", "cyst", "--label", "mass").exit_code == 0
    run = RunFolder(tmp_path / "run")
    made = open_catalogue(run.catalogue)
    assert labelled_set.true_masks(run, study_of(labels=["cyst", "mass"]), made).shape == (2, 2, 32, 32)
    with pytest.raises(SettingsError, match="in this order"):
        labelled_set.true_masks(run, study_of(labels=["mass", "cyst"]), made)


def test_labels_without_labelled_images_are_a_fault(tmp_path: Path) -> None:
    draw(tmp_path / "shared", 2, 0)
    told = command(tmp_path, "--label", "cyst")
    assert isinstance(told.exception, SettingsError)
