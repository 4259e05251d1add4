"""The table of results, and the paper's own numbers: what is written is read, and what is wrong is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from consilium.common.errors import DataError
from consilium.server.experiment.paper_numbers import NETWORKS, find, number, printed
from consilium.server.experiment.rows import COLUMNS, Row, Variant, read_rows, write_rows

ROW = Row(
    cell="busi/unet, starred",
    seed=1,
    teachers="north+east",
    teacher_networks="unet+sdu-net",
    transferal="busi",
    student="deeplabv3plus",
    exclusion=True,
    variant=Variant.FINE_TUNED,
    test="busi",
    n=120,
    dice_mean=69.66,
    dice_std=30.31,
    teacher_mean=None,
    teacher_std=None,
    images_before=600,
    images_after=525,
    transductive=True,
    seconds=12.5,
)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, variant=Variant.TEACHER, exclusion=False, transductive=False, teacher_mean=65.93)]
    write_rows(tmp_path / "results.csv", rows)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1] == (
        '"busi/unet, starred",1,north+east,unet+sdu-net,busi,deeplabv3plus,on,fine-tuned,busi,'
        "120,69.66,30.31,,,600,525,yes,12.5"
    )
    assert read_rows(tmp_path / "results.csv") == rows


def test_every_fault_of_a_table_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_rows(path, [ROW, ROW])
    text = path.read_text().replace(",on,fine-tuned", ",yes,fine-tuned", 1)
    path.write_text(text[: text.rindex("69.66")] + "nan,1,,,6.5,6,no,1\n")
    with pytest.raises(DataError) as raised:
        read_rows(path)
    told = str(raised.value)
    assert "line 2, exclusion: off or on; got 'yes'" in told
    assert "line 3, dice_mean: a number from 0; got 'nan'" in told
    assert "line 3, images_before: a whole number from 0; got '6.5'" in told


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("cell,seed\na,1\n")
    with pytest.raises(DataError, match=r"teacher_networks, .* missing"):
        read_rows(tmp_path / "results.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.csv")


def test_the_paper_has_as_many_numbers_as_its_tables_have_cells() -> None:
    counts = {table: sum(one.table == table for one in printed()) for table in "1234567"}
    grid = 10 * 4  # five transferal sets, with and without a star, four students
    assert counts == {"1": 7, "2": grid + 5, "3": grid + 5, "4": grid + 4, "5": grid + 4, "6": 2 * 5, "7": 5 * 2}
    places = [(one.table, one.row, one.starred, one.column) for one in printed()]
    assert len(set(places)) == len(places)
    assert {one.column for one in printed() if one.table in "23456"} == {*NETWORKS.values(), "KTC"}


def test_numbers_of_the_paper_are_those_it_prints() -> None:
    best = find("3", "Baheya Breast Lesion", "SDU-Net", starred=True)
    assert best is not None
    assert (best.mean, best.std, best.unit) == (69.66, 30.31, "%")
    assert number("6", "XXX Breast Lesion-2", "DeepLabv3+").mean == 78.71
    assert number("7", "Skin Lesion", "Images after Exclusion").mean == 6960
    assert number("2", "Skin Lesion", "KTC").std is None
    assert find("3", "Baheya Breast Lesion", "DeepLabv3+", starred=True) is None
    with pytest.raises(DataError, match="no number in table 9"):
        number("9", "Baheya Breast Lesion", "KTC")
