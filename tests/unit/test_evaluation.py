import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import Result
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from typer.testing import CliRunner

from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError, SettingsError
from consilium.common.evaluation import boundary, calibration, folders, statistics
from consilium.common.evaluation.per_image import MEASURES, measure
from consilium.common.evaluation.rows import COLUMNS, Part, Sample, measure_all, resized, to_csv
from consilium.common.evaluation.summary import summarise
from consilium.server.cli import app

Mask = npt.NDArray[np.bool_]


def drawn(picture: str) -> Mask:
    """A mask from lines of ``#`` (target) and ``.``."""
    return np.array([[char == "#" for char in line] for line in picture.split()])


def soft(mask: Mask) -> npt.NDArray[np.uint8]:
    return mask.astype(np.uint8) * np.uint8(255)


SQUARE = drawn("""
    ........
    .##.....
    .##.....
    ........
    ........
""")
BESIDE = drawn("""
    ........
    ..##....
    ..##....
    ........
    ........
""")
NOTHING = np.zeros((5, 8), bool)


# --- one image


def test_two_squares_that_share_half_are_measured_as_by_hand() -> None:
    found, _ = measure(soft(BESIDE), SQUARE)
    assert (found.truth_px, found.predicted_px) == (4, 4)
    assert found.dice == pytest.approx(50.0)  # 2 * 2 of 4 + 4
    assert found.iou == pytest.approx(100 * 2 / 6)
    assert found.precision == found.recall == pytest.approx(50.0)
    assert found.area_error == 0.0
    assert (found.found, found.found_iou50) == (100.0, 0.0)
    assert found.specificity == pytest.approx(100 * 34 / 36)  # 40 pixels, 36 background, 2 of them drawn
    assert found.brier == pytest.approx(4 / 40)
    assert found.ece == pytest.approx(4 / 40)  # 2 of 4 in the bin of the sure, 2 of 36 in the other


def test_outlines_one_pixel_apart_are_measured_as_by_hand() -> None:
    # The outline of a 2 x 2 square runs over 8 corners between pixels: 4 where it turns, half a diagonal long each, and 4 in
    # the middle of a side, one pixel long each. Of the left square's, the left side (a turn, a middle, a turn) is one pixel
    # from the right one's left side. Its top and bottom lie on the other's. The middle of its right side is in the middle of
    # the other square, one pixel from any side; the right side's ends lie on the other's top and bottom.
    found, _ = measure(soft(BESIDE), SQUARE)
    corner, side = math.sqrt(0.5), 1.0
    total = 4 * corner + 4 * side
    apart = 2 * corner + 2 * side
    assert found.assd_px == pytest.approx(apart / total)
    assert found.hd95_px == 1.0
    assert found.nsd_2px == found.nsd_5px == 100.0


def test_equal_masks_are_perfect_and_lie_on_each_other() -> None:
    found, _ = measure(soft(SQUARE), SQUARE)
    assert (found.dice, found.iou, found.precision, found.recall, found.specificity) == (100.0,) * 5
    assert (found.hd95_px, found.assd_px, found.area_error, found.brier, found.ece) == (0.0,) * 5
    assert (found.nsd_2px, found.found_iou50) == (100.0, 100.0)


def test_a_missed_lesion_counts_with_the_worst_of_every_measure() -> None:
    found, _ = measure(soft(NOTHING), SQUARE)
    assert (found.dice, found.iou, found.precision, found.recall) == (0.0,) * 4
    assert found.hd95_px == found.assd_px == pytest.approx(math.hypot(5, 8))
    assert (found.nsd_2px, found.nsd_5px, found.found, found.found_iou50) == (0.0,) * 4
    assert found.area_error == -100.0
    assert found.specificity == 100.0


def test_an_image_without_a_lesion_has_no_outline_to_be_near_to() -> None:
    empty, _ = measure(soft(NOTHING), NOTHING)
    wrong, _ = measure(soft(SQUARE), NOTHING)
    for found in (empty, wrong):
        for name in ("recall", "hd95_px", "assd_px", "nsd_2px", "nsd_5px", "area_error", "found", "found_iou50"):
            assert math.isnan(getattr(found, name)), name
    assert (empty.dice, empty.iou, empty.specificity) == (100.0,) * 3
    assert math.isnan(empty.precision)
    assert (wrong.dice, wrong.iou, wrong.precision) == (0.0,) * 3
    assert wrong.specificity == pytest.approx(90.0)
    assert wrong.predicted_px == 4


