"""The errata page and the paper's numbers: every recomputed number on the page is what the numbers give."""

import math
import re
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from consilium.common.training.loss import paper_dice, soft_dice
from consilium.server.exclusion import PAPER_SIZE, statistics
from consilium.server.experiment.paper_numbers import KTC, NETWORKS, SCRATCH, number, printed
from consilium.server.fusion import weighted_mean

PAGE = (Path(__file__).parents[2] / "docs" / "errata.md").read_text("utf-8")
SETS = ("Baheya Breast Lesion", "Thyroid Nodule", "Nerve Structure", "Skin Lesion", "PASCAL VOC2012")
STUDENTS = tuple(NETWORKS.values())[:4]
LESION_2, BAHEYA = "XXX Breast Lesion-2", "Baheya Breast Lesion"
TEACHER = {
    "2": number("section 5.1", LESION_2, "DeepLabv3+").mean,
    "3": number("section 5.1", BAHEYA, "DeepLabv3+").mean,
}
TUNED = {
    "4": number("section 5.2", BAHEYA, "DeepLabv3+").mean,
    "5": number("section 5.2", "Thyroid Nodule", "DeepLabv3+").mean,
}


def section(heading: str) -> list[list[str]]:
    """The rows of the table below a heading, cell by cell."""
    text = PAGE.split(f"### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def dice(table: str, transferal: str, student: str, starred: bool) -> float:
    return number(table, transferal, student, starred).mean


def cells(table: str, students: tuple[str, ...] = STUDENTS, sets: tuple[str, ...] = SETS) -> list[float]:
    return [dice(table, *place) for place in product(sets, students, (False, True))]


def test_ktc_is_the_best_of_both_rows_over_the_teacher_and_one_cell_is_a_misprint() -> None:
    worked = []
    for table, transferal in product("23", SETS):
        best = max(cells(table, sets=(transferal,)))
        told = number(table, transferal, KTC).mean
        worked.append([table, transferal, f"{best:.2f}", f"{told:.2f}", f"{100 * best / TEACHER[table]:.2f}"])
    assert section("Knowledge transfer capability") == worked
    assert [row[:2] for row in worked if row[3] != row[4]] == [["3", BAHEYA]]


def test_images_epochs_and_their_products() -> None:
    worked = []
    epochs = {one.row: int(one.mean) for one in printed() if (one.table, one.column) == ("section A.3", "epochs")}
    for name in SETS:
        images = int(number("1", name, "Image Number").mean)
        before, after = (int(number("7", name, f"Images {when} Exclusion").mean) for when in ("before", "after"))
        assert before == images
        row = [name, f"{images:,}", f"{after:,}", f"{100 * after / images:.1f}"]
        trained = epochs.get(name)
        row += [str(trained), f"{trained * images:,}", f"{trained * after:,}"] if trained else [""] * 3
        worked.append(row)
    assert section("Images") == worked
    products = [int(row[5].replace(",", "")) for row in worked if row[5]]
    voc = [round(product / number("1", SETS[4], "Image Number").mean) for product in (min(products), max(products))]
    assert f"would give it {voc[0]} to {voc[1]}" in PAGE


def test_the_mean_effect_of_exclusion() -> None:
    gains = {
        name: [
            dice(table, name, student, True) - dice(table, name, student, False)
            for table in "2345"
            for student in STUDENTS
        ]
        for name in SETS
    }
    gains["all"] = [gain for held in list(gains.values()) for gain in held]
    worked = [
        [name, str(sum(gain > 0 for gain in held)), str(len(held)), f"{fmean(held):+.2f}"]
        for name, held in gains.items()
    ]
    assert section("What exclusion does") == worked
    assert all(gain < 0 for gain in gains[BAHEYA][:4])  # table 2


@pytest.mark.parametrize("row", section("Entropy of a mean of binary masks"), ids=lambda row: f"{row[0]} teachers")
def test_a_mean_of_binary_masks_reaches_its_limit_and_no_more(row: list[str]) -> None:
    teachers = int(row[0])
    side = 2 * 3 * 4 * 5  # divisible by every number of levels up to 6
    columns = np.arange(side) * (teachers + 1) // side  # as many pixels of every number of votes
    state = weighted_mean.init((1, 1, side, side))
    for vote in range(teachers):
        mask = np.where(columns > vote, 255, 0).astype(np.uint8)
        weighted_mean.fold(state, np.broadcast_to(mask, (1, 1, side, side)).copy(), 1)
    bits = statistics(weighted_mean.finish(state)).entropy_bits[0]
    assert bits == pytest.approx(math.log2(teachers + 1))
    beta = number("section 2", "exclusion", "beta").mean
    assert row[1:] == [f"{bits:.2f}", "yes" if bits > beta else "no"]


def largest_std(mean: float) -> float:
    """Of numbers from 0 to 100: all of them at one end or the other."""
    return math.sqrt(mean * (100 - mean))


def deviations() -> list[float]:
    return sorted(one.std / largest_std(one.mean) for one in printed() if one.std is not None)


def soft_loss(prediction: float) -> float:
    """Equation (1) for a mask of 0.5 everywhere, on so many pixels that its epsilon is nothing."""
    target = torch.full((1, 1, 1000, 1000), 0.5, dtype=torch.float64)
    return float(paper_dice(torch.full_like(target, prediction), target))


def checks() -> dict[str, tuple[str, str]]:
    """What is printed (words are not looked at), and what comes out."""
    baheya = {one.column: one.mean for one in printed() if (one.table, one.row) == ("section 4", BAHEYA)}
    published_benign = 437
    scratch = {
        (table, name, student, star): dice(table, name, student, star) - number(table, SCRATCH, student).mean
        for table, name, student, star in product("45", SETS, STUDENTS, (False, True))
    }
    worst = min(scratch, key=lambda place: scratch[place])
    assert worst == ("5", "Skin Lesion", "AttU-Net", False)
    misprint = number("5", BAHEYA, "AttU-Net", False)
    assert misprint.std is not None
    near = cells("2", students=("SDU-Net", "Panoptic-FPN"))
    own = cells("3", sets=(BAHEYA,))
    ratios = [max(cells(table, sets=(name,))) / TEACHER[table] for table in "23" for name in SETS]
    weak = {test: max(number("6", test, student).mean for student in STUDENTS) for test in (LESION_2, BAHEYA)}
    pupil = {test: number("6", test, "DeepLabv3+").mean for test in (LESION_2, BAHEYA)}
    split = sum(number("1", name, "Image Number").mean for name in ("XXX Breast Lesion-1", LESION_2))
    assert published_benign + baheya["malignant"] + baheya["normal"] == baheya["all"]

    def above(values: list[float], limit: float) -> str:
        return f"{sum(value > limit for value in values)} of {len(values)}"

    return {
        "busi-all": (f"{baheya['all']:g}", f"{baheya['normal'] + baheya['benign'] + baheya['malignant']:g}"),
        "busi-lesions": (f"{baheya['used']:g}", f"{published_benign + baheya['malignant']:g}"),
        "breast-split": (f"{number('section 4', 'XXX Breast Lesion', 'all').mean:g}", f"{split:g}"),
        "attunet-std": (f"{misprint.std:.2f}", f"{largest_std(misprint.mean):.2f}"),
        "attunet-share": ("", f"{100 * misprint.std / largest_std(misprint.mean):.0f} %"),
        "next-share": ("", f"{100 * deviations()[-2]:.0f} %"),
        "above-teacher": ("words", above(near, TEACHER["2"])),
        "baheya-students": ("words", above(own, TEACHER["3"])),
        "ktc-above": ("words", above(ratios, 1.0)),
        "above-scratch": ("words", above(list(scratch.values()), 0.0)),
        "least-margin": ("", f"{scratch[worst]:+.2f}"),
        "tuned-4": ("words", above(cells("4"), TUNED["4"])),
        "tuned-5": ("words", above(cells("5"), TUNED["5"])),
        "gain-lesion-2": ("", f"{pupil[LESION_2] - weak[LESION_2]:+.2f}"),
        "gain-baheya": ("", f"{pupil[BAHEYA] - weak[BAHEYA]:+.2f}"),
        "full-lesion-2": ("", f"{pupil[LESION_2] - TEACHER['2']:+.2f}"),
        "full-baheya": ("", f"{pupil[BAHEYA] - TEACHER['3']:+.2f}"),
        "alpha-share": ("", f"{100 * number('section 2', 'exclusion', 'alpha').mean / PAPER_SIZE**2:.3f} %"),
        "eq1-at-target": ("", f"{soft_loss(0.5):.2f}"),
        "eq1-at-one": ("", f"{soft_loss(1.0):.2f}"),
    }


def test_sums_limits_and_sentences_are_what_the_numbers_give() -> None:
    worked = checks()
    rows = {row[0]: row for row in section("Sums, limits and sentences")}
    assert list(rows) == list(worked)
    for key, (told, found) in worked.items():
        assert rows[key][3] == found, key
        assert rows[key][2].startswith('"') if told == "words" else rows[key][2] == told, key


def test_our_loss_is_smallest_at_a_soft_mask_where_equation_1_is_not() -> None:
    target = torch.full((1, 1, 100, 100), 0.5, dtype=torch.float64)
    levels = torch.linspace(0, 1, 11, dtype=torch.float64)
    ours = [float(soft_dice(torch.full_like(target, float(level)), target)) for level in levels]
    theirs = [float(paper_dice(torch.full_like(target, float(level)), target)) for level in levels]
    assert int(np.argmin(ours)) == 5
    assert int(np.argmin(theirs)) == 10


def test_numbers_quoted_in_the_pages_sentences_are_the_papers() -> None:
    told = {one.mean for one in printed()} | {one.std for one in printed()}
    quoted = {float(text) for text in re.findall(r"(?<![\d.,:])\d{2,3}\.\d{2}(?![\d.])", PAGE)}
    tables = [*section("Knowledge transfer capability"), *section("What exclusion does"), *checks().values()]
    recomputed = {float(cell) for row in tables for cell in row if re.fullmatch(r"[+-]?[\d.]+", cell)}
    assert quoted <= told | recomputed


def test_every_switch_the_page_names_is_a_setting() -> None:
    settings = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    tables = PAGE.split("\n## Exclusion\n")[1]
    switches = {
        name
        for line in tables.splitlines()
        if line.startswith("|")
        for name in re.findall(r"`([^`]+)`", line.rstrip("| ").split("|")[-1])
    }
    keys = {part for name in switches for part in re.split(r"[.= ]+", name.strip("[]")) if re.match("[a-z]", part)}
    assert keys
    unknown = {key for key in keys if not re.search(rf"`{re.escape(key)}`|`[^`]*\b{re.escape(key)}\b[^`]*`", settings)}
    assert not unknown
