"""A site answers what it consented to, and nothing else; the same over its gateway as in this process."""

import hashlib
import json
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.clients import audit
from consilium.clients.gateway import GatewayClient, serve
from consilium.clients.image_store import ImageStore
from consilium.clients.port import SitePort
from consilium.clients.settings import SiteHome, SiteSettings
from consilium.clients.site import Site, temperature_of
from consilium.clients.teachers import geometry
from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import metrics, planes, soft_mask, wire
from consilium.common.catalogue import Catalogue, CatalogueImage, build, image_id
from consilium.common.datasets import labelled
from consilium.common.errors import PUBLIC_TEXT, DataError, ErrorCode, StateError, WireError
from consilium.common.identity import signing
from consilium.common.networks.build import build as build_network
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import dump_weights, load_student, student_card
from consilium.common.settings import parse, to_toml
from consilium.common.study import Study
from consilium.common.temperature import LOGITS_CLIP, temper
from consilium.common.validation import Validation, from_card

SIZE = 32
SECRET = "/srv/patients/jane-doe.dcm"  # noqa: S105 - what must never get out
NETWORK = {"name": "unet", "width": 4}


def echo(images: torch.Tensor) -> torch.Tensor:
    """A teacher that sees a lesion wherever it is bright: its soft mask is the image itself."""
    return images


def make_home(folder: Path, **policy: object) -> SiteHome:
    values = {
        "name": "north",
        "policy": {"auto-approve": True, "min-images": 1, "sealed": False} | policy,
        "training": {"epochs": 1, "threads": 1, "device": "cpu"},
        "teacher": {"size": SIZE},
        "data": {"size": SIZE},
    }
    return SiteHome(parse(SiteSettings, values, "test"), folder)


def make_site(folder: Path, teacher: Callable[[torch.Tensor], torch.Tensor] = echo, **policy: object) -> Site:
    return Site(make_home(folder, **policy), ModuleTeacher(teacher))


class Coordinator:
    """A study of five random images, signed, and the requests an honest coordinator makes."""

    def __init__(self, folder: Path, **study: object) -> None:
        self.key = signing.make_signing_key(folder / "signing.pem")
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (5, 1, SIZE, SIZE), np.uint8)
        self.catalogue: Catalogue = build(
            folder / "catalogue", "shared", [CatalogueImage(image, "x") for image in images], self.key
        )
        self.study = parse(
            Study,
            {
                "name": "trial",
                "preset": "paper",
                "sites": ["north"],
                "image": {"size": SIZE},
                "student": {"network": NETWORK},
                "fine-tune": {"sites": ["north"], "training": {"epochs": 1, "batch": 2, "device": "cpu"}},
            }
            | study,
            "test",
        )
        self.envelope = {"study": self.study.digest, "catalogue": self.catalogue.hash}
        self.ids = [entry.id for entry in self.catalogue.manifest.images]

    def describe(self, **changes: object) -> wire.DescribeRequest:
        fields: dict[str, object] = {
            "settings": to_toml(self.study),
            "manifest": self.catalogue.manifest_bytes,
            "signature": self.catalogue.signature,
            "signer": self.catalogue.signer,
            "sealing_key": b"",
            "sealing_signature": b"",
        }
        return wire.DescribeRequest.model_validate(self.envelope | fields | changes)

    def pixels(self, *numbers: int) -> list[bytes]:
        return [planes.encode(self.catalogue.pixels[i]) for i in numbers]

    def predict(self, *numbers: int, **changes: object) -> wire.PredictRequest:
        fields: dict[str, object] = {"ids": [self.ids[i] for i in numbers], "pixels": self.pixels(*numbers)}
        return wire.PredictRequest.model_validate(self.envelope | fields | changes)

    def student(self) -> tuple[str, bytes]:
        module = build_network(NetworkSettings.model_validate(NETWORK), 1, 1, seed=7)
        card = student_card(NetworkSettings.model_validate(NETWORK), 1, 1, SIZE)
        return json.dumps(card), dump_weights(module)

    def evaluate(self, **changes: object) -> wire.EvaluateRequest:
        card, weights = self.student()
        return wire.EvaluateRequest.model_validate(self.envelope | {"card": card, "weights": weights} | changes)

    def fine_tune(self, **changes: object) -> wire.FineTuneRequest:
        card, weights = self.student()
        return wire.FineTuneRequest.model_validate(self.envelope | {"card": card, "weights": weights} | changes)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


