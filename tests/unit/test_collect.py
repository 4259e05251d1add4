"""Collecting from a federation that lies, stalls, replays and goes offline."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consilium.common import catalogue, planes, wire
from consilium.common.errors import ConsentError, ErrorCode, MachineError, StudyError
from consilium.common.identity.signing import make_signing_key
from consilium.common.settings import parse
from consilium.common.study import Study
from consilium.common.validation import Validation
from consilium.server.collect import Collector, Watched
from consilium.server.consensus import Panel, fuse
from consilium.server.inquiry import Inquiry, Letter
from consilium.server.ledger import Ledger
from consilium.server.run_folder import MaskFile
from consilium.server.stacking import Stacking
from tests.federation_in_memory import HOSTILE, FederationInMemory, abstaining, honest, mask_of

SIZE, COUNT, CHUNK = 32, 10, 4
SITES = ("east", "north", "west")
SHAPE = (1, SIZE, SIZE)


class Case:
    """A study of ten images and three sites in a folder."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        quorum: int = 0,
        labels: tuple[str, ...] = ("lesion",),
        known: dict[str, tuple[int, ...]] | None = None,
        fusion: dict[str, object] | None = None,
        exclusion: dict[str, object] | None = None,
        validation: dict[str, Validation] | None = None,
        truth: np.ndarray | None = None,
        **more: object,
    ) -> None:
        self.folder = folder
        self.truth = truth
        self.validation = validation or {}
        self.known = known or dict.fromkeys(SITES, (0,))
        self.shape = (len(labels), SIZE, SIZE)
        pixels = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE)).astype(np.uint8)
        roles = ["labelled"] * (0 if truth is None else len(truth)) + ["transferal"] * COUNT
        images = (catalogue.CatalogueImage(image, str(i), role=roles[i]) for i, image in enumerate(pixels))
        self.catalogue = catalogue.build(folder / "catalogue", "c", images, make_signing_key(folder / "key"))
        collect = {"chunk": CHUNK, "quorum": quorum, "deadline-s": 60.0} | {
            key.replace("_", "-"): value for key, value in more.items()
        }
        told = {"name": "s", "preset": "paper", "sites": list(SITES), "image": {"size": SIZE}, "collect": collect}
        told |= {"labels": list(labels), "exclusion": exclusion or {}}
        self.study = parse(Study, told | {"fusion": fusion or {}}, "x")
        self.ledger = Ledger.open(folder / "ledger.sqlite")
        self.masks = MaskFile(folder / "pseudo_masks.u8", COUNT, self.shape)
        self.watched = Watched(np.array([1, 5]), SITES, MaskFile(folder / "site_masks.u8", 2 * len(SITES), self.shape))
        self.federation = FederationInMemory(self.shape, dict.fromkeys(SITES, honest), known=self.known)
        monkeypatch.setattr(
            "consilium.server.collect.Inquiry",
            lambda *arguments: Inquiry(*arguments, clock=lambda: self.federation.now, sleep=self._sleep),
        )

    def _sleep(self, seconds: float) -> None:
        self.federation.now += seconds

    def collect(
        self,
        missing: list[bool] | None = None,
        on_chunk: Callable[[int, int], None] = lambda *_: None,
        on_look: Callable[[set[str]], None] = lambda _: None,
    ) -> None:
        Collector(
            study=self.study,
            catalogue=self.catalogue,
            ledger=self.ledger,
            post=self.federation,
            pseudo_masks=self.masks,
            watched=self.watched,
            missing=dict.fromkeys(SITES, missing or [False] * COUNT),
            known=self.known,
            envelope={"study": self.study.digest, "catalogue": self.catalogue.hash},
            validation=self.validation,
            stacking=Stacking(self.study, self.ledger, self.truth) if self.study.fusion.method == "stack" else None,
            on_chunk=on_chunk,
            on_look=on_look,
        ).run()

    def expected(self, *sites: str) -> np.ndarray:
        ids = [entry.id for entry in self.catalogue.manifest.images]
        total = sum(np.stack([mask_of(site, name, SHAPE) for name in ids]).astype(np.int64) for site in sites)
        return np.asarray((2 * total + len(sites) - 1) // (2 * len(sites)), np.uint8)

    def events(self) -> dict[str, str]:
        return {event.site: event.text for event in self.ledger.events()}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path, monkeypatch)


@pytest.fixture
def tolerant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path, monkeypatch, quorum=2)


