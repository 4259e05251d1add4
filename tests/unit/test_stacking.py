"""A stack in a study: fitted on the coordinator's labelled images, kept, and applied where its sites answered."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consilium.common.errors import StudyError
from consilium.common.study import FusionSettings
from consilium.server import stacking
from consilium.server.consensus import fuse
from consilium.server.fusion import stack
from consilium.server.fusion.stack import Stack
from consilium.server.inquiry import Letter
from consilium.server.stacking import Answer, Stacking
from tests.federation_in_memory import HOSTILE, FederationInMemory, abstaining, honest, mask_of
from tests.unit.test_collect import CHUNK, COUNT, SHAPE, SITES, SIZE, Case

LABELLED = 5  # the second chunk of four holds one labelled image, and three others
STACK = {"method": "stack"}
HALF = np.zeros(SHAPE, np.uint8)
HALF[:, :, : SIZE // 2] = 1


def a_truth(count: int = LABELLED, labels: int = 1) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2, (count, labels, SIZE, SIZE), np.uint8)


def study(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: object) -> Case:
    folder.mkdir(exist_ok=True)
    return Case(folder, monkeypatch, **{"truth": a_truth(), "fusion": STACK} | more)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return study(tmp_path, monkeypatch)


def ids_of(case: Case) -> list[str]:
    return [entry.id for entry in case.catalogue.manifest.images]


def masks_of(case: Case, site: str) -> np.ndarray:
    return np.stack([mask_of(site, name, case.shape) for name in ids_of(case)])


def stacked(case: Case, *sites: str, images: slice | list[int] = slice(LABELLED)) -> np.ndarray:
    """The masks of a stack that is fitted by hand on some of the labelled images, of one label."""
    held = {site: masks_of(case, site) for site in sites}
    learned = stack.fit({site: one[images] for site, one in held.items()}, a_truth()[images], 256.0)
    return stack.apply(learned, held)


def kept(case: Case) -> str:
    return case.ledger.results(stacking.KEPT)[""]


def test_the_stack_knows_whom_to_believe_where_the_mean_sees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """East is right, west says the opposite, north always 100: the mean is (255 + 0 + 100) / 3 = 118 everywhere."""
    case = study(tmp_path, monkeypatch, truth=np.stack([HALF] * LABELLED))
    case.federation.masks = {
        "east": HALF * np.uint8(255),
        "west": (1 - HALF) * np.uint8(255),
        "north": np.full(SHAPE, 100, np.uint8),
    }
    case.collect()
    assert ((case.masks.read() >= 128) == (HALF > 0)).all()
    mean = fuse({site: mask[None] for site, mask in case.federation.masks.items()}, FusionSettings()).masks
    assert (mean == 118).all()


def test_it_is_fitted_on_the_labelled_images_and_applied_to_all_others(case: Case) -> None:
    case.collect()
    assert (case.masks.read() == stacked(case, *SITES)).all()
    [card] = json.loads(kept(case))
    assert (card["sites"], card["images"]) == (sorted(SITES), LABELLED)
    assert not case.ledger.images_by_mean()
    assert stacking.facts(case.study, case.ledger) == {
        "labels": {"lesion": {"images": LABELLED, "sites": sorted(SITES)}},
        "by_mean": 0,
    }
    assert case.events()[""] == "the stack of lesion is fitted on 5 labelled images and the masks of east, north, west"


def test_labelled_images_are_asked_for_first_and_nothing_is_asked_twice(case: Case) -> None:
    case.collect()
    for site in SITES:
        asked = [name for one, name in case.federation.asked if one == site]
        assert asked == ids_of(case)


ORDERS: dict[str, Callable[[list[Letter]], list[Letter]]] = {
    "backwards": lambda letters: letters[::-1],
    "the labelled images last": lambda letters: letters[6:] + letters[:6][::-1],  # two chunks, three sites
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_answers_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    def shuffle(federation: FederationInMemory) -> None:
        federation.letters = ORDERS[order](federation.letters)

    straight = study(tmp_path / "a", monkeypatch)
    straight.collect()
    other = study(tmp_path / "b", monkeypatch)
    other.federation.before_receive = shuffle
    other.collect()
    assert (other.masks.read() == straight.masks.read()).all()
    assert kept(other) == kept(straight)


class Killed(BaseException):
    """What no code catches."""


def killed_in_the_middle_of_the_labelled_images(case: Case, patch: pytest.MonkeyPatch) -> None:
    original = case.ledger.answered
    times = iter(range(100))

    def answered(*arguments: object) -> None:
        original(*arguments)
        if next(times) == 2:
            raise Killed

    patch.setattr(case.ledger, "answered", answered)


def killed_before_the_stack_is_kept(case: Case, patch: pytest.MonkeyPatch) -> None:
    original = case.ledger.keep_result

    def keep(site: str, kind: str, value: str) -> None:
        if kind == stacking.KEPT:
            raise Killed
        original(site, kind, value)

    patch.setattr(case.ledger, "keep_result", keep)


def killed_before_anything_is_fused(_case: Case, patch: pytest.MonkeyPatch) -> None:
    def finish(*_: object) -> None:
        raise Killed

    patch.setattr("consilium.server.stacking.StackPanel.finish", finish)


def killed_after_the_first_chunk(case: Case, patch: pytest.MonkeyPatch) -> None:
    original = case.ledger.chunk_finished

    def finished(*arguments: object) -> None:
        original(*arguments)
        raise Killed

    patch.setattr(case.ledger, "chunk_finished", finished)


@pytest.mark.parametrize(
    "killed",
    [
        killed_in_the_middle_of_the_labelled_images,
        killed_before_the_stack_is_kept,
        killed_before_anything_is_fused,
        killed_after_the_first_chunk,
    ],
)
def test_killed_at_any_moment_it_goes_on_with_the_same_bytes_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: Callable[[Case, pytest.MonkeyPatch], None]
) -> None:
    whole = study(tmp_path / "whole", monkeypatch)
    whole.collect()
    case = study(tmp_path / "killed", monkeypatch)
    with monkeypatch.context() as patch:
        killed(case, patch)
        with pytest.raises(Killed):
            case.collect()
    before = case.ledger.results(stacking.KEPT).get("", kept(whole))
    case.collect()
    assert (case.masks.read() == whole.masks.read()).all()
    assert kept(case) == before == kept(whole)
    assert not case.ledger.asked_again()


def test_what_is_kept_is_not_fitted_again_and_needs_no_truth(case: Case) -> None:
    def stop(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        case.collect(on_chunk=lambda done, _: stop() if done else None)
    before, case.truth = kept(case), None
    case.collect()
    assert kept(case) == before
    assert (case.masks.read() == stacked(case, *SITES)).all()


# --- sites that are missing


def mean_without(case: Case, site: str, image: int) -> np.ndarray:
    held = {one: masks_of(case, one)[[image]] for one in SITES if one != site}
    return fuse(held, FusionSettings(gate="majority")).masks[0]


def test_where_a_site_abstains_the_gated_mean_of_the_others_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study(tmp_path, monkeypatch, fusion=STACK | {"gate": "majority"})
    case.federation.behaviours["west"] = abstaining(ids_of(case)[6])
    case.collect()
    others = [i for i in range(COUNT) if i != 6]
    assert (case.masks.read()[others] == stacked(case, *SITES)[others]).all()
    assert (case.masks.read()[6] == mean_without(case, "west", 6)).all()
    assert case.ledger.images_by_mean() == {6}
    assert not case.ledger.images_without_mask()


def test_labelled_images_that_a_site_abstains_from_are_not_fitted_on(case: Case) -> None:
    case.federation.behaviours["west"] = abstaining(ids_of(case)[1])
    case.collect()
    assert json.loads(kept(case))[0]["images"] == LABELLED - 1
    assert (case.masks.read()[5:] == stacked(case, *SITES, images=[0, 2, 3, 4])[5:]).all()


def test_a_site_that_is_left_out_later_leaves_the_mean_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study(tmp_path, monkeypatch, quorum=2)
    last = set(ids_of(case)[2 * CHUNK :])
    case.federation.behaviours["west"] = lambda request, reply: (
        HOSTILE["bytes that are no mask"](request, reply) if last & set(request.ids) else honest(request, reply)
    )
    case.collect()
    assert case.ledger.images_by_mean() == {8, 9}
    assert (case.masks.read()[:8] == stacked(case, *SITES)[:8]).all()
    assert (case.masks.read()[8:] == case.expected("east", "north")[8:]).all()


def test_a_site_that_did_not_answer_the_labelled_images_is_no_part_of_the_stack_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study(tmp_path, monkeypatch, quorum=2)
    case.federation.behaviours["west"] = HOSTILE["bytes that are no mask"]
    case.collect()
    assert json.loads(kept(case))[0]["sites"] == ["east", "north"]
    assert (case.masks.read() == stacked(case, "east", "north")).all()
    assert "the stack is fitted without it" in case.events()["west"]
    assert not case.ledger.images_by_mean()


def test_masks_of_a_site_that_comes_after_the_fit_count_only_where_the_mean_stands_in() -> None:
    """One image each: the stack is east's and north's; where north abstains, the mean is east's and west's."""
    rng = np.random.default_rng(1)
    masks = {site: rng.integers(0, 256, (2, *SHAPE), np.uint8) for site in SITES}
    answers = stacking.answers_of(masks)
    fitted = stacking.fit({site: answers[site] for site in ("east", "north")}, a_truth(2), 256.0, ["lesion"])
    answers = {**answers, "north": Answer(masks["north"], (0,), np.array([True, False]))}
    mean = fuse({site: masks[site] for site in ("east", "west")}, FusionSettings())
    found = stacking.applied(fitted, mean, answers)
    assert (found.masks[0] == stack.apply(fitted[0], {one: masks[one][:1] for one in ("east", "north")})).all()
    assert (found.masks[1] == mean.masks[1]).all()
    assert found.by_mean.tolist() == [False, True]


def test_without_a_quorum_for_the_labelled_images_the_study_stops_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """North breaks the first chunk, east the second: each chunk has two answers, but only west answered both."""
    case = study(tmp_path, monkeypatch, quorum=1)
    first, second = ids_of(case)[0], ids_of(case)[CHUNK]

    def late_for(image: str) -> object:
        return lambda request, reply: None if image in request.ids else honest(request, reply)

    case.study = case.study.model_copy(
        update={"collect": case.study.collect.model_copy(update={"quorum": 2, "deadline_s": 5.0})}
    )
    case.federation.behaviours |= {"north": late_for(first), "east": late_for(second)}
    with pytest.raises(StudyError, match="1 of the sites answered every labelled image, and the quorum is 2"):
        case.collect()
    assert not case.ledger.finished_chunks()
    case.federation.behaviours = dict.fromkeys(SITES, honest)
    case.collect()
    assert (case.masks.read() == stacked(case, *SITES)).all()


def test_a_site_that_abstains_from_every_labelled_image_is_named(case: Case) -> None:
    case.federation.behaviours["west"] = abstaining(*ids_of(case)[:LABELLED])
    with pytest.raises(StudyError, match=r"on the 0 of 5 labelled images .*\. Build .*: west abstained from some"):
        case.collect()


def test_nobody_is_silent_in_a_stack_and_the_gate_still_tells_consensus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study(tmp_path, monkeypatch, fusion=STACK | {"gate": "majority"}, truth=np.stack([HALF] * LABELLED))
    case.federation.masks = {
        "west": np.zeros(SHAPE, np.uint8),
        "east": HALF * np.uint8(255),
        "north": HALF * np.uint8(200),
    }
    case.collect()
    assert not any(case.ledger.silent().values())
    assert all(opinion.consensus and opinion.seen == 2 for opinion in case.ledger.opinion().values())


def test_each_label_has_a_stack_of_the_sites_that_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"east": (0,), "north": (0, 1), "west": (1,)}
    truth = a_truth(labels=2)
    case = study(tmp_path, monkeypatch, labels=("a", "b"), known=known, truth=truth)
    case.collect()
    for label, sites in enumerate((("east", "north"), ("north", "west"))):
        held = {site: masks_of(case, site)[:, [label]] for site in sites}
        learned = stack.fit({site: one[:LABELLED] for site, one in held.items()}, truth[:, [label]], 256.0)
        assert (case.masks.read()[:, [label]] == stack.apply(learned, held)).all()
    assert [card["sites"] for card in json.loads(kept(case))] == [["east", "north"], ["north", "west"]]


# --- what is kept


def test_a_stack_is_read_back_to_the_bit() -> None:
    masks = {site: np.random.default_rng(i).integers(0, 256, (3, *SHAPE), np.uint8) for i, site in enumerate(SITES)}
    learned = stack.fit(masks, a_truth(3))
    again = Stack.from_card(json.loads(json.dumps(learned.to_card())))
    assert (again.sites, again.alpha, again.images) == (learned.sites, learned.alpha, 3)
    assert again.weights.tobytes() == learned.weights.tobytes()
    assert again.offset.tobytes() == learned.offset.tobytes()


def test_nothing_is_fused_before_it_is_fitted(case: Case) -> None:
    assert Stacking(case.study, case.ledger, a_truth()).chunks == {0, 1}
    assert Stacking(case.study, case.ledger, None).chunks == set()