@pytest.fixture(params=["direct", "gateway"])
def reach(request: pytest.FixtureRequest) -> Iterator[Callable[[Site], SitePort]]:
    """Reach a site in this process, or over its gateway: everything below holds for both."""
    if request.param == "direct":
        yield lambda site: site
        return
    folder = Path(tempfile.mkdtemp(prefix="consilium-"))  # a Unix socket's path is short
    ends: list[Callable[[], None]] = []

    def over_the_gateway(site: Site) -> SitePort:
        gateway = serve(site, f"unix:{folder}/{len(ends)}.sock")
        client = GatewayClient(gateway.address, timeout_s=60)
        ends.extend((lambda: gateway.stop(0), client.close))
        return client

    yield over_the_gateway
    for end in reversed(ends):
        end()
    shutil.rmtree(folder)


Reach = Callable[[Site], SitePort]


def label_data(home: SiteHome) -> None:
    """Four train and three test images; the lesion is the bright half, and in the last test image dark."""
    image = np.zeros((1, SIZE, SIZE), np.uint8)
    image[:, :, : SIZE // 2] = 255
    masks = (image // 255)[None].repeat(4, 0)
    labelled.pack(home.train_set, labelled.Labelled(image[None].repeat(4, 0), masks, ("",) * 4, ("",) * 4))
    test = np.stack([image, image, 255 - image])
    labelled.pack(home.test_set, labelled.Labelled(test, masks[:3], ("",) * 3, ("",) * 3))


def test_a_described_study_tells_which_images_are_missing_and_their_masks_come_in_the_order_asked(
    tmp_path: Path, coordinator: Coordinator, reach: Reach
) -> None:
    site = reach(make_site(tmp_path))
    described = site.describe(coordinator.describe())
    assert (described.site, described.output, described.labels) == ("north", "soft", ["lesion"])
    assert wire.from_bits(described.missing, 5) == [True] * 5
    reply = site.predict(coordinator.predict(3, 0, 4))
    assert reply.ids == [coordinator.ids[i] for i in (3, 0, 4)]
    for number, mask in zip((3, 0, 4), reply.masks, strict=True):
        np.testing.assert_array_equal(soft_mask.decode(mask, (1, SIZE, SIZE)), coordinator.catalogue.pixels[number])
    missing = site.describe(coordinator.describe()).missing
    assert wire.from_bits(missing, 5) == [False, True, True, False, False]


def test_an_image_travels_once_and_the_same_request_gives_the_same_masks(
    tmp_path: Path, coordinator: Coordinator, reach: Reach
) -> None:
    site = reach(make_site(tmp_path))
    site.describe(coordinator.describe())
    first = site.predict(coordinator.predict(0, 1))
    assert site.predict(coordinator.predict(0, 1)).masks == first.masks
    assert site.predict(coordinator.predict(1, 0, pixels=[])).masks == first.masks[::-1]
    mixed = site.predict(coordinator.predict(2, 0, pixels=coordinator.pixels(2)))
    assert mixed.masks[1] == first.masks[0]


def test_a_restarted_site_knows_its_studies_and_images(tmp_path: Path, coordinator: Coordinator, reach: Reach) -> None:
    before = make_site(tmp_path)
    before.describe(coordinator.describe())
    masks = before.predict(coordinator.predict(0, 1)).masks
    after = reach(make_site(tmp_path))
    assert after.predict(coordinator.predict(0, 1, pixels=[])).masks == masks


def test_a_restarted_site_that_lost_its_trust_in_the_signer_refuses(tmp_path: Path, coordinator: Coordinator) -> None:
    before = make_site(tmp_path)
    before.describe(coordinator.describe())
    before.predict(coordinator.predict(0))
    with pytest.raises(WireError) as refusal:
        make_site(tmp_path, **{"trusted-signers": ["ab" * 32]}).predict(coordinator.predict(0))
    assert refusal.value.code == ErrorCode.REFUSED_BY_POLICY


def changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def other_pixels() -> bytes:
    return planes.encode(np.zeros((1, SIZE, SIZE), np.uint8))


Lie = tuple[dict[str, object], Callable[[Coordinator], wire.Request], ErrorCode]

REFUSED: dict[str, Lie] = {
    "an image that is not in the catalogue": (
        {}, lambda c: c.predict(0, ids=["0" * 64], pixels=[]), ErrorCode.UNKNOWN_IMAGE,
    ),
    "an image whose pixels never came": ({}, lambda c: c.predict(0, 1, pixels=c.pixels(0)), ErrorCode.UNKNOWN_IMAGE),
    "other pixels under a known id": ({}, lambda c: c.predict(0, pixels=[other_pixels()]), ErrorCode.BAD_IMAGE),
    "pixels that are no image": ({}, lambda c: c.predict(0, pixels=[b"nothing"]), ErrorCode.BAD_IMAGE),
    "pixels that expand without end": (
        {}, lambda c: c.predict(0, pixels=[planes.encode(np.zeros((1, 2048, 2048), np.uint8))]), ErrorCode.BAD_IMAGE,
    ),
    "an image asked for twice": ({}, lambda c: c.predict(0, 0), ErrorCode.BAD_MESSAGE),
    "more pixels than ids": ({}, lambda c: c.predict(0, pixels=c.pixels(0, 1)), ErrorCode.BAD_MESSAGE),
    "another study": ({}, lambda c: c.predict(0, study="0" * 64), ErrorCode.UNKNOWN_STUDY),
    "another catalogue": ({}, lambda c: c.predict(0, catalogue="0" * 64), ErrorCode.UNKNOWN_STUDY),
    "a forged signature": ({}, lambda c: c.describe(signature=changed(c.catalogue.signature)), ErrorCode.BAD_SIGNATURE),
    "a list changed after it was signed": (
        {}, lambda c: c.describe(manifest=changed(c.catalogue.manifest_bytes)), ErrorCode.BAD_SIGNATURE,
    ),
    "a signature of another key": ({}, lambda c: c.describe(signer=b"\1" * 32), ErrorCode.BAD_SIGNATURE),
    "a signer nobody trusts": (
        {"auto-approve": False, "trusted-signers": ["ab" * 32]}, lambda c: c.describe(), ErrorCode.REFUSED_BY_POLICY,
    ),
    "a study nobody consented to": ({"auto-approve": False}, lambda c: c.describe(), ErrorCode.NOT_CONSENTED),
    "a study of a name that may not be shown": (
        {"studies": ["another"]}, lambda c: c.describe(), ErrorCode.REFUSED_BY_POLICY,
    ),
    "Dice over too few images": ({"min-images": 4}, lambda c: c.evaluate(), ErrorCode.REFUSED_BY_POLICY),
    "Dice of a fine-tuned student over too few images": (
        {"min-images": 4}, lambda c: c.fine_tune(), ErrorCode.REFUSED_BY_POLICY,
    ),
    "a catalogue other than the envelope's": ({}, lambda c: c.describe(catalogue="0" * 64), ErrorCode.BAD_MESSAGE),
    "settings other than the envelope's": (
        {}, lambda c: c.describe(settings=to_toml(c.study.model_copy(update={"seed": 9}))), ErrorCode.BAD_MESSAGE,
    ),
    "settings that are none": ({}, lambda c: c.describe(settings="sites = 3"), ErrorCode.BAD_MESSAGE),
    "a catalogue beyond the policy": ({"max-images": 4}, lambda c: c.describe(), ErrorCode.REFUSED_BY_POLICY),
    "more masks than the budget": ({"mask-budget": 2}, lambda c: c.predict(0, 1, 2), ErrorCode.REFUSED_BY_POLICY),
    "predict where it is not allowed": (
        {"actions": ["evaluate"]}, lambda c: c.predict(0), ErrorCode.REFUSED_BY_POLICY,
    ),
    "evaluate where it is not allowed": (
        {"actions": ["predict"]}, lambda c: c.evaluate(), ErrorCode.REFUSED_BY_POLICY,
    ),
    "fine-tune where it is not allowed": (
        {"actions": ["predict"]}, lambda c: c.fine_tune(), ErrorCode.REFUSED_BY_POLICY,
    ),
    "a message beyond the policy": (
        {"max-message-mib": 1}, lambda c: c.evaluate(weights=bytes(2**20 + 1)), ErrorCode.TOO_LARGE,
    ),
    "another protocol": ({}, lambda c: c.predict(0, protocol=1), ErrorCode.BAD_PROTOCOL),
    "weights that do not fit their card": ({}, lambda c: c.evaluate(weights=b"none"), ErrorCode.BAD_STUDENT),
    "a card that is none": ({}, lambda c: c.evaluate(card="[]"), ErrorCode.BAD_STUDENT),
    "a card nested without end": ({}, lambda c: c.evaluate(card="[" * 60_000), ErrorCode.BAD_STUDENT),
    "a student of another study's size": (
        {}, lambda c: c.evaluate(card=c.student()[0].replace(f'"size": {SIZE}', '"size": 64')), ErrorCode.BAD_STUDENT,
    ),
    "an encoder to be fetched": (
        {}, lambda c: c.evaluate(card=c.student()[0].replace("resnet18", "tu-hf-hub:a/b")),
        ErrorCode.BAD_STUDENT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str, tmp_path: Path, coordinator: Coordinator, reach: Reach) -> None:
    policy, ask, code = REFUSED[name]
    site = make_site(tmp_path, **policy)
    request = ask(coordinator)
    if not isinstance(request, wire.DescribeRequest):
        site.describe(coordinator.describe())
        label_data(make_home(tmp_path))
    with pytest.raises(WireError) as refusal:
        send(reach(site), request)
    assert refusal.value.code == code
    last = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1]) if code != ErrorCode.BAD_PROTOCOL else {}
    assert last.get("result", code) == code


def send(site: SitePort, request: wire.Request) -> wire.Reply:
    calls = {
        wire.DescribeRequest: site.describe,
        wire.PredictRequest: site.predict,
        wire.EvaluateRequest: site.evaluate,
        wire.FineTuneRequest: site.fine_tune,
    }
    reply: wire.Reply = calls[type(request)](request)
    return reply


def test_a_file_that_a_students_card_names_is_not_opened_at_the_site(
    tmp_path: Path, coordinator: Coordinator, reach: Reach
) -> None:
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    label_data(make_home(tmp_path))
    card = json.loads(coordinator.student()[0])
    card["architecture"]["weights"] = "/srv/patients/gone.safetensors"
    reply = reach(site).evaluate(coordinator.evaluate(card=json.dumps(card)))
    assert reply.student.n == reach(site).evaluate(coordinator.evaluate()).student.n


def test_a_study_without_this_site_is_refused(tmp_path: Path) -> None:
    other = Coordinator(tmp_path / "c", sites=["east"], **{"fine-tune": {}})
    with pytest.raises(WireError) as refusal:
        make_site(tmp_path).describe(other.describe())
    assert refusal.value.code == ErrorCode.NOT_CONSENTED


def test_a_study_of_another_size_than_its_catalogue_is_refused(tmp_path: Path) -> None:
    other = Coordinator(tmp_path / "c", image={"size": 64})
    with pytest.raises(WireError) as refusal:
        make_site(tmp_path).describe(other.describe())
    assert refusal.value.code == ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize(
    ("policy", "levels"), [({"levels": 2}, {0, 255}), ({"levels": 4}, {0, 85, 170, 255}), ({}, set(range(256)))]
)
def test_no_more_levels_leave_than_the_policy_says(
    policy: dict[str, object], levels: set[int], tmp_path: Path, coordinator: Coordinator
) -> None:
    site = make_site(tmp_path, **policy)
    assert site.describe(coordinator.describe()).output == ("binary" if policy.get("levels") == 2 else "soft")
    coded = site.predict(coordinator.predict(0, 1, 2)).masks
    masks = np.stack([soft_mask.decode(mask, (1, SIZE, SIZE)) for mask in coded])
    assert set(np.unique(masks)) == levels
    if len(levels) == 2:
        np.testing.assert_array_equal(masks == 255, coordinator.catalogue.pixels[:3] >= soft_mask.TARGET_LEVEL)


def test_what_the_teacher_says_of_itself_when_it_fails_stays_at_the_site(
    tmp_path: Path, coordinator: Coordinator, reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_images: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"cannot read {SECRET}")

    site = make_site(tmp_path, failing)
    site.describe(coordinator.describe())
    with pytest.raises(WireError) as failure:
        reach(site).predict(coordinator.predict(0))
    assert failure.value.code == ErrorCode.SITE_FAILED
    assert failure.value.__cause__ is None
    assert PUBLIC_TEXT[ErrorCode.SITE_FAILED] in str(failure.value)
    assert SECRET not in repr(failure.value) + failure.value.detail
    assert SECRET in caplog.text
    assert SECRET not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    "broken",
    [
        lambda x: x * 3,
        lambda x: x * torch.nan,
        lambda x: x[:, :, :-1, :-1] - 0.5,
        lambda x: x[:0],
        lambda x: x.repeat(1, 2, 1, 1),
    ],
    ids=["logits", "not a number", "negative and of another size", "too few", "too many labels"],
)
def test_a_broken_teacher_fails_and_is_not_mended(
    broken: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path, coordinator: Coordinator
) -> None:
    site = make_site(tmp_path, broken)
    site.describe(coordinator.describe())
    with pytest.raises(WireError) as failure:
        site.predict(coordinator.predict(0))
    assert failure.value.code == ErrorCode.SITE_FAILED


