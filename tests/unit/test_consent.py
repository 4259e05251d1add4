"""Nothing leaves a site before a person there consented, nor after they ended it; and never a mask of the site's own images."""

import json
import stat
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from consilium.clients import cli, review
from consilium.clients.consent import ConsentBook, State
from consilium.clients.settings import SiteHome, load_site
from consilium.clients.site import Site
from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import soft_mask
from consilium.common.catalogue import CatalogueImage, build
from consilium.common.datasets import labelled
from consilium.common.errors import ConsentError, ErrorCode, SettingsError, StudyError, WireError
from consilium.common.identity import signing
from tests.federation_in_memory import SitesInMemory
from tests.unit.test_labels import open_study
from tests.unit.test_site import SIZE, Coordinator, echo, make_home, make_site

TODAY = datetime.now(UTC).date()


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


def careful_site(folder: Path, **policy: object) -> Site:
    return make_site(folder, **{"auto-approve": False} | policy)


def book(folder: Path, today: date = TODAY) -> ConsentBook:
    return ConsentBook(folder / "consents", "north", lambda: today)


def approve(folder: Path, coordinator: Coordinator, until: date = TODAY) -> None:
    book(folder).decide(coordinator.describe(), coordinator.catalogue.signer, "approved", until)


def refused(call: object, *arguments: object) -> ErrorCode:
    with pytest.raises(WireError) as refusal:
        call(*arguments)
    return refusal.value.code