def test_honest_sites_give_the_mean_of_all(case: Case) -> None:
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert case.ledger.finished_chunks() == {0: 3, 1: 3, 2: 3}
    assert {site: held[0] for site, held in case.ledger.answers().items()} == dict.fromkeys(SITES, COUNT)


def test_watched_images_are_kept_site_by_site(case: Case) -> None:
    case.collect()
    for site in SITES:
        ids = [case.catalogue.manifest.images[i].id for i in (1, 5)]
        assert (case.watched.of(site) == np.stack([mask_of(site, name, SHAPE) for name in ids])).all()


@pytest.mark.parametrize("lie", HOSTILE)
def test_a_site_that_lies_is_left_out_and_named_and_the_others_count(tolerant: Case, lie: str) -> None:
    tolerant.federation.behaviours["west"] = HOSTILE[lie]
    tolerant.collect()
    assert (tolerant.masks.read() == tolerant.expected("east", "north")).all()
    assert set(tolerant.events()) == {"west"}
    assert "jane" not in tolerant.events()["west"]


def test_without_a_quorum_the_study_stops_names_the_site_and_goes_on_later(case: Case) -> None:
    case.federation.behaviours["west"] = HOSTILE["bytes that are no mask"]
    with pytest.raises(StudyError, match=r"quorum is 3 of 3 sites(.|\n)*west: left out from here on: bad-mask"):
        case.collect()
    case.federation.behaviours["west"] = honest
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()


def test_what_was_answered_is_not_asked_again_after_a_restart(case: Case) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.collect(on_chunk=stop)
    finished = case.ledger.finished_chunks()
    case.federation.asked.clear()
    case.collect()
    again = {name for _, name in case.federation.asked}
    kept = {entry.id for n in finished for entry in case.catalogue.manifest.images[n * CHUNK : (n + 1) * CHUNK]}
    assert len(finished) == 2
    assert not again & kept
    assert (case.masks.read() == case.expected(*SITES)).all()


def test_a_fault_that_passes_costs_nothing(case: Case) -> None:
    faults = [ErrorCode.SITE_UNREACHABLE, wire.error_record(ErrorCode.SITE_FAILED)]
    case.federation.behaviours["west"] = lambda request, reply: faults.pop() if faults else honest(request, reply)
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert not case.events()


def test_answers_in_another_order_twice_or_under_invented_tickets_change_nothing(case: Case) -> None:
    def shuffle(federation: FederationInMemory) -> None:
        twice = federation.letters[::-1] * 2
        federation.letters = [Letter("invented", ErrorCode.SITE_FAILED), *twice]

    case.federation.before_receive = shuffle
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()


def test_an_answer_after_the_deadline_is_not_used(tolerant: Case) -> None:
    late: list[Letter] = []

    def hold_back(federation: FederationInMemory) -> None:
        if federation.now < 100:
            mine = [letter for letter in federation.letters if _site(letter) == "west"]
            late.extend(mine)
            federation.letters = [letter for letter in federation.letters if letter not in mine]
        else:
            federation.letters += late

    tolerant.federation.before_receive = hold_back
    tolerant.collect()
    assert (tolerant.masks.read() == tolerant.expected("east", "north")).all()
    assert "too-late" in tolerant.events()["west"]


def _site(letter: Letter) -> str:
    return "" if isinstance(letter.content, ErrorCode) else str(letter.content.config_records[wire.RECORD]["site"])


def test_a_site_gets_the_pixels_it_lacks_and_no_others(case: Case) -> None:
    lacking = [i in (0, 5, 9) for i in range(COUNT)]
    sent: dict[str, np.ndarray] = {}

    def look(request: wire.PredictRequest, reply: wire.PredictReply) -> object:
        for name, pixels in zip(request.ids, request.pixels, strict=False):
            sent[name] = planes.decode(pixels, SHAPE)
        return honest(request, reply)

    case.federation.behaviours["west"] = look
    case.collect(lacking)
    expected = {case.catalogue.manifest.images[i].id: case.catalogue.pixels[i] for i in (0, 5, 9)}
    assert sent.keys() == expected.keys()
    assert all((sent[name] == expected[name]).all() for name in sent)
    assert (case.masks.read() == case.expected(*SITES)).all()  # whatever order the ids travelled in