def test_every_request_leaves_a_line_and_a_changed_line_is_noticed(tmp_path: Path, coordinator: Coordinator) -> None:
    site = make_site(tmp_path, **{"mask-budget": 3})
    site.describe(coordinator.describe())
    reply = site.predict(coordinator.predict(0, 1))
    with pytest.raises(WireError):
        site.predict(coordinator.predict(1, 2, 3))
    site.predict(coordinator.predict(1, 2))
    log = tmp_path / "audit.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["action"], line["masks"], line["repeats"], line["result"]) for line in lines] == [
        ("describe", 0, 0, "answered"),
        ("predict", 2, 0, "answered"),
        ("predict", 0, 0, "refused-by-policy"),
        ("predict", 1, 1, "answered"),  # an image asked for again costs nothing
    ]
    assert (lines[1]["bytes_out"], lines[1]["digest"]) == (wire.size_of(reply), wire.digest_of(reply))
    assert audit.verify(log) == 4
    log.write_text(log.read_text().replace('"masks":2', '"masks":1'))
    with pytest.raises(StateError, match="line 3"):
        audit.verify(log)


def test_a_torn_last_line_is_replaced(tmp_path: Path) -> None:
    log = audit.Audit(tmp_path / "audit.jsonl")
    log.record(audit.Event("s", "c", "predict", "answered", masks=4))
    with log.path.open("a") as file:
        file.write('{"time": "2')
    log.record(audit.Event("s", "c", "predict", "answered", masks=3))
    assert audit.verify(log.path) == 2
    assert audit.Audit(log.path).masks_gone() == 7


