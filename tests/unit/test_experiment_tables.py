"""Results in the paper's form: worked out by hand, with every gap shown and every text harmless."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from consilium.common.errors import DataError
from consilium.server.experiment.form import Counterpart, Form, counterparts
from consilium.server.experiment.render import NONE, Cell, Table, html, latex, markdown
from consilium.server.experiment.rows import Row, Variant
from consilium.server.experiment.scores import Selected
from consilium.server.experiment.tables import all_tables

HOSTILE = "<b>a|b*_[x]</b> & 50% $#{~^\\}\n\x1b[31m"


def row(
    transferal: str,
    student: str,
    mean: float,
    *,
    seed: int = 0,
    starred: bool = False,
    std: float = 10.0,
    variant: Variant = Variant.DISTILLED,
    teachers: str = "lesion-1",
    networks: str = "deeplabv3plus",
    test: str = "busi",
    teacher: float | None = 60.0,
    images: tuple[int, int] | None = (647, 500),
    n: int = 100,
) -> Row:
    return Row(
        cell="a cell",
        seed=seed,
        teachers=teachers,
        teacher_networks=networks,
        transferal=transferal,
        student=student,
        exclusion=starred,
        variant=variant,
        test=test,
        n=n,
        dice_mean=mean,
        dice_std=std,
        teacher_mean=teacher,
        teacher_std=None if teacher is None else 20.0,
        images_before=images[0] if images else None,
        images_after=images[1] if images else None,
        transductive=transferal == test,
        seconds=1.0,
    )


def only(rows: Sequence[Row], kind: str, form: Form | None = None) -> Table:
    (table,) = [one for one in all_tables(rows, form) if one.name.startswith(kind)]
    return table


def line(table: Table, label: str) -> tuple[Cell, ...]:
    (found,) = [cells for cells in table.rows if cells[0].text.split(" (n")[0] == label]
    return found[1:]


def test_single_teacher_has_the_papers_rows_with_ktc_in_the_first_of_each_pair() -> None:
    rows = [
        row("busi", "unet", 50.0),
        row("busi", "sdu-net", 66.0, starred=True),
        row("voc2012", "unet", 30.0, starred=True),
    ]
    table = only(rows, "single-teacher", Form(with_paper=False))
    assert table.columns == ("Transferal data set", "U-Net", "AttU-Net", "SDU-Net", "Panoptic-FPN", "KTC")
    assert [cells[0].text for cells in table.rows] == ["BUSI", "BUSI*", "PASCAL VOC2012", "PASCAL VOC2012*"]
    assert [cell.text for cell in line(table, "BUSI")] == ["50.00 ± 10.00 †", NONE, NONE, NONE, "110.00"]  # 66 / 60
    assert [cell.text for cell in line(table, "BUSI*")] == [NONE, NONE, "66.00 ± 10.00 †", NONE, ""]
    assert line(table, "PASCAL VOC2012")[-1].text == "50.00"
    assert [cells[0].text for cells in table.rows for cell in cells if cell.best] == ["BUSI*", "PASCAL VOC2012*"]
    assert "Teacher: lesion-1 (DeepLabv3+), 60.00 ± 20.00." in table.notes
    assert any("Transductive" in note for note in table.notes)
    assert not any(cell.paper for cells in table.rows for cell in cells)


def test_the_papers_numbers_stand_beside_the_same_data_only() -> None:
    rows = [row("busi", "unet", 50.0), row("tn3k", "unet", 50.0), row("busi", "unet", 50.0, test="bus-bra")]
    same, other = [table for table in all_tables(rows) if table.name.startswith("single-teacher")]
    assert line(same, "BUSI")[0].paper == "65.58 ± 31.22"
    assert line(same, "BUSI*")[2].paper == "69.66 ± 30.31"  # beside a dash: nothing of ours is dropped
    assert line(same, "BUSI")[-1].paper == "106.66"
    assert not any(cell.paper for cell in line(same, "TN3K"))
    assert any("106.66 is a misprint" in note for note in same.notes)
    assert "BUSI: 647 transferal images here, 697 in the paper." in same.notes
    assert "BUSI: 100 test images here, 697 in the paper." in same.notes
    assert "Teacher: lesion-1 (DeepLabv3+), 60.00 ± 20.00 [65.93 ± 32.55]." in same.notes
    assert not any(cell.paper for cells in other.rows for cell in cells)
    assert any(note.startswith("No number of the paper") for note in other.notes)


def test_phantoms_never_have_the_papers_numbers_and_it_says_why() -> None:
    data = {"baheya": Counterpart("Baheya, played by phantoms", "", "These are phantoms.")}
    table = only([row("baheya", "unet", 50.0, test="baheya")], "single-teacher", Form(data=data))
    assert not any(cell.paper for cells in table.rows for cell in cells)
    assert "These are phantoms." in table.notes


def test_seeds_are_averaged_and_their_spread_is_told_apart() -> None:
    rows = [
        row("busi", "unet", 50.0, seed=0, std=6.0),
        row("busi", "unet", 54.0, seed=1, std=8.0),
        row("busi", "sdu-net", 60.0, seed=1),
    ]
    cells = line(only(rows, "single-teacher"), "BUSI")
    # mean 52; sqrt((36 + 64) / 2) = 7.07; sample deviation of 50 and 54 is sqrt(8) = 2.83
    assert cells[0].text == "52.00 ± 7.07 (s 2.83) †"
    assert cells[2].text == "60.00 ± 10.00 (1 seed) †"


def test_a_seed_with_two_different_results_is_refused() -> None:
    with pytest.raises(DataError, match=r"50\.00 ± 10\.00 and 51\.00 ± 10\.00 for seed 0"):
        all_tables([row("busi", "unet", 50.0), row("busi", "unet", 51.0)])
    assert all_tables([row("busi", "unet", 50.0)] * 2)
    with pytest.raises(DataError, match=r"400 of 647 \(seed 0\), 500 of 647 \(seed 0\)"):
        all_tables(
            [
                row("busi", "unet", 50.0, starred=True),
                row("busi", "sdu-net", 50.0, starred=True, images=(647, 400)),
            ]
        )


def test_fine_tuned_students_stand_against_those_from_scratch() -> None:
    rows = [
        row("", "unet", 40.0, variant=Variant.SCRATCH, teachers="", networks="", teacher=None, images=None),
        row("busi", "unet", 55.0, variant=Variant.FINE_TUNED, teacher=70.0),
        row("busi", "unet", 45.0, variant=Variant.FINE_TUNED, starred=True, teacher=70.0),
    ]
    table = only(rows, "fine-tuned")
    assert [cells[0].text for cells in table.rows] == ["From scratch", "BUSI", "BUSI*"]
    assert [cells[1].text for cells in table.rows] == ["40.00 ± 10.00", "55.00 ± 10.00 †", "45.00 ± 10.00 †"]
    assert [cells[1].paper for cells in table.rows] == ["37.20 ± 24.65", "59.29 ± 29.04", "61.45 ± 29.95"]
    assert [cells[1].best for cells in table.rows] == [False, True, False]
    assert (
        "Teacher, fine-tuned on the same images: lesion-1 (DeepLabv3+), 70.00 ± 20.00 [69.90 ± 31.01]." in table.notes
    )
    assert "BUSI: 100 test images here, 647 in the paper." in table.notes  # all 697 but the 50 labelled ones
    assert only(rows[:1], "fine-tuned").rows[0][1].text == "40.00 ± 10.00"


def test_weak_teachers_stand_beside_their_student() -> None:
    networks = ("unet", "attention-unet", "sdu-net", "panoptic-fpn")
    teachers = [
        row("", "", 40.0 + i, variant=Variant.TEACHER, teachers=f"t{i}", networks=name, teacher=None, images=None)
        for i, name in enumerate(networks)
    ]
    pupil = row("busi", "deeplabv3plus", 50.0, teachers="t0+t1+t2+t3", networks="+".join(networks), teacher=None)
    table = only([*teachers, pupil], "many-teachers", Form(tests=("bus-bra",)))
    assert table.columns[1:] == ("U-Net", "AttU-Net", "SDU-Net", "Panoptic-FPN", "student DeepLabv3+")
    cells = line(table, "BUSI")
    assert [cell.text[:5] for cell in cells] == ["40.00", "41.00", "42.00", "43.00", "50.00"]
    assert [cell.best for cell in cells] == [False] * 4 + [True]
    assert [cells[0].paper, cells[4].paper] == ["49.30 ± 34.33", "58.40 ± 31.05"]
    assert [cell.text for cell in line(table, "BUS-BRA")] == [NONE] * 5
    alike = replace(pupil, teachers="t0+t4", teacher_networks="unet+unet")
    assert only([alike], "many-teachers").columns[1:3] == ("U-Net (t0)", "U-Net (t4)")
    with pytest.raises(DataError, match="one network for each teacher"):
        all_tables([replace(pupil, teacher_networks="unet")])


def test_exclusion_is_counted_by_transferal_set() -> None:
    rows = [
        row("busi", "unet", 50.0, seed=0, starred=True, images=(600, 450)),
        row("busi", "unet", 50.0, seed=1, starred=True, images=(600, 420)),
    ]
    table = only(rows, "exclusion", Form(transferal=("busi", "nerve")))
    assert [(cell.text, cell.paper) for cell in line(table, "BUSI")] == [
        ("600", "697"),
        ("435", "525"),
        ("72.5 %", "75.3 %"),
    ]
    assert [(cell.text, cell.paper) for cell in line(table, "Ultrasound Nerve")] == [
        (NONE, "11,143"),
        (NONE, "8,977"),
        (NONE, "80.6 %"),
    ]


def test_what_exclusion_leaves_is_told_without_any_student() -> None:
    none_left = Selected("lesion-1", "tn3k", 0, 24, 0)
    (table,) = all_tables([], selections=[none_left], tables=(7,))
    assert [cell.text for cell in line(table, "TN3K")] == ["24", "0", "0.0 %"]
    assert all_tables([], selections=[none_left], tables=(2, 3, 4, 5, 6)) == []


def test_data_of_an_experiment_are_known_by_the_data_set_behind_them() -> None:
    data = counterparts({"baheya": "busi", "nerve": "nerve", "lesion-1": "phantoms", "ours": "folder"})
    assert [one.label for one in data.values()] == [
        "baheya (BUSI)",
        "Ultrasound Nerve",
        "lesion-1 (phantoms)",
        "ours (folder)",
    ]
    assert [one.paper for one in data.values()] == ["Baheya Breast Lesion", "Nerve Structure", "", ""]


class Text(HTMLParser):
    """The cells' text and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - the parser gives it
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