def test_a_full_disk_is_told_and_what_was_finished_stays(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(MachineError, match="No space left on device"):
            case.collect()
    assert not case.ledger.finished_chunks()
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()


# ---- partial labels

PARTIAL = {"east": (0,), "north": (0, 1), "west": (1,)}


def mean_of(case: Case, label: int, *sites: str) -> np.ndarray:
    ids = [entry.id for entry in case.catalogue.manifest.images]
    total = sum(np.stack([mask_of(site, name, case.shape)[label] for name in ids]).astype(np.int64) for site in sites)
    return np.asarray((2 * total + len(sites) - 1) // (2 * len(sites)), np.uint8)


def test_each_label_is_the_mean_of_the_sites_that_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, labels=("a", "b"), known=PARTIAL)
    case.collect()
    masks = case.masks.read()
    assert (masks[:, 0] == mean_of(case, 0, "east", "north")).all()
    assert (masks[:, 1] == mean_of(case, 1, "north", "west")).all()
    assert case.ledger.finished_chunks() == {0: 3, 1: 3, 2: 3}
    kept, ids = case.watched.of("west"), [case.catalogue.manifest.images[i].id for i in (1, 5)]
    assert not kept[:, 0].any()
    assert (kept[:, 1] == np.stack([mask_of("west", name, case.shape)[1] for name in ids])).all()


def test_masks_of_labels_a_site_does_not_know_are_bad_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, labels=("a", "b"), known=PARTIAL, quorum=1)
    case.federation.known = PARTIAL | {"west": (0, 1)}
    case.collect()
    assert set(case.events()) == {"west"}
    assert "bad-mask" in case.events()["west"]
    assert (case.masks.read()[:, 1] == mean_of(case, 1, "north")).all()