def test_an_image_damaged_on_the_disk_is_asked_for_again(tmp_path: Path, coordinator: Coordinator) -> None:
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    site.predict(coordinator.predict(0, 1))
    stored = tmp_path / "catalogues" / coordinator.catalogue.hash / "pixels.u8"
    stored.write_bytes(b"\0" * stored.stat().st_size)
    shutil.rmtree(tmp_path / "answers")  # else what was answered is answered again without them
    with pytest.raises(WireError) as refusal:
        make_site(tmp_path).predict(coordinator.predict(0, pixels=[]))
    assert refusal.value.code == ErrorCode.UNKNOWN_IMAGE
    assert ImageStore(stored.parent, coordinator.catalogue.manifest).missing()[0]
    assert make_site(tmp_path).predict(coordinator.predict(0)).ids == coordinator.ids[:1]


def test_a_teacher_is_evaluated_as_the_wire_would_carry_it(
    tmp_path: Path, coordinator: Coordinator, reach: Reach
) -> None:
    """Two test images are right (Dice 100), in the third it sees the wrong half (Dice 0)."""
    label_data(make_home(tmp_path))
    site = reach(make_site(tmp_path))
    site.describe(coordinator.describe())
    reply = site.evaluate(coordinator.evaluate())
    assert (reply.test_images, reply.train_images) == (3, 4)
    assert reply.teacher.mean == pytest.approx(200 / 3)
    assert reply.teacher.std == pytest.approx(100 * np.std([1, 1, 0]))
    assert 0 <= reply.student.mean <= 100