def test_a_study_is_shown_then_its_images_come_then_a_person_consents_and_only_then_it_is_answered(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    site = careful_site(tmp_path)
    assert refused(site.describe, coordinator.describe()) == ErrorCode.NOT_CONSENTED
    assert refused(site.predict, coordinator.predict(0, 1)) == ErrorCode.NOT_CONSENTED
    (one,) = review.listed(make_home(tmp_path))
    assert (one.state, one.shown.study.name) == (State.WAITING, "trial")
    assert one.shown.images.held() == coordinator.ids[:2]
    approve(tmp_path, coordinator)
    assert site.describe(coordinator.describe()).site == "north"
    assert site.predict(coordinator.predict(0, 1, pixels=[])).ids == coordinator.ids[:2]


@pytest.mark.parametrize("action", ["predict", "evaluate", "fine_tune"])
def test_no_action_is_answered_without_consent(action: str, tmp_path: Path, coordinator: Coordinator) -> None:
    site = careful_site(tmp_path)
    assert refused(site.describe, coordinator.describe()) == ErrorCode.NOT_CONSENTED
    request = coordinator.predict(0) if action == "predict" else getattr(coordinator, action)()
    assert refused(getattr(site, action), request) == ErrorCode.NOT_CONSENTED


def test_a_revocation_holds_for_a_running_site_and_nothing_more_is_kept(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    site = careful_site(tmp_path)
    refused(site.describe, coordinator.describe())
    approve(tmp_path, coordinator)
    site.predict(coordinator.predict(0))
    book(tmp_path).decide(coordinator.describe(), coordinator.catalogue.signer, "revoked", TODAY)
    for request in (coordinator.predict(0), coordinator.predict(1)):
        assert refused(site.predict, request) == ErrorCode.NOT_CONSENTED
    (one,) = review.listed(make_home(tmp_path))
    assert (one.state, one.shown.images.held()) == (State.REVOKED, coordinator.ids[:1])


def test_a_revocation_during_the_work_holds_before_the_answer_leaves(tmp_path: Path, coordinator: Coordinator) -> None:
    def slow(images: torch.Tensor) -> torch.Tensor:
        book(tmp_path).decide(coordinator.describe(), coordinator.catalogue.signer, "revoked", TODAY)
        return images

    site = Site(make_home(tmp_path, **{"auto-approve": False}), ModuleTeacher(slow))
    refused(site.describe, coordinator.describe())
    approve(tmp_path, coordinator)
    assert refused(site.predict, coordinator.predict(0)) == ErrorCode.NOT_CONSENTED
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sum(line["masks"] for line in lines) == 0


def test_what_a_person_revoked_is_not_approved_by_itself(tmp_path: Path, coordinator: Coordinator) -> None:
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    book(tmp_path).decide(coordinator.describe(), coordinator.catalogue.signer, "revoked", TODAY)
    assert refused(site.predict, coordinator.predict(0)) == ErrorCode.NOT_CONSENTED


def test_consent_ends_after_its_last_day(tmp_path: Path, coordinator: Coordinator) -> None:
    approve(tmp_path, coordinator, TODAY)
    request, signer = coordinator.describe(), coordinator.catalogue.signer
    assert book(tmp_path).state(request, signer) == State.APPROVED
    assert book(tmp_path, TODAY + timedelta(days=1)).state(request, signer) == State.EXPIRED
    assert refused(book(tmp_path, TODAY + timedelta(days=1)).require, request, signer) == ErrorCode.NOT_CONSENTED


def test_consent_is_to_one_study_of_one_signer(tmp_path: Path, coordinator: Coordinator) -> None:
    approve(tmp_path, coordinator)
    signer = coordinator.catalogue.signer
    for other in (coordinator.describe(study="0" * 64), coordinator.describe(catalogue="0" * 64)):
        assert book(tmp_path).state(other, signer) == State.WAITING
    assert book(tmp_path).state(coordinator.describe(), b"\1" * 32) == State.WAITING


def test_a_decision_that_was_changed_or_signed_with_another_key_is_none(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    approve(tmp_path, coordinator)
    (page,) = (tmp_path / "consents").glob("*.json")
    honest = json.loads(page.read_text())
    longer = honest | {"consent": honest["consent"] | {"until": "2999-01-01"}}
    other = signing.make_signing_key(tmp_path / "other.pem")
    forged = honest | {
        "key": signing.public_key_of(other).hex(),
        "signature": signing.sign(other, b"consilium consent 1", b"{}").hex(),
    }
    for lie in (longer, forged, honest | {"signature": ""}, [], {"consent": 1}):
        page.write_text(json.dumps(lie))
        assert book(tmp_path).state(coordinator.describe(), coordinator.catalogue.signer) == State.INVALID
    page.write_text(json.dumps(honest))
    page.rename(page.with_name(f"{'0' * 64}-{coordinator.catalogue.hash[:12]}.json"))
    other_study = coordinator.describe(study="0" * 64)
    assert book(tmp_path).state(other_study, coordinator.catalogue.signer) == State.INVALID


def test_the_consent_key_can_be_read_by_its_own_user_only_and_is_made_once(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    approve(tmp_path, coordinator)
    key = (tmp_path / "keys" / "consent.pem").read_bytes()
    approve(tmp_path, coordinator)
    assert (tmp_path / "keys" / "consent.pem").read_bytes() == key
    assert stat.S_IMODE((tmp_path / "keys" / "consent.pem").stat().st_mode) == 0o600
    (tmp_path / "keys" / "consent.pem").unlink()  # deciding needs it, answering does not
    assert book(tmp_path).state(coordinator.describe(), coordinator.catalogue.signer) == State.APPROVED


def test_whoever_signs_an_approved_study_anew_gets_nothing(tmp_path: Path, coordinator: Coordinator) -> None:
    """A list can be signed by anyone who saw it; consent is to the one who was reviewed."""
    site = careful_site(tmp_path)
    refused(site.describe, coordinator.describe())
    approve(tmp_path, coordinator)
    thief = signing.make_signing_key(tmp_path / "thief.pem")
    signature = signing.sign(thief, b"consilium catalogue 1", coordinator.catalogue.manifest_bytes)
    stolen = coordinator.describe(signature=signature, signer=signing.public_key_of(thief))
    assert refused(site.describe, stolen) == ErrorCode.NOT_CONSENTED
    assert site.predict(coordinator.predict(0)).ids == coordinator.ids[:1]


def test_studies_that_wait_are_few_and_their_images_fit(tmp_path: Path) -> None:
    site = careful_site(tmp_path / "site", **{"max-waiting": 2, "review-mib": 0})
    codes = [refused(site.describe, Coordinator(tmp_path / str(seed), seed=seed).describe()) for seed in (1, 2, 3)]
    assert codes == ["not-consented", "not-consented", "refused-by-policy"]
    first = Coordinator(tmp_path / "again", seed=1)
    assert refused(site.describe, first.describe()) in ("not-consented", "unknown-study")
    (one, _) = review.listed(make_home(tmp_path / "site"))
    assert one.shown.images.held() == []


def test_images_of_the_site_and_those_that_look_like_them_are_never_answered(tmp_path: Path) -> None:
    """The second image of the catalogue is one that the teacher was trained on, the third the same, a little brighter."""
    coordinator = Coordinator(tmp_path / "c")
    rng = np.random.default_rng(5)
    own = rng.integers(60, 180, (2, 1, SIZE, SIZE), np.uint8)
    images = [*coordinator.catalogue.pixels[:1], own[1], own[1] + 9, *coordinator.catalogue.pixels[1:2]]
    coordinator.catalogue = build(
        tmp_path / "slipped-in", "shared", [CatalogueImage(np.asarray(image), "x") for image in images], coordinator.key
    )
    coordinator.envelope["catalogue"] = coordinator.catalogue.hash
    coordinator.ids = [entry.id for entry in coordinator.catalogue.manifest.images]
    home = make_home(tmp_path)
    labelled.pack(home.train_set, labelled.Labelled(own, np.zeros_like(own), ("a", "patient b"), ("", "")))
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    reply = site.predict(coordinator.predict(2, 3, 0, 1))
    assert reply.ids == [coordinator.ids[i] for i in (3, 0)]
    assert reply.abstained == [coordinator.ids[i] for i in (2, 1)]
    np.testing.assert_array_equal(soft_mask.decode(reply.masks[1], (1, SIZE, SIZE)), coordinator.catalogue.pixels[0])
    alone = site.predict(coordinator.predict(1))
    assert (alone.ids, alone.masks, alone.abstained) == ([], [], coordinator.ids[1:2])
    (one,) = review.listed(home)
    near = review.look(home, one).near
    assert {(one.image, one.source) for one in near} == {(coordinator.ids[i], "patient b") for i in (1, 2)}
    lax = make_site(tmp_path / "lax", **{"near-duplicate": 1.0})
    labelled.pack(make_home(tmp_path / "lax").train_set, labelled.Labelled(own, own, ("", ""), ("", "")))
    lax.describe(coordinator.describe())
    assert len(lax.predict(coordinator.predict(0, 1)).ids) == 2


def test_an_image_is_answered_once_whatever_the_teacher_says_later(tmp_path: Path, coordinator: Coordinator) -> None:
    site = make_site(tmp_path)
    site.describe(coordinator.describe())
    first = site.predict(coordinator.predict(0, 1)).masks
    retrained = make_site(tmp_path, lambda images: 1 - images, levels=2)
    retrained.describe(coordinator.describe())
    assert retrained.predict(coordinator.predict(1, 0)).masks == first[::-1]
    assert retrained.predict(coordinator.predict(2)).masks != make_site(tmp_path / "x").name


def test_labels_that_the_policy_does_not_name_are_unknown_to_everyone(tmp_path: Path, coordinator: Coordinator) -> None:
    site = make_site(tmp_path, labels=["another"])
    assert site.describe(coordinator.describe()).labels == []
    assert refused(site.predict, coordinator.predict(0)) == ErrorCode.NO_DATA


def test_a_fifth_student_of_a_study_is_not_evaluated_but_the_same_one_again_is(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    from tests.unit.test_site import label_data

    label_data(make_home(tmp_path))
    site = make_site(tmp_path, **{"max-students": 1})
    site.describe(coordinator.describe())
    assert site.evaluate(coordinator.evaluate()) == site.evaluate(coordinator.evaluate())
    card, _ = coordinator.student()
    assert refused(site.evaluate, coordinator.evaluate(card=card + " ")) == ErrorCode.REFUSED_BY_POLICY


def test_the_teachers_card_tells_no_metric_over_too_few_images(tmp_path: Path, coordinator: Coordinator) -> None:
    class Carded:
        card: ClassVar = {"format": "x", "dice-mean": 90.0, "dice-std": 1.0, "test-images": 3}

        def predict(self, images: np.ndarray, /) -> np.ndarray:
            raise NotImplementedError

    for least, told in ((3, True), (4, False)):
        site = Site(make_home(tmp_path / str(least), **{"min-images": least}), Carded())
        assert ("dice-mean" in json.loads(site.describe(coordinator.describe()).teacher)) == told


def test_the_coordinator_sends_the_images_once_for_review_and_goes_on_when_there_is_consent(tmp_path: Path) -> None:
    run = open_study(tmp_path / "run", ("north",))
    home = make_home(tmp_path / "north", **{"auto-approve": False})
    post = SitesInMemory({"north": Site(home, ModuleTeacher(echo))})
    with pytest.raises(ConsentError, match="waits for consent: north"):
        run.describe(post)
    (one,) = review.listed(home)
    assert len(one.shown.images.held()) == len(run.catalogue)
    sent = run.ledger.traffic()["north"]
    with pytest.raises(StudyError):
        run.describe(post)
    assert run.ledger.traffic()["north"][1] - sent[1] < sent[1] / 2  # the list again, not the images
    ConsentBook(home.consents, "north").decide(one.shown.request, one.shown.signer, "approved", TODAY)
    assert "north" in run.ledger.results("offered")
    with pytest.raises(
        StudyError, match="its teacher knows none of a, b"
    ):  # it was described: the echo knows lesions only
        run.describe(post)


# --- policy.toml and the commands


def written_site(folder: Path, policy: str = "") -> Path:
    path = folder / "site.toml"
    path.write_text(f'name = "north"\n[teacher]\nsize = {SIZE}\n[data]\nsize = {SIZE}\n')
    (folder / "policy.toml").write_text(policy)
    return path


def test_the_policy_is_a_file_of_its_own_and_there_is_one_only(tmp_path: Path) -> None:
    path = written_site(tmp_path, "levels = 16\nmin-images = 3\n")
    assert (load_site(path).settings.policy.levels, load_site(path).settings.policy.min_images) == (16, 3)
    path.write_text('name = "north"\n[policy]\nlevels = 2\n')
    with pytest.raises(SettingsError, match="one policy"):
        load_site(path)
    (tmp_path / "policy.toml").write_text("levels = 3\ncolour = 1\n")
    path.write_text('name = "north"\n')
    with pytest.raises(SettingsError, match=r"policy\.toml: 2 faults"):
        load_site(path)


def test_a_person_reviews_approves_and_revokes_by_command(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written_site(tmp_path, "sealed = false\n")
    home: SiteHome = load_site(path)
    site = Site(home, ModuleTeacher(echo))

    def say(command: str, *arguments: str, fails: bool = False) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, str(path), *arguments])
        assert ended.value.code == (2 if fails else 0)
        told = capsys.readouterr()
        return " ".join((told.err if fails else told.out).split())

    assert "No study was shown" in say("review")
    refused(site.describe, coordinator.describe())
    refused(site.predict, coordinator.predict(0, 1, 2))
    listed = say("review")
    assert all(part in listed for part in ("trial", coordinator.study.digest[:12], "3 of 5", "waiting"))
    told = say("review", "trial")
    assert signing.fingerprint(coordinator.catalogue.signer) in told
    assert "No training images are packed here" in told
    (picture,) = (tmp_path / "reviews").glob("trial-*/images.png")
    with Image.open(picture) as sheet:
        assert sheet.width > 1000
    assert "3 of the 5 images" in say("approve", "trial", fails=True)
    for wrong in ("2020-01-01", "soon"):
        say("approve", "trial", "--until", wrong, fails=True)
    say("approve", coordinator.study.digest[:8], "--unseen")
    assert len(site.predict(coordinator.predict(0)).masks) == 1
    kept = json.loads(next((tmp_path / "consents").glob("*.json")).read_text())["consent"]
    assert kept["until"] == str(TODAY + timedelta(days=90))
    say("revoke", "trial")
    assert refused(site.predict, coordinator.predict(0)) == ErrorCode.NOT_CONSENTED
    assert "none of those shown" in say("revoke", "nothing", fails=True)