SMALL = Table(
    "small", "Dice, %", ("Set", "U-Net"), ((Cell("BUSI*"), Cell("1.00 ± 2.00 †", "3.00 ± 4.00", best=True)),), ("— none.",)
)  # fmt: skip


def test_a_small_table_in_all_three_forms() -> None:
    assert markdown(SMALL) == (
        "Dice, %\n\n| Set | U-Net |\n|---|---:|\n| BUSI\\* | **1.00 ± 2.00 †** [3.00 ± 4.00] |\n\n- — none.\n"
    )
    assert html(SMALL) == (
        '<figure id="small">\n<table>\n<caption>Dice, %</caption>\n'
        '<thead><tr><th scope="col">Set</th><th scope="col">U-Net</th></tr></thead>\n'
        '<tbody>\n<tr><th scope="row">BUSI*</th><td class="number"><b>1.00 ± 2.00 †</b>'
        ' <span class="paper">[3.00 ± 4.00]</span></td></tr>\n</tbody>\n</table>\n'
        '<ul class="notes"><li>— none.</li></ul>\n</figure>\n'
    )
    assert r"BUSI* & \textbf{1.00 $\pm$ 2.00 $^{\dagger}$} {\footnotesize[3.00 $\pm$ 4.00]} \\" in latex(SMALL)
    assert r"\caption{Dice, \%}" in latex(SMALL)
    assert r"\begin{tabular}{lr}" in latex(SMALL)


def test_names_from_elsewhere_have_no_effect_in_any_form() -> None:
    rows = [row(HOSTILE, HOSTILE, 50.0, teachers=HOSTILE, networks=HOSTILE, test=HOSTILE)]
    table = only(rows, "single-teacher")
    seen = Text(str(html(table)))
    assert seen.tags.count("b") == 1  # the best cell's
    assert "a|b*_[x]</b> & 50% $#{~^\\}" in seen.text
    written = markdown(table)
    grid = [held for held in written.splitlines() if held.startswith("|")]
    assert len(grid) == 4
    assert {len(re.findall(r"(?<!\\)\|", held)) for held in grid} == {len(table.columns) + 1}
    assert "<b>" not in written
    typeset = latex(table)
    cells = [held for held in typeset.splitlines() if held.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", held)) for held in cells} == {len(table.columns) - 1}
    assert r"\textless{}b\textgreater{}a|b*\_{[}x{]}" in typeset
    bare = re.sub(r"\\[{}$&#_%]", "", typeset)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[^\x20-\x7e\n]", typeset)
    assert re.fullmatch(r"[A-Za-z0-9-]+", table.name)