def test_a_site_without_labelled_images_says_so(tmp_path: Path, coordinator: Coordinator, reach: Reach) -> None:
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    for request in (coordinator.evaluate(), coordinator.fine_tune()):
        with pytest.raises(WireError) as refusal:
            send(reach(site), request)
        assert refusal.value.code == ErrorCode.NO_DATA


def test_a_fine_tuned_student_stays_and_is_not_trained_again(
    tmp_path: Path, coordinator: Coordinator, reach: Reach
) -> None:
    label_data(make_home(tmp_path))
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    reply = reach(site).fine_tune(coordinator.fine_tune())
    assert (reply.test_images, reply.train_images) == (3, 4)
    (kept,) = (tmp_path / "students").iterdir()
    assert kept.name.startswith(coordinator.study.digest[:12])
    fine_tuned = dump_weights(load_student(kept)[0])
    assert hashlib.sha256(fine_tuned).digest() != hashlib.sha256(coordinator.student()[1]).digest()
    result = json.loads((kept / "result.json").read_text())
    assert (result["before"]["n"], result["after"]["mean"]) == (3, reply.mean)
    result["after"]["mean"] = 12.5
    (kept / "result.json").write_text(json.dumps(result))
    assert reach(make_site(tmp_path)).fine_tune(coordinator.fine_tune()).mean == 12.5


