"""Looking at a data set, and splitting it: every fault is named, no group is torn apart."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from consilium.common.datasets import near_duplicates
from consilium.common.datasets.cases import Case
from consilium.common.datasets.check import contradiction, look_at, near_duplicate_groups, report
from consilium.common.datasets.contact_sheet import choose, draw
from consilium.common.datasets.split import Row, join_groups, read, read_parts, rows, select, sites, split, write
from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.parallel import in_order
from consilium.server.cli import app


def picture(seed: int, width: int = 80, height: int = 60) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def disc(x: int, y: int, radius: int, width: int = 80, height: int = 60) -> npt.NDArray[np.bool_]:
    rows_, columns = np.ogrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows_ - y) ** 2 <= radius**2)


def case(
    source: str,
    image: Image.Image,
    mask: npt.NDArray[np.bool_] | None = None,
    kind: str = "",
    group: str = "",
) -> Case:
    return Case(source, lambda: image, None if mask is None else lambda: mask, group, kind)


def broken() -> Image.Image:
    raise DataError("d.png: cannot be read as an image")


def small_set() -> list[Case]:
    half, empty = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    half[:30] = True
    return [
        case("a.png", picture(0), half, "benign", "p1"),
        case("b.png", picture(0).convert("RGB"), empty, "malignant", "p2"),  # the same picture, in another mode
        case("c.png", picture(1, 40, 30), None, "benign"),
        Case("d.png", broken, None, "p1", "benign"),
        case("e.png", picture(2), np.zeros((80, 60), bool), "benign"),
        Case("f.png", broken),
        case("g.png", picture(3, 100, 50), disc(50, 25, 10, 100, 50), "benign", "p1"),
    ]


def test_everything_of_a_small_set_is_counted_and_every_fault_named() -> None:
    found = report(look_at(small_set(), workers=2))
    area = float(disc(50, 25, 10, 100, 50).mean())
    assert found == {
        "schema": 1,
        "images": 7,
        "with_mask": 3,
        "empty_mask": 1,
        "without_mask": 1,
        "faults": 3,
        "kinds": {
            "benign": {"images": 5, "with_mask": 2, "empty_mask": 0, "without_mask": 1, "faults": 2},
            "malignant": {"images": 1, "with_mask": 1, "empty_mask": 1, "without_mask": 0, "faults": 0},
        },
        "groups": {"named": 2, "largest": 3, "images_without": 3},
        "height": {"min": 30, "median": 55, "max": 60},
        "width": {"min": 40, "median": 80, "max": 100},
        "sizes": 3,
        "modes": {"L, 8 bit": 3, "RGB, 8 bit": 1},
        "foreground": {
            "mean": pytest.approx((0.5 + area) / 2),
            "q1": pytest.approx(area + 0.25 * (0.5 - area)),
            "median": pytest.approx((0.5 + area) / 2),
            "q3": pytest.approx(area + 0.75 * (0.5 - area)),
        },
        "unreadable": [
            {"source": "d.png", "why": "d.png: cannot be read as an image"},
            {"source": "f.png", "why": "d.png: cannot be read as an image"},
        ],
        "mask_faults": [{"source": "e.png", "why": "the image has 80 x 60 pixels, its mask 60 x 80"}],
        "exact_duplicates": [["a.png", "b.png"]],
        "near_duplicates": {"pairs": 1, "across_groups": 1, "groups": [["a.png", "b.png"]]},
        "contradictions": [{"sources": ["a.png", "b.png"], "why": "benign and malignant; one mask is empty"}],
    }


def test_a_set_without_one_readable_image_has_a_report() -> None:
    found = report(look_at([Case("f.png", broken)]))
    assert (found["height"], found["foreground"], found["near_duplicates"]["groups"]) == (None, None, [])


def test_depth_and_mode_are_those_of_the_file(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(deep)
    [seen] = look_at([case(str(deep), picture(0))])
    assert (seen.mode, seen.bits) == ("I;16", 16)
    [seen] = look_at([case(f"{deep}#3", picture(0))])
    assert seen.bits == 16


def test_masks_that_hardly_overlap_contradict_each_other() -> None:
    looks = look_at([case(str(x), picture(0), disc(x, 30, 10)) for x in (20, 23, 60)])
    assert contradiction(looks[0], looks[1]) == ""
    assert contradiction(looks[0], looks[2]) == "masks overlap with a Dice of 0 %"


def test_a_shifted_or_brightened_frame_is_a_near_duplicate_and_another_is_not() -> None:
    frame = np.asarray(picture(5), np.int64)
    shown = [frame, np.roll(frame, 1, 1), (frame * 0.6 + 70), np.asarray(picture(6))]
    looks = look_at([case(str(i), Image.fromarray(pixels.astype(np.uint8))) for i, pixels in enumerate(shown)])
    assert near_duplicate_groups(looks) == ["0", "0", "0", "1"]


def test_pairs_are_the_same_however_many_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (9, 64, 64)).astype(np.uint8)[rng.integers(0, 9, 40)]
    thumbnails[7] = 128  # one gray level: like nothing, itself included
    expected = [
        (i, j)
        for i in range(40)
        for j in range(i + 1, 40)
        if (thumbnails[i] == thumbnails[j]).all() and 7 not in (i, j)
    ]
    for block in (1, 7, 1024):
        monkeypatch.setattr(near_duplicates, "_BLOCK", block)
        assert list(map(tuple, near_duplicates.pairs(thumbnails).tolist())) == expected


# --- splits -------------------------------------------------------------------------------------------------------


def of_groups(groups: Sequence[str], kinds: Sequence[str] = ()) -> list[Case]:
    kinds = kinds or [""] * len(groups)
    return [
        case(f"/data/{i}.png", picture(0), None, kind, group)
        for i, (group, kind) in enumerate(zip(groups, kinds, strict=True))
    ]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["a", "b"])), min_size=1, max_size=60),
    st.lists(st.floats(0.1, 1), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_no_group_is_torn_apart_and_the_same_seed_gives_the_same_split(
    drawn: list[tuple[int, str]], shares: list[float], seed: int
) -> None:
    cases = of_groups([str(group or "") for group, _ in drawn], [kind for _, kind in drawn])
    parts = {f"p{i}": share / sum(shares) for i, share in enumerate(shares)}
    try:
        chosen = split(cases, parts, seed)
    except DataError as error:
        assert "nothing is left" in str(error)  # noqa: PT017 - where it is raised at all
        return
    assert chosen == split(cases, parts, seed)
    assert set(chosen) == set(parts)
    of_group = {(one.group, part) for one, part in zip(cases, chosen, strict=True) if one.group}
    assert len(of_group) == len({group for group, _ in of_group})


def test_parts_have_their_shares_of_every_kind() -> None:
    cases = of_groups([""] * 1000, ["a"] * 700 + ["b"] * 300)
    chosen = split(cases, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0)
    for first, last, expected in ((0, 700, (490, 70, 140)), (700, 1000, (210, 30, 60))):
        assert tuple(chosen[first:last].count(part) for part in ("train", "val", "test")) == expected
    assert chosen != split(cases, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=1)


def test_equal_sites_get_equally_many() -> None:
    chosen = split(of_groups([""] * 30, ["a", "b", "c"] * 10), sites(4), seed=3)
    assert sorted(map(chosen.count, sites(4))) == [7, 7, 8, 8]


def test_too_few_groups_are_said() -> None:
    with pytest.raises(
        DataError, match="4 images in 1 groups cannot be dealt to site-1, site-2: nothing is left for site-2"
    ):
        split(of_groups(["x"] * 4), sites(2), 0)


@pytest.mark.parametrize("text", ["", "train", "train=", "a=0,b=1", "a=0.5,a=0.5", "a=-1,b=2", "=1", "a=nan", "a=inf"])
def test_parts_are_names_with_shares(text: str) -> None:
    with pytest.raises(SettingsError, match="parts are like"):
        read_parts(text)


def test_shares_are_brought_to_one() -> None:
    assert read_parts("a=3, b=1") == {"a": 0.75, "b": 0.25}


def test_groups_that_share_a_patient_or_a_likeness_are_one() -> None:
    cases = of_groups(["p", "q", "q", "", "", "r"])
    assert join_groups(cases, ["0", "0", "1", "2", "2", "3"]) == ["p", "p", "p", "1", "1", "r"]


def test_a_table_gives_the_part_back_wherever_the_data_set_lies(tmp_path: Path) -> None:
    def at(folder: str) -> list[Case]:
        names = ("x/1.png", "x/2.png", "1.png", "x/3.tif#1", "x/3.tif#2")
        return [case(f"{folder}/{name}", picture(0), None, "", str(i // 3)) for i, name in enumerate(names)]

    table = tmp_path / "split.csv"
    assert write(table, rows(at("/data/x"), ["a", "b", "b", "b", "a"], Path("/data/x")))
    assert table.read_text().splitlines()[:3] == ["source,group,kind,part", "x/1.png,0,,a", "x/2.png,0,,b"]
    assert read(table)[3] == Row("x/3.tif#1", "1", "", "b")
    for folder in ("/data/x", "elsewhere", "/"):
        moved = at(folder.rstrip("/"))
        assert [one.source for one in select(moved, table, "b")] == [one.source for one in moved[1:4]]
        assert select(moved[4:], table, "a") == moved[4:]
    with pytest.raises(DataError, match="has no part 'c'; it has a, b"):
        select(at("/data/x"), table, "c")
    with pytest.raises(DataError, match=r"does not know /data/new\.png"):
        select([*at("/data"), case("/data/new.png", picture(0))], table, "a")


def test_another_split_is_overwritten_by_force_only(tmp_path: Path) -> None:
    table, one, other = tmp_path / "new" / "split.csv", [Row("1", "", "", "a")], [Row("1", "", "", "b")]
    assert write(table, one)
    assert not write(table, one)
    with pytest.raises(StateError, match="holds another split"):
        write(table, other)
    assert write(table, other, force=True)
    assert read(table) == other


# --- pictures and commands ----------------------------------------------------------------------------------------


def test_a_sheet_shows_equally_many_of_each_kind_spread_over_the_set() -> None:
    cases = of_groups([""] * 115, ["a"] * 100 + ["b"] * 10 + ["c"] * 5)
    chosen = choose(cases, 24)
    assert {kind: len(held) for kind, held in chosen.items()} == {"a": 10, "b": 9, "c": 5}
    assert chosen["a"][0] is cases[0]
    assert chosen["a"][-1] is cases[99]
    assert len(choose(cases[:3])["a"]) == 3


def test_a_sheet_outlines_the_mask_where_it_is_and_survives_what_cannot_be_read() -> None:
    sheet = np.asarray(draw(small_set(), "small"), np.int64)
    outline = (abs(sheet - (255, 196, 46)) < 40).all(axis=2)
    assert outline.any()
    alone = np.asarray(draw([case("x.png", picture(0, 80, 60), disc(20, 30, 10))], "one"), np.int64)
    y, x = np.nonzero((abs(alone - (255, 196, 46)) < 40).all(axis=2))
    left, top, scale = 36, 36 + 78, 236 / 80  # margin, title; the picture fills its tile in width
    assert (x.min(), x.max()) == pytest.approx((left + 10 * scale, left + 31 * scale), abs=2)
    assert (y.min(), y.max()) == pytest.approx((top + 20 * scale, top + 41 * scale), abs=2)


def labelled_folder(root: Path, count: int = 12) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        picture(i).save(root / "images" / f"{i}.png")
        Image.fromarray(disc(20 + i, 30, 10).astype(np.uint8) * np.uint8(255)).save(root / "masks" / f"{i}.png")
    return root


def test_check_tells_writes_and_fails_where_an_image_cannot_be_used(tmp_path: Path) -> None:
    folder, out = labelled_folder(tmp_path / "set"), tmp_path / "out"
    command = ["data", "check", "folder", str(folder), "--out", str(out), "--workers", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "check.json").read_text("utf-8"))
    assert (found["images"], found["with_mask"], found["sizes"]) == (12, 12, 1)
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
    (folder / "images" / "3.png").write_bytes(b"no image")
    picture(0, 10, 10).save(folder / "masks" / "5.png")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "Cannot be used: 2" in done.output
    assert "images/3.png: " in done.output
    assert "images/5.png: the image has 80 x 60 pixels, its mask 10 x 10" in done.output


def test_check_and_split_say_which_published_images_are_no_cases(tmp_path: Path) -> None:
    folder, out = tmp_path / "Dataset_BUSI_with_GT", tmp_path / "out"
    for i, kind in enumerate(("benign", "malignant", "normal", "normal")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / kind / f"{kind} ({i}).png")
        mask = disc(20, 30, 10) & (kind != "normal")
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / kind / f"{kind} ({i})_mask.png")
    told = "2 images in normal/: they show no lesion"
    done = CliRunner().invoke(app, ["data", "check", "busi", str(folder), "--out", str(out)], env={"COLUMNS": "150"})
    assert told in done.output
    found = json.loads((out / "check.json").read_text("utf-8"))
    assert (found["images"], [(one["where"], one["images"]) for one in found["left_out"]]) == (2, [("normal/", 2)])
    split = ["data", "split", "busi", str(folder), "--out", str(out)]
    assert told in CliRunner().invoke(app, [*split, "--parts", "train=0.5,test=0.5"]).output


def test_split_writes_the_same_table_again_and_refuses_another(tmp_path: Path) -> None:
    folder, out = labelled_folder(tmp_path / "set"), tmp_path / "out"
    (folder / "images" / "11.png").write_bytes((folder / "images" / "0.png").read_bytes())
    command = ["data", "split", "folder", str(folder), "--out", str(out)]
    run: Callable[..., object] = partial(CliRunner().invoke, app, catch_exceptions=False)
    run([*command, "--parts", "train=0.5,test=0.5"])
    held = {row.source: row for row in read(out / "split.csv")}
    assert list(held)[:2] == ["images/0.png", "images/1.png"]
    assert held["images/0.png"].group == held["images/11.png"].group
    assert held["images/0.png"].part == held["images/11.png"].part
    before = (out / "split.csv").read_bytes()
    run([*command, "--parts", "train=0.5,test=0.5"])
    assert (out / "split.csv").read_bytes() == before
    with pytest.raises(StateError, match="--force"):
        run([*command, "--sites", "3"])
    run([*command, "--sites", "3", "--force"])
    assert {row.part for row in read(out / "split.csv")} == {"site-1", "site-2", "site-3"}
    with pytest.raises(SettingsError, match="not both"):
        run([*command, "--sites", "3", "--parts", "a=1"])


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_an_error_in_its_turn(workers: int) -> None:
    assert list(in_order(lambda i: i * i, range(50), workers)) == [i * i for i in range(50)]
    results = in_order(lambda i: 1 // (i - 20), range(10_000), workers)
    assert [next(results) for _ in range(20)] == [1 // (i - 20) for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        next(results)