def test_the_quorum_counts_for_each_label_among_those_that_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quorum of three where two know each label asks for both: without west, one is left for b."""
    case = Case(tmp_path, monkeypatch, labels=("a", "b"), known=PARTIAL, quorum=3)
    case.federation.behaviours["west"] = HOSTILE["bytes that are no mask"]
    with pytest.raises(StudyError, match=r"1 of the sites that know b .*, and the quorum is 2 of 3 sites"):
        case.collect()
    case.federation.behaviours["west"] = honest
    case.collect()
    assert (case.masks.read()[:, 1] == mean_of(case, 1, "north", "west")).all()


# ---- abstentions


def test_an_image_that_a_site_abstains_from_is_the_mean_of_the_others(case: Case) -> None:
    """West abstains from the third image, east and west from the sixth; both still count for the quorum of three."""
    ids = [entry.id for entry in case.catalogue.manifest.images]
    case.federation.behaviours |= {"west": abstaining(ids[2], ids[5]), "east": abstaining(ids[5])}
    case.collect()
    masks = case.masks.read()
    others = [i for i in range(COUNT) if i not in (2, 5)]
    assert (masks[others] == case.expected(*SITES)[others]).all()
    assert (masks[2] == case.expected("east", "north")[2]).all()
    assert (masks[5] == case.expected("north")[5]).all()
    assert case.ledger.finished_chunks() == {0: 3, 1: 3, 2: 3}
    assert (case.ledger.abstentions("west"), case.ledger.abstentions("north")) == ({2, 5}, set())
    assert {site: held[0] for site, held in case.ledger.answers().items()} == {"east": 9, "north": 10, "west": 8}
    assert not case.events()


def test_an_image_that_nobody_answers_has_no_pseudo_mask_and_is_named(case: Case) -> None:
    ids = [entry.id for entry in case.catalogue.manifest.images]
    case.federation.behaviours = {site: abstaining(ids[4], ids[8], ids[9]) for site in SITES}
    case.collect()
    assert case.ledger.images_without_mask() == {4, 8, 9}
    assert not case.masks.read()[[4, 8, 9]].any()
    rest = [i for i in range(COUNT) if i not in (4, 8, 9)]
    assert (case.masks.read()[rest] == case.expected(*SITES)[rest]).all()


def test_an_image_with_fewer_masks_than_a_quorum_that_was_set_has_no_pseudo_mask(tolerant: Case) -> None:
    """Two are asked for: west alone answers the third image, east and west the sixth."""
    ids = [entry.id for entry in tolerant.catalogue.manifest.images]
    tolerant.federation.behaviours |= {"east": abstaining(ids[2]), "north": abstaining(ids[2], ids[5])}
    tolerant.collect()
    assert tolerant.ledger.images_without_mask() == {2}
    assert (tolerant.masks.read()[5] == tolerant.expected("east", "west")[5]).all()


@pytest.mark.parametrize("method", ["trimmed-mean", "median"])
def test_every_fusion_works_image_by_image_and_says_where_it_had_too_few_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """North abstains from the third image: the trimmed mean of two is none, their median is their mean, rounded down."""
    case = Case(tmp_path, monkeypatch, fusion={"method": method})
    ids = [entry.id for entry in case.catalogue.manifest.images]
    case.federation.behaviours["north"] = abstaining(ids[2])
    case.collect()
    masks, everyone = case.masks.read(), [mask_of(site, ids[1], SHAPE) for site in SITES]
    assert (masks[1] == np.median(everyone, axis=0)).all()  # of three, the trimmed mean is the median
    two = [mask_of(site, ids[2], SHAPE).astype(np.int64) for site in ("east", "west")]
    assert case.ledger.images_without_mask() == ({2} if method == "trimmed-mean" else set())
    assert (masks[2] == (0 if method == "trimmed-mean" else sum(two) // 2)).all()


def test_agreement_is_over_images_that_both_answered(case: Case) -> None:
    ids = [entry.id for entry in case.catalogue.manifest.images]
    case.federation.behaviours |= {
        "west": abstaining(*ids[:6]),
        "east": abstaining(ids[0]),
        "north": abstaining(ids[1]),
    }
    case.collect()
    assert {site: held.n for site, held in case.ledger.agreement().items()} == {"east": 8, "north": 8, "west": 4}


def test_a_site_that_ends_its_consent_is_not_an_error_of_the_run(tolerant: Case) -> None:
    tolerant.federation.behaviours["west"] = HOSTILE["an error code"]
    tolerant.collect()
    assert tolerant.events() == {"west": "takes no part: not consented"}
    assert tolerant.ledger.without_consent() == {"west"}


def test_a_study_that_lacks_nothing_but_consent_waits_for_it_and_goes_on(case: Case) -> None:
    case.federation.behaviours["west"] = HOSTILE["an error code"]
    with pytest.raises(ConsentError, match=r"waits for consent: west(.|\n)*quorum is 3"):
        case.collect()
    case.federation.behaviours |= {"west": honest, "east": HOSTILE["bytes that are no mask"]}
    with pytest.raises(StudyError, match="east: left out") as other:
        case.collect()
    assert not isinstance(other.value, ConsentError)
    case.federation.behaviours["east"] = honest
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()


CONSENSUS = {"gate": "majority", "weights": "validation", "outliers": "silent"}
VALIDATION = {"east": Validation(80.0, 30), "north": Validation(55.0, 30, 1.0, 0, 2)}


def test_a_chunk_is_forgotten_as_soon_as_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, fusion=CONSENSUS, validation=VALIDATION)
    left: list[int] = []

    def count(done: int, _total: int) -> None:
        if done:  # the panels of the chunks that are still in flight, and of the one that is being finished
            left.append(sum(type(held) is Panel for held in gc.get_objects()))

    gc.collect()
    gc.disable()  # memory must not wait for it
    try:
        case.collect(on_chunk=count)
    finally:
        gc.enable()
    assert left == [3, 2, 1]


@pytest.mark.parametrize("stop_at", [0, CHUNK, 2 * CHUNK])
def test_the_collector_fuses_as_masks_at_hand_are_fused_whatever_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    alpha = 512 * 384 * 384 / SIZE**2  # half of the pixels: of random masks some see a target, and some do not
    case = Case(tmp_path, monkeypatch, fusion=CONSENSUS, exclusion={"alpha": alpha}, validation=VALIDATION)

    def stop(done: int, _total: int) -> None:
        if stop_at and done == stop_at:
            raise KeyboardInterrupt

    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            case.collect(on_chunk=stop)
    case.collect()
    ids = [entry.id for entry in case.catalogue.manifest.images]
    masks = {site: np.stack([mask_of(site, name, SHAPE) for name in ids]) for site in SITES}
    wanted = fuse(masks, case.study.fusion, VALIDATION, alpha)
    assert 0 < wanted.consensus.sum() < COUNT
    assert (case.masks.read() == wanted.masks).all()
    opinions = case.ledger.opinion()
    assert [opinions[i].seen for i in range(COUNT)] == wanted.seen[:, 0].tolist()
    assert [opinions[i].consensus for i in range(COUNT)] == wanted.consensus.tolist()
    assert [opinions[i].agreement for i in range(COUNT)] == wanted.agreement.tolist()
    assert case.ledger.silent() == {site: int(images.sum()) for site, images in wanted.silent.items()}
    assert case.ledger.silent()["north"] == 0  # more false alarms than misses: it is never silent