def test_a_teacher_answers_the_labels_it_knows_in_the_order_of_the_study(tmp_path: Path) -> None:
    values = {"name": "north", "labels": ["cyst", "mass"], "policy": {"auto-approve": True, "sealed": False}}
    home = SiteHome(parse(SiteSettings, values, "test"), tmp_path)
    site = Site(home, ModuleTeacher(lambda images: torch.cat([images, 1 - images], 1)))
    both = Coordinator(tmp_path / "both", labels=["mass", "cyst"])
    site.describe(both.describe())
    mask = soft_mask.decode(site.predict(both.predict(0)).masks[0], (2, SIZE, SIZE))
    pixels = both.catalogue.pixels[0, 0]
    np.testing.assert_array_equal(mask, np.stack([255 - pixels, pixels]))
    some = Coordinator(tmp_path / "some", labels=["vessel", "mass"])
    assert site.describe(some.describe()).labels == ["mass"]
    alone = soft_mask.decode(site.predict(some.predict(0)).masks[0], (1, SIZE, SIZE))
    np.testing.assert_array_equal(alone[0], 255 - some.catalogue.pixels[0, 0])
    none = Coordinator(tmp_path / "none", labels=["vessel"])
    assert site.describe(none.describe()).labels == []
    with pytest.raises(WireError) as refusal:
        site.predict(none.predict(0))
    assert refusal.value.code == ErrorCode.NO_DATA