def test_a_lesion_that_fills_the_image_has_no_background() -> None:
    found, _ = measure(soft(~NOTHING), ~NOTHING)
    assert math.isnan(found.specificity)
    assert found.dice == 100.0
    assert found.hd95_px == 0.0


def test_a_pixel_counts_above_one_half_only() -> None:
    mask = np.array([[127, 128]], np.uint8)
    found, _ = measure(mask, np.array([[False, True]]))
    assert (found.predicted_px, found.dice) == (1, 100.0)


def test_the_outline_of_an_empty_mask_is_refused_and_not_guessed() -> None:
    with pytest.raises(DataError, match="no outline"):
        boundary.compare(NOTHING, SQUARE)


@pytest.mark.parametrize("truth", [SQUARE.astype(np.uint8), SQUARE[:4], SQUARE[None]])
def test_masks_that_do_not_belong_together_are_refused(truth: npt.NDArray[np.generic]) -> None:
    with pytest.raises(DataError):
        measure(soft(SQUARE), truth)


pairs_of_masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(arrays.arrays(np.bool_, shape), arrays.arrays(np.bool_, shape))
)


def outline(mask: Mask) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Corners between pixels that the outline runs over, and how long it is there, by marching squares."""
    padded = np.pad(mask, 1)
    points, lengths = [], []
    for y in range(padded.shape[0] - 1):
        for x in range(padded.shape[1] - 1):
            cell = padded[y : y + 2, x : x + 2]
            inside = int(cell.sum())
            if inside in (1, 3):
                length = math.sqrt(0.5)
            elif inside == 2:
                length = math.sqrt(2) if cell[0, 0] == cell[1, 1] else 1.0
            else:
                continue
            points.append((y, x))
            lengths.append(length)
    return np.array(points, np.float64), np.array(lengths)


@given(pairs_of_masks)
@settings(deadline=None, max_examples=60)
def test_the_pinned_tool_agrees_with_every_distance_worked_out_one_by_one(pair: tuple[Mask, Mask]) -> None:
    mask, truth = pair
    assume(mask.any() and truth.any())
    (here, here_length), (there, there_length) = outline(mask), outline(truth)
    far = np.linalg.norm(here[:, None] - there[None], axis=2)
    forth, back = far.min(axis=1), far.min(axis=0)
    total = here_length.sum() + there_length.sum()
    found = boundary.compare(mask, truth)
    assert found.assd_px == pytest.approx((forth @ here_length + back @ there_length) / total)
    for tolerance, nsd in zip(boundary.TOLERANCES_PX, found.nsd, strict=True):
        near = here_length[forth <= tolerance].sum() + there_length[back <= tolerance].sum()
        assert nsd == pytest.approx(near / total)
    assert min(forth.min(), back.min()) <= found.hd95_px <= max(forth.max(), back.max())
    for distances, lengths in ((forth, here_length), (back, there_length)):
        assert lengths[distances <= found.hd95_px].sum() >= (0.95 - 1e-9) * lengths.sum()


@given(pairs_of_masks)
@settings(deadline=None, max_examples=60)
def test_measures_keep_their_bounds_and_nothing_is_worse_than_a_miss(pair: tuple[Mask, Mask]) -> None:
    mask, truth = pair
    assume(truth.any())
    found, _ = measure(soft(mask), truth)
    missed, _ = measure(soft(np.zeros_like(mask)), truth)
    for name in ("dice", "iou", "precision", "recall", "nsd_2px", "nsd_5px", "found", "found_iou50"):
        assert getattr(missed, name) <= getattr(found, name) <= 100.0
    assert found.hd95_px <= missed.hd95_px
    assert found.assd_px <= missed.assd_px
    assert found.nsd_2px <= found.nsd_5px
    assert found.iou == pytest.approx(found.dice / (200 - found.dice) * 100)
    assert 0.0 <= found.ece <= 1.0
    assert 0.0 <= found.brier <= 1.0


@given(pairs_of_masks)
@settings(deadline=None, max_examples=40)
def test_dice_and_distances_are_the_same_both_ways_round_and_mirrored(pair: tuple[Mask, Mask]) -> None:
    mask, truth = pair
    assume(mask.any() and truth.any())
    one, other = measure(soft(mask), truth)[0], measure(soft(truth), mask)[0]
    mirrored = measure(soft(mask[::-1, ::-1].T), truth[::-1, ::-1].T)[0]
    for name in ("dice", "iou", "assd_px", "nsd_2px", "hd95_px"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
        assert getattr(one, name) == pytest.approx(getattr(mirrored, name))
    assert one.precision == pytest.approx(other.recall)


# --- calibration


def test_brier_and_calibration_error_are_as_by_hand() -> None:
    # Levels 51, 51, 204, 204 are probabilities 0.2, 0.2, 0.8, 0.8, in two bins; one pixel of each pair is target.
    counts = calibration.count(np.array([[51, 51, 204, 204]], np.uint8), np.array([[True, False, True, False]]))
    assert calibration.brier(counts) == pytest.approx((0.64 + 0.04 + 0.04 + 0.64) / 4)
    assert calibration.ece(counts) == pytest.approx(0.3)
    assert calibration.reliability(counts) == [
        {"probability": 0.2, "target": 0.5, "pixels": 2},
        {"probability": 0.8, "target": 0.5, "pixels": 2},
    ]


def test_probabilities_that_come_true_as_often_as_they_say_are_calibrated() -> None:
    truth = np.arange(100).reshape(10, 10) < 20
    counts = calibration.count(np.full((10, 10), 51, np.uint8), truth)
    assert calibration.ece(counts) == pytest.approx(0.0)


@given(arrays.arrays(np.uint8, (2, 4, 5)), arrays.arrays(np.bool_, (2, 4, 5)))
def test_counts_of_two_images_are_the_counts_of_both_together(mask: npt.NDArray[np.uint8], truth: Mask) -> None:
    apart = calibration.count(mask[0], truth[0]) + calibration.count(mask[1], truth[1])
    together = calibration.count(mask.reshape(8, 5), truth.reshape(8, 5))
    assert (apart == together).all()
    assert together.sum() == 40
    assert sum(one["pixels"] for one in calibration.reliability(together)) == 40
    exact = np.mean((mask / 255 - truth) ** 2)
    assert calibration.brier(together) == pytest.approx(exact)


# --- statistics


def test_the_interval_of_a_constant_is_that_constant() -> None:
    low, high = statistics.bootstrap_intervals(np.full((9, 2), 7.0), [""] * 9, np.random.default_rng(0), 500)
    assert low.tolist() == high.tolist() == [7.0, 7.0]


def test_the_interval_of_many_independent_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(50.0, 10.0, (400, 1))
    low, high = statistics.bootstrap_intervals(values, [""] * 400, np.random.default_rng(2))
    reach = 1.96 * values.std() / 20
    assert low[0] == pytest.approx(values.mean() - reach, abs=0.1)
    assert high[0] == pytest.approx(values.mean() + reach, abs=0.1)


def test_repeating_an_image_within_its_group_does_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(50.0, 10.0, (40, 1))
    groups = [f"patient {i}" for i in range(40)]
    once = statistics.bootstrap_intervals(values, groups, np.random.default_rng(2), 2000)
    often = statistics.bootstrap_intervals(
        values.repeat(5, axis=0), list(np.repeat(groups, 5)), np.random.default_rng(2), 2000
    )
    alone = statistics.bootstrap_intervals(values.repeat(5, axis=0), [""] * 200, np.random.default_rng(2), 2000)
    assert np.allclose(once, often)
    assert (alone[1] - alone[0])[0] < 0.6 * (once[1] - once[0])[0]


def test_undefined_values_are_left_out_of_each_mean_and_a_column_of_them_has_no_interval() -> None:
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [1.0, np.nan]])
    low, high = statistics.bootstrap_intervals(values, [""] * 3, np.random.default_rng(0), 200)
    assert (low[0], high[0]) == (1.0, 1.0)
    assert np.isnan([low[1], high[1]]).all()


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random((30, 3))
    one, two = (statistics.bootstrap_intervals(values, [""] * 30, np.random.default_rng(5), 300) for _ in range(2))
    assert np.array_equal(one, two)


def test_five_wins_out_of_five_have_the_exact_p_of_the_signed_rank_test() -> None:
    second = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    found = statistics.paired(second + np.array([1.0, 2.0, 3.0, 4.0, 5.0]), second, [""] * 5)
    assert found.p == pytest.approx(2 / 2**5)  # all signs alike, two-sided
    assert (found.wins, found.ties, found.losses, found.median_difference) == (5, 0, 0, 3.0)


def test_equal_predictors_do_not_differ() -> None:
    values = np.array([10.0, 20.0, np.nan])
    found = statistics.paired(values, values + 1e-12, [""] * 3)
    assert (found.p, found.ties, found.n) == (1.0, 2, 2)


def test_images_of_one_patient_are_one_unit_of_the_test() -> None:
    second = np.zeros(10)
    found = statistics.paired(second + np.arange(1, 11), second, [f"patient {i // 2}" for i in range(10)])
    assert (found.units, found.wins) == (5, 10)
    assert found.p == pytest.approx(2 / 2**5)


def test_holm_steps_down_as_in_the_textbook() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, statistics.holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values) + 1e-12)


def test_lesions_are_sorted_into_thirds_and_equal_ones_stand_together() -> None:
    assert statistics.thirds(np.array([9.0, 1.0, 5.0, 2.0, 6.0, 8.0])).tolist() == [2, 0, 1, 0, 1, 2]
    assert statistics.thirds(np.full(4, 3.0)).tolist() == [0, 0, 0, 0]
    assert statistics.thirds(np.zeros(0)).tolist() == []


# --- all of it


def measured(kind: str, name: str, given_masks: list[Mask], truths: list[Mask], sites: str = "nnee") -> Part:
    """A part of four images."""
    samples = [Sample(f"image {i}", site) for i, site in enumerate(sites)]
    part = Part(kind, name, "canonical")
    triples = (
        (one, soft(mask)[None], truth[None]) for one, mask, truth in zip(samples, given_masks, truths, strict=True)
    )
    return measure_all(part, ("lesion",), triples)


TRUTHS = [SQUARE, BESIDE, SQUARE, NOTHING]


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    return [
        measured("teacher", "north", [SQUARE, NOTHING, BESIDE, NOTHING], TRUTHS),  # Dice 100, 0, 50
        measured("student", "student", [SQUARE, BESIDE, BESIDE, SQUARE], TRUTHS),  # Dice 100, 100, 50
    ]


def test_the_summary_says_what_was_worked_out_by_hand(parts: list[Part]) -> None:
    (block,) = summarise(parts, np.random.default_rng(0), 200)["grids"]
    assert (block["images"], block["lesion_images"], block["groups"], block["size"]) == (4, 3, 4, [5, 8])
    teacher, student = block["predictors"]
    assert teacher["measures"]["dice"]["mean"] == pytest.approx(50.0)
    assert student["measures"]["dice"]["mean"] == pytest.approx(250 / 3)
    assert student["measures"]["dice"]["n"] == 3  # the image without a lesion is told apart
    assert (teacher["missed"], student["missed"]) == (1, 0)
    assert teacher["measures"]["hd95_px"]["mean"] == pytest.approx((0 + math.hypot(5, 8) + 1) / 3, abs=1e-5)
    assert (teacher["worst_site"], student["worst_site"]) == ("e", "e")
    assert {one["site"]: one["mean"] for one in teacher["sites"]} == {"n": 50.0, "e": 50.0}
    assert teacher["without_lesion"]["left_empty"] == 1
    assert student["without_lesion"] == {
        "images": 1,
        "left_empty": 0,
        "false_positive_px": {"mean": 4.0, "std": 0.0, "n": 1},
    }
    (test,) = block["comparisons"]
    assert (test["wins"], test["ties"], test["losses"]) == (1, 2, 0)
    assert test["mean_difference"]["mean"] == pytest.approx(100 / 3, abs=1e-5)
    assert test["p_holm"] == test["p"] == 1.0
    json.dumps(block, allow_nan=False)


def test_the_table_has_a_line_an_image_and_leaves_the_undefined_empty(parts: list[Part]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(parts))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 8
    assert (rows[1]["predictor"], rows[1]["dice"], rows[1]["truth_px"]) == ("north", "0", "4")
    assert float(rows[1]["hd95_px"]) == pytest.approx(math.hypot(5, 8), rel=1e-5)
    assert (rows[3]["recall"], rows[3]["hd95_px"], rows[3]["dice"]) == ("", "", "100")
    assert {name for name in MEASURES if not rows[0][name]} == set()


def test_a_truth_without_any_lesion_gives_a_summary_without_numbers_of_lesions() -> None:
    part = measured("ensemble", "ensemble", [SQUARE] * 4, [NOTHING] * 4)
    (block,) = summarise([part], np.random.default_rng(0), 50)["grids"]
    assert block["predictors"][0]["measures"]["dice"] == {"mean": None, "std": None, "n": 0, "low": None, "high": None}
    assert block["predictors"][0]["without_lesion"]["false_positive_px"]["mean"] == 4.0


def test_a_soft_mask_is_brought_to_the_size_of_its_truth_and_stays_soft() -> None:
    assert np.array_equal(resized(np.full((3, 4), 77, np.uint8), (9, 5)), np.full((9, 5), 77))
    ramp = resized(np.array([[0, 255]], np.uint8), (1, 8))[0]
    assert (np.diff(ramp.astype(int)) >= 0).all()
    assert len(set(ramp.tolist())) > 2


# --- folders


def save(folder: Path, **pictures: npt.NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def evaluated(tmp_path: Path, *options: str) -> Result:
    """Run the command; all but options are paths below ``tmp_path``."""
    return CliRunner().invoke(
        app, ["evaluate", *(one if one.startswith("-") else str(tmp_path / one) for one in options)]
    )


def test_two_folders_are_compared_by_name_and_all_that_does_not_match_is_named(tmp_path: Path) -> None:
    big = SQUARE.repeat(4, 0).repeat(4, 1)
    save(tmp_path / "predicted", a=soft(SQUARE), b=soft(NOTHING), stranger=soft(SQUARE))
    save(tmp_path / "truth", a=soft(big), b=soft(big), lost=soft(big))
    (tmp_path / "groups.csv").write_text("path,group\nsome/where/a.png,1\nb.jpg,1\n")
    done = evaluated(tmp_path, "predicted", "truth", "--out", "out", "--groups", "groups.csv")
    assert done.exit_code == 0, done.exception
    told = " ".join(done.output.split())
    assert "without a true mask, left out: stranger" in told
    assert "without a prediction, left out and not counted as missed: lost" in told
    held = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert held["unmatched"] == {"predictions": ["stranger"], "truth": ["lost"]}
    (block,) = held["grids"]
    assert (block["images"], block["groups"], block["predictors"][0]["missed"]) == (2, 1, 1)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "evaluation.csv").read_text())))
    assert [(row["image"], row["height"], row["width"], row["group"]) for row in rows] == [
        ("a", "20", "32", "1"),
        ("b", "20", "32", "1"),
    ]
    assert float(rows[0]["dice"]) > 90.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("predicted",), "give the folder of true masks as well"),
        (("predicted", "other"), "none match"),
        (("black", "truth"), "hold only 0 and 1"),
        (("predicted", "black"), "above 127"),
        (("predicted", "missing"), "no such folder"),
        (("predicted", "truth", "--groups", "truth/a.png"), "cannot be read as a table"),
    ],
)
def test_folders_that_cannot_be_compared_are_refused_in_words(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    save(tmp_path / "predicted", a=soft(SQUARE))
    save(tmp_path / "truth", a=soft(SQUARE))
    save(tmp_path / "other", z=soft(SQUARE))
    save(tmp_path / "black", a=SQUARE.astype(np.uint8))
    failed = evaluated(tmp_path, *options).exception
    assert isinstance(failed, DataError | SettingsError)
    assert told in str(failed)


def test_masks_beside_their_images_are_found_and_joined(tmp_path: Path) -> None:
    image = np.full((5, 8), 200, np.uint8)
    save(
        tmp_path / "benign", **{"benign (1)": image, "benign (1)_mask": soft(SQUARE), "benign (1)_mask_1": soft(BESIDE)}
    )
    found = folders.truths_of_folder(tmp_path)
    assert list(found) == ["benign (1)"]
    assert np.array_equal(found["benign (1)"](), SQUARE | BESIDE)


def test_masks_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "one", a=soft(SQUARE))
    save(tmp_path / "two", a=soft(SQUARE))
    with pytest.raises(DataError, match="more than one sub-folder"):
        folders.truths_of_folder(tmp_path)


def test_cases_with_a_mask_are_truths_by_the_name_of_their_file() -> None:
    def picture() -> Image.Image:
        return Image.new("L", (8, 5))

    cases = [Case("there/a.png", picture, lambda: SQUARE), Case("there/b.png", picture)]
    found = folders.truths_of_cases(cases)
    assert list(found) == ["a"]
    assert np.array_equal(found["a"](), SQUARE)
