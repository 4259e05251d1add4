"""Reading cases: canonical pixels and masks, in order, the same whatever the number of threads."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from consilium.common.datasets import reading
from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError
from consilium.common.images import canonical_mask, target_of, union

LEFT = np.zeros((6, 8), np.bool_)
LEFT[:, :4] = True


def made(number: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.full((6, side), number, np.uint8))


def drawn(rows: int) -> npt.NDArray[np.bool_]:
    return np.arange(6)[:, None].repeat(8, 1) < rows


def some(count: int) -> list[Case]:
    return [Case(f"case {i}", partial(made, i), partial(drawn, i % 7), group=f"g{i // 2}") for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_reading_gives_the_cases_in_order_whatever_the_number_of_threads(workers: int) -> None:
    told: list[int] = []
    data = reading.read(some(40), 12, 3, workers=workers, on_case=told.append)
    assert data.images.shape == (40, 3, 12, 12)
    assert np.array_equal(data.images[:, 0, 0, 0], np.arange(40))
    assert data.masks[:, 0].sum(axis=(1, 2)).tolist() == [(i % 7) * 2 * 12 for i in range(40)]
    assert data.sources[3] == "case 3"
    assert data.groups[:4] == ("g0", "g0", "g1", "g1")
    assert told == list(range(1, 41))


@pytest.mark.parametrize("workers", [1, 3])
def test_images_come_in_order_and_few_are_decoded_ahead(workers: int) -> None:
    asked: list[int] = []

    def load(i: int) -> Image.Image:
        asked.append(i)
        return made(i % 200)

    cases = [Case(str(i), partial(load, i)) for i in range(1000)]
    images = reading.read_images(cases, 4, 1, workers=workers)
    assert isinstance(images, Iterator)
    for i in range(20):
        case, pixels = next(images)
        assert case.source == str(i)
        assert pixels.shape == (1, 4, 4)
        assert (pixels == i).all()
    images.close()
    assert len(asked) < 60


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_one_case_comes_out_as_it_is(workers: int) -> None:
    def fail() -> Image.Image:
        raise DataError("b.png: cannot be read as an image")

    cases = [*some(3), Case("b.png", fail, partial(drawn, 1)), *some(100)]
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        reading.read(cases, 4, 1, workers=workers)


def test_cases_to_learn_from_need_a_mask_of_the_size_of_their_image() -> None:
    first, second = some(2)
    with pytest.raises(DataError, match=r"needs a mask; 1 of 2 have none, first case 1\. Take them out"):
        reading.read([first, replace(second, load_mask=None)], 4, 1)
    with pytest.raises(DataError, match=r"case 0: a mask has the size of its image, here 9 x 6; this one has 8 x 6"):
        reading.read([replace(first, load_image=partial(made, 1, 9))], 4, 1)
    with pytest.raises(DataError, match="at least one case"):
        reading.read([], 4, 1)


def test_groups_are_the_tables_else_the_data_sets_else_near_duplicates(tmp_path: Path) -> None:
    ramp = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    pictures = [ramp, ramp.T, ramp]
    cases = [
        Case(f"/data/a/{i}.png", partial(Image.fromarray, pixels), partial(np.zeros, (64, 64), np.bool_))
        for i, pixels in enumerate(pictures)
    ]
    assert reading.read_grouped(cases, 64, 1).groups == ("0", "1", "0")
    own = [replace(case, group="p") for case in cases]
    assert reading.read_grouped(own, 64, 1).groups == ("p", "p", "p")
    table = tmp_path / "groups.csv"
    table.write_text("path,near_dup_group\nelsewhere/a/0.png,x\na/1.png,y\na/2.png,z\n")
    assert reading.read_grouped(own, 64, 1, table).groups == ("x", "y", "z")
    table.write_text("path,near_dup_group\na/0.png,x\n")
    with pytest.raises(DataError, match=r"names no group for 2 images, first /data/a/1.png"):
        reading.read_grouped(cases, 64, 1, table)
    table.write_text("path,group\n")
    with pytest.raises(DataError, match=r"near_dup_group missing \(found: path, group\)"):
        reading.read_grouped(cases, 64, 1, table)


def palette_mask() -> Image.Image:
    mask = Image.fromarray(LEFT.astype(np.uint8), "L")
    mask.putpalette([0, 0, 0, 255, 255, 255])
    return mask


def with_alpha(alpha: npt.NDArray[np.uint8]) -> Image.Image:
    gray = LEFT.astype(np.uint8) * np.uint8(255)
    return Image.fromarray(np.stack([gray, gray, gray, alpha], axis=2))


@pytest.mark.parametrize(
    "mask",
    {
        "1": Image.fromarray(LEFT),
        "L": Image.fromarray(LEFT.astype(np.uint8) * np.uint8(255)),
        "L, lossy": Image.fromarray(np.where(LEFT, np.uint8(128), np.uint8(127))),
        "P": palette_mask(),
        "RGB": with_alpha(np.full((6, 8), 255, np.uint8)).convert("RGB"),
        "RGBA": with_alpha(np.full((6, 8), 255, np.uint8)),
        "RGBA, clear": with_alpha(np.zeros((6, 8), np.uint8)),
    }.values(),
)
def test_a_mask_means_the_same_in_every_mode_and_alpha_nothing(mask: Image.Image) -> None:
    assert np.array_equal(target_of(mask), LEFT)


def test_masks_of_an_image_are_united_and_must_have_one_size(tmp_path: Path) -> None:
    one, two, other = (tmp_path / f"{name}.png" for name in ("one", "two", "other"))
    Image.fromarray(LEFT).save(one)
    Image.fromarray(~LEFT).save(two)
    Image.fromarray(LEFT[:3]).save(other)
    assert union([one, two]).all()
    with pytest.raises(
        DataError, match=r"other.png: the masks of one image have one size, here 8 x 6; this one has 8 x 3"
    ):
        union([one, other])


def test_a_stretched_mask_keeps_its_halves() -> None:
    assert np.array_equal(canonical_mask(LEFT, 4), np.array([[[1, 1, 0, 0]] * 4], np.uint8))
    assert not canonical_mask(np.zeros((5, 7), np.bool_), 16).any()