def test_a_site_that_is_being_stopped_does_not_keep_its_process(tmp_path: Path, coordinator: Coordinator) -> None:
    """A fine-tuning ends after the step it is in, and goes on from there at the next start."""
    label_data(make_home(tmp_path))
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    site.close()
    for request in (coordinator.predict(0), coordinator.fine_tune()):
        with pytest.raises(WireError) as failure:
            send(site, request)
        assert failure.value.code == ErrorCode.SITE_FAILED
    assert make_site(tmp_path).fine_tune(coordinator.fine_tune()).train_images == 4


def test_the_budget_holds_when_requests_come_at_the_same_time(tmp_path: Path, coordinator: Coordinator) -> None:
    """Ten requests at once, for four images that were not answered yet, where three more masks may leave."""
    together = threading.Barrier(10, timeout=30)
    site = make_site(tmp_path, **{"mask-budget": 4})
    site.describe(coordinator.describe())
    site.predict(coordinator.predict(0))
    outcomes: dict[str, int] = {}

    def ask(number: int) -> None:
        together.wait()
        try:
            site.predict(coordinator.predict(1 + number % 4))
            outcomes["answered"] = outcomes.get("answered", 0) + 1
        except WireError as refusal:
            outcomes[refusal.code] = outcomes.get(refusal.code, 0) + 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.keys() == {"answered", "refused-by-policy"}
    assert audit.verify(tmp_path / "audit.jsonl") == 12
    assert audit.Audit(tmp_path / "audit.jsonl").masks_gone() == 4


def test_a_site_that_is_not_asked_to_fine_tune_does_not(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path / "c", **{"fine-tune": {}})
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    with pytest.raises(WireError) as refusal:
        site.fine_tune(coordinator.fine_tune())
    assert refusal.value.code == ErrorCode.REFUSED_BY_POLICY


def test_auto_approve_is_loud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_site(tmp_path)
    assert "APPROVES EVERY STUDY" in caplog.text


def test_gray_is_repeated_and_colour_is_weighed_by_rec_601() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8).reshape(4, 3, 1, 1)
    assert geometry.to_channels(colours, 1).ravel().tolist() == [76, 150, 29, 255]
    gray = np.array([[[[7]]]], np.uint8)
    assert geometry.to_channels(gray, 3).ravel().tolist() == [7, 7, 7]


def test_equal_geometries_are_left_alone_and_constants_stay_constant() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 8, 8), np.uint8)
    probabilities = rng.random((2, 1, 8, 8), np.float32)
    assert geometry.to_size(geometry.to_channels(images, 3), 8) is images
    assert geometry.to_grid(probabilities, 8) is probabilities
    for size in (5, 8, 13):
        assert np.unique(geometry.to_size(np.full((1, 1, 8, 8), 200, np.uint8), size)).tolist() == [200]
        assert np.unique(geometry.to_grid(np.ones((1, 1, 8, 8), np.float32), size)).tolist() == [1.0]


def test_shrinking_by_two_averages_with_antialiasing() -> None:
    """A triangle of width 4 around each new pixel weighs 1, 3, 3, 1; at the border 3, 3, 1."""
    row = np.array([0, 0, 255, 255], np.uint8)
    image = np.broadcast_to(row, (1, 1, 4, 4)).copy()
    assert geometry.to_size(image, 2)[0, 0, 0].tolist() == [round(255 / 7), round(255 * 6 / 7)]


def test_a_module_is_fed_normalised_pixels_and_its_logits_become_probabilities() -> None:
    """Gray 51 is 0.2; less the mean 0.1, over the deviation 0.05, it is 2: the logit of 1 / (1 + exp(-2))."""
    teacher = ModuleTeacher(torch.nn.Identity(), mean=(0.1,), std=(0.05,), logits=True)
    probabilities = teacher.predict(np.full((1, 1, 4, 4), 51, np.uint8))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_what_a_site_keeps_can_be_read_by_its_own_user_only(tmp_path: Path, coordinator: Coordinator) -> None:
    label_data(make_home(tmp_path))
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    site.fine_tune(coordinator.fine_tune())
    for name, mode in (("studies", 0o700), ("catalogues", 0o700), ("students", 0o700), ("audit.jsonl", 0o600)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_a_teacher_of_another_size_answers_on_the_study_grid(tmp_path: Path, coordinator: Coordinator) -> None:
    seen: list[tuple[int, ...]] = []

    def teacher(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images[:, :1]

    site = Site(make_home(tmp_path), ModuleTeacher(teacher, size=48, channels=3))
    site.describe(coordinator.describe())
    reply = site.predict(coordinator.predict(0, 1))
    assert seen == [(2, 3, 48, 48)]
    assert [soft_mask.decode(mask, (1, SIZE, SIZE)).shape for mask in reply.masks] == [(1, SIZE, SIZE)] * 2


def test_a_grid_of_values_beyond_one_is_refused_not_clipped() -> None:
    with pytest.raises(DataError, match="logits"):
        geometry.to_grid(np.full((1, 1, 4, 4), 1.5, np.float32), 8)


def test_dice_of_the_echo_teacher_is_the_dice_of_the_images(coordinator: Coordinator) -> None:
    pixels = np.asarray(coordinator.catalogue.pixels)
    assert metrics.dice(pixels, (pixels >= 128).astype(np.uint8)).tolist() == [1.0] * 5
    assert [image_id(image) for image in pixels] == coordinator.ids


def with_validation(folder: Path, validation: Validation, **policy: object) -> Site:
    return Site(make_home(folder, **policy), ModuleTeacher(echo), {"validation": validation.to_card()})


def test_masks_leave_at_the_sites_temperature_where_the_study_wants_calibrated_sites(tmp_path: Path) -> None:
    for calibrated in (True, False):
        coordinator = Coordinator(tmp_path / f"c-{calibrated}", fusion={"calibrated": calibrated})
        site = with_validation(tmp_path / f"s-{calibrated}", Validation(70.0, 20, 2.0))
        site.describe(coordinator.describe())
        [coded] = site.predict(coordinator.predict(0)).masks
        pixels = coordinator.catalogue.pixels[0]
        chances = temper((pixels / np.float32(255)).astype(np.float32), 2.0, LOGITS_CLIP)
        expected = soft_mask.quantise(chances) if calibrated else pixels
        found = soft_mask.decode(coded, (1, SIZE, SIZE)).astype(int)
        assert np.abs(found - expected).max() <= (1 if calibrated else 0)
        assert ((found >= 128) == (pixels >= 128)).all()


def test_a_temperature_that_the_settings_name_is_not_applied_twice(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    told = {"validation": Validation(70.0, 20, 2.0).to_card()}
    assert temperature_of(home, told) == 2.0
    assert temperature_of(home, {}) == 1.0
    settings = home.settings.model_copy(
        update={"teacher": home.settings.teacher.model_copy(update={"temperature": 1.5})}
    )
    assert temperature_of(SiteHome(settings, tmp_path), told) == 1.0


def test_the_teacher_looks_under_the_views_of_the_study(tmp_path: Path) -> None:
    def left(images: torch.Tensor) -> torch.Tensor:
        return images * (torch.arange(SIZE) < SIZE // 2)

    coordinator = Coordinator(tmp_path / "c", fusion={"views": "flip"})
    site = make_site(tmp_path, left)
    site.describe(coordinator.describe())
    [coded] = site.predict(coordinator.predict(0)).masks
    half = coordinator.catalogue.pixels[0] / 510  # each side is seen in one view of two
    np.testing.assert_array_equal(soft_mask.decode(coded, (1, SIZE, SIZE)), soft_mask.quantise(half.astype(np.float32)))


def test_what_a_teacher_is_worth_leaves_if_there_are_enough_images_behind_it(tmp_path: Path) -> None:
    found = Validation(70.0, 9, 1.25, 1, 2)
    for least, told in ((9, found), (10, None)):
        coordinator = Coordinator(tmp_path / f"c-{least}")
        reply = with_validation(tmp_path / f"s-{least}", found, **{"min-images": least}).describe(
            coordinator.describe()
        )
        assert from_card(json.loads(reply.teacher)) == told
