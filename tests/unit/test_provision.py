"""A federation's folder: what is made, who is let in, until when."""

import json
import stat
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.clients.join import join, read_kit
from consilium.clients.settings import SiteSettings, load_site
from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.identity.certificates import issued_by
from consilium.common.identity.node_keys import make_node_key, node_fingerprint, node_key_pem
from consilium.common.identity.signing import load_signing_key, public_key_of
from consilium.common.joining import KIT_FILES, JoinRequest, read_join, write_join
from consilium.common.settings import load, parse
from consilium.server.control import RegisteredNode
from consilium.server.coordinator import changes, serve
from consilium.server.federation import Federation, in_use, open_federation, utc_now
from consilium.server.federation_settings import FederationSettings
from consilium.server.provision import provision
from consilium.server.site_records import SiteRecord

NOW = utc_now()
DAY = timedelta(days=1)
SETTINGS = """
name = "trial"
labels = ["mass", "cyst"]
invitation-days = 10
key-days = 100
[superlink]
address = "hub.example.org:9443"
ip-addresses = ["192.0.2.7"]
certificate-days = 50
[sites.north]
[sites.east]
labels = ["mass"]
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _the_time_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are valid from when they are made on, which may be long after this file was read."""
    monkeypatch.setitem(globals(), "NOW", utc_now() - timedelta(seconds=2))  # a certificate's times are whole seconds


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    (tmp_path / "federation.toml").write_text(SETTINGS)
    return provision(tmp_path / "federation.toml", tmp_path / "fed", NOW)


def request_of(federation: Federation, home: Path, name: str = "north", *, new_key: bool = False) -> JoinRequest:
    return join(read_kit(federation.kit(name)), home, NOW, new_key=new_key).request


def test_a_federation_has_an_authority_a_certificate_for_its_names_and_a_signing_key(federation: Federation) -> None:
    tls = federation.certificates
    assert issued_by(tls.certificate.read_bytes(), tls.authority.read_bytes())
    assert federation.server_facts().names == ("hub.example.org", "localhost", "192.0.2.7", "127.0.0.1")
    assert (federation.server_facts().days_left(NOW), federation.authority_facts().days_left(NOW)) == (50, 3650)
    assert federation.signer == public_key_of(load_signing_key(federation.signing_key)).hex()
    assert open_federation(federation.folder).settings == federation.settings


def test_what_is_private_is_for_its_owner_alone(federation: Federation) -> None:
    public = {"federation.toml", "authority.pem", "signing.pub", "server.pem"}
    modes = {path.name: mode(path) for path in federation.folder.rglob("*") if path.is_file()}
    assert {name for name, bits in modes.items() if bits != 0o600} <= public
    assert {mode(path) for path in (federation.folder, *federation.folder.iterdir()) if path.is_dir()} == {0o700}


def test_a_kit_holds_plain_files_of_no_one_and_no_private_key(federation: Federation) -> None:
    with tarfile.open(federation.kit("north")) as kit:
        entries = kit.getmembers()
        content = b"".join(kit.extractfile(entry).read() for entry in entries)
    assert sorted(entry.name for entry in entries) == sorted(KIT_FILES)
    assert {(entry.type, entry.mode, entry.uid, entry.uname) for entry in entries} == {(tarfile.REGTYPE, 0o600, 0, "")}
    assert b"PRIVATE" not in content


def test_a_kits_settings_are_the_sites_with_the_coordinators_key_to_trust(
    federation: Federation, tmp_path: Path
) -> None:
    for name, labels in (("north", ("mass", "cyst")), ("east", ("mass",))):
        request_of(federation, tmp_path / name, name)
        settings = load_site(tmp_path / name / "site.toml").settings
        assert settings.name == name
        assert settings.labels == labels
        assert settings.policy.trusted_signers == (federation.signer,)
        assert settings.connection is not None
        assert settings.connection.superlink == "hub.example.org:9443"
        bare = SiteSettings(name=name, labels=labels, connection=settings.connection)
        assert settings == bare.model_copy(update={"policy": settings.policy})  # every other value is the default


def test_keys_are_overwritten_only_by_force_and_then_put_aside(federation: Federation, tmp_path: Path) -> None:
    before = federation.signing_key.read_bytes()
    with pytest.raises(StateError, match="not empty, and keys are never overwritten"):
        provision(tmp_path / "federation.toml", federation.folder, NOW)
    with in_use(federation.folder), pytest.raises(StateError, match="a coordinator runs"):
        provision(tmp_path / "federation.toml", federation.folder, NOW, force=True)
    assert federation.signing_key.read_bytes() == before
    again = provision(tmp_path / "federation.toml", federation.folder, NOW, force=True)
    assert again.signing_key.read_bytes() != before
    (aside,) = tmp_path.glob("fed.before-*")
    assert (aside / "signing.pem").read_bytes() == before


def test_wrong_settings_are_named_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(
        'name = "X"\n[superlink]\naddress = "hub"\nip-addresses = ["hub"]\n[sites.North]\n'
    )
    with pytest.raises(SettingsError, match=r"(?s)name: .*superlink\.address: .*sites\.North"):
        provision(tmp_path / "f.toml", tmp_path / "fed", NOW)
    (tmp_path / "f.toml").write_text('name = "x"\n[superlink]\naddress = "hub:0"\nip-addresses = ["hub"]\n')
    with pytest.raises(SettingsError, match="a port is a number from 1"):
        provision(tmp_path / "f.toml", tmp_path / "fed", NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.toml"]


def test_a_site_that_was_accepted_takes_part_until_its_key_runs_out(federation: Federation, tmp_path: Path) -> None:
    request = request_of(federation, tmp_path / "north")
    accepted = federation.accept(request, NOW)
    assert accepted.is_new
    assert accepted.record.key_fingerprint == node_fingerprint((tmp_path / "north" / "node-key.pub").read_bytes())
    assert not federation.accept(request, NOW).is_new
    record = federation.record("north")
    assert [record.takes_part(NOW + days * DAY) for days in (0, 99, 100)] == [True, True, False]
    assert record.state(NOW + 100 * DAY) == "KEY RAN OUT"
    assert not federation.kit("north").exists()
    with pytest.raises(SettingsError, match=r"east \(invited\), west \(unknown here\)"):
        federation.require_sites(["north", "east", "west"], NOW)
    with pytest.raises(SettingsError, match=r"north \(KEY RAN OUT\)"):
        federation.require_sites(["north"], NOW + 100 * DAY)


def test_an_invitation_is_good_for_its_days_and_once(federation: Federation, tmp_path: Path) -> None:
    kit = read_kit(federation.kit("north"))
    request = join(kit, tmp_path / "a", NOW).request
    with pytest.raises(StateError, match="ran out on"):
        federation.accept(request, NOW + 10 * DAY)
    with pytest.raises(StateError, match="ran out on"):
        join(kit, tmp_path / "late", NOW + 10 * DAY)
    federation.accept(request, NOW + 9 * DAY)
    other = join(kit, tmp_path / "b", NOW).request
    with pytest.raises(StateError, match="joined with another key and no new kit is out"):
        federation.accept(other, NOW)


def test_a_join_file_that_was_changed_is_refused(federation: Federation, tmp_path: Path) -> None:
    request = request_of(federation, tmp_path / "north")
    other = make_node_key(tmp_path / "other").read_text().strip()
    values = request.model_dump(mode="json", by_alias=True)
    for key, value in (
        ("name", "east"),
        ("public-key", other),
        ("authority", "SHA256:é"),
        ("made", "2020-01-01T00:00:00Z"),
        ("signature", ""),
        ("signature", "!"),
        ("public-key", "ssh-ed25519 AAAA"),
    ):
        (tmp_path / "x.join").write_text(json.dumps(values | {key: value}))
        with pytest.raises(DataError, match="changed or forged"):
            read_join(tmp_path / "x.join")
    lone = json.dumps(values | {"public-key": "\ud800"}).encode()
    for junk in (lone, b"", b"[]", b"\xff", b"{}", b" " * 20_000, json.dumps(values | {"extra": 1}).encode()):
        (tmp_path / "x.join").write_bytes(junk)
        with pytest.raises(DataError):
            read_join(tmp_path / "x.join")
    write_join(tmp_path / "x.join", request)
    assert read_join(tmp_path / "x.join") == request


def test_whoever_has_no_kit_can_not_join_under_a_sites_name(federation: Federation, tmp_path: Path) -> None:
    kit = read_kit(federation.kit("north"))
    forged = replace(kit, facts=kit.facts.model_copy(update={"invitation": "0" * 64}))
    with pytest.raises(DataError, match="not made with the kit"):
        federation.accept(join(forged, tmp_path / "a", NOW).request, NOW)
    east = read_kit(federation.kit("east"))
    taken = replace(east, facts=east.facts.model_copy(update={"site": "north"}))
    with pytest.raises(DataError, match="not made with the kit"):
        federation.accept(join(taken, tmp_path / "b", NOW).request, NOW)
    elsewhere = provision(tmp_path / "federation.toml", tmp_path / "fed2", NOW)
    with pytest.raises(DataError, match="the kit of another federation"):
        federation.accept(request_of(elsewhere, tmp_path / "c"), NOW)
    stranger = replace(kit, facts=kit.facts.model_copy(update={"site": "nobody"}))
    with pytest.raises(SettingsError, match="no site of"):
        federation.accept(join(stranger, tmp_path / "d", NOW).request, NOW)


def test_two_sites_never_share_a_key(federation: Federation, tmp_path: Path) -> None:
    federation.accept(request_of(federation, tmp_path / "home"), NOW)
    (tmp_path / "home" / "site.toml").unlink()
    with pytest.raises(StateError, match="is or was the key of north"):
        federation.accept(request_of(federation, tmp_path / "home", "east"), NOW)


def test_a_renewed_site_keeps_its_key_until_the_new_one_is_accepted(federation: Federation, tmp_path: Path) -> None:
    home = tmp_path / "north"
    old = federation.accept(request_of(federation, home), NOW).record
    federation.renew_site("north", NOW)
    assert federation.record("north").takes_part(NOW)
    with pytest.raises(StateError, match="--new-key"):
        federation.accept(request_of(federation, home), NOW)
    before = (home / "node-key").read_bytes()
    request = request_of(federation, home, new_key=True)
    (aside,) = home.glob("node-key.before-*")
    assert (aside.read_bytes(), mode(aside), mode(home / "node-key")) == (before, 0o600, 0o600)
    assert federation.record("north").key == old.key
    new = federation.accept(request, NOW + 9 * DAY).record
    assert new.key != old.key
    assert new.former_keys == (old.key_fingerprint,)
    assert [new.takes_part(NOW + days * DAY) for days in (108, 109)] == [True, False]


def test_a_revoked_site_and_its_key_never_come_back_unasked(federation: Federation, tmp_path: Path) -> None:
    request = request_of(federation, tmp_path / "north")
    federation.accept(request, NOW)
    assert federation.revoke("north", NOW) == federation.revoke("north", NOW + DAY)
    assert not federation.record("north").takes_part(NOW)
    with pytest.raises(StateError, match="revoked"):
        federation.accept(request, NOW)
    with pytest.raises(StateError, match="federation add"):
        federation.renew_site("north", NOW)
    federation.add("north", [], NOW)
    with pytest.raises(StateError, match="is or was the key of north"):
        federation.accept(request_of(federation, tmp_path / "north"), NOW)
    assert federation.accept(request_of(federation, tmp_path / "north", new_key=True), NOW).is_new


def test_a_site_revoked_before_it_joined_can_not_use_its_kit(federation: Federation, tmp_path: Path) -> None:
    request = request_of(federation, tmp_path / "north")
    federation.revoke("north", NOW)
    assert not federation.kit("north").exists()
    with pytest.raises(StateError, match="revoked"):
        federation.accept(request, NOW)


def test_sites_are_added_later_once_each(federation: Federation, tmp_path: Path) -> None:
    federation.add("west", ["cyst"], NOW)
    assert federation.record("west").labels == ("cyst",)
    assert federation.accept(request_of(federation, tmp_path / "west", "west"), NOW).is_new
    with pytest.raises(StateError, match=r"west is joined already.*federation renew"):
        federation.add("west", [], NOW)
    for name in ("../west", "West", ""):
        with pytest.raises(SettingsError, match="small letters"):
            federation.add(name, [], NOW)
    assert [record.name for record in federation.records()] == ["east", "north", "west"]


def test_a_renewed_certificate_is_of_the_same_authority_for_the_names_now_wanted(federation: Federation) -> None:
    settings = federation.folder / "federation.toml"
    settings.write_text(settings.read_text().replace("192.0.2.7", "192.0.2.8"))
    federation = open_federation(federation.folder)
    tls, kept = federation.certificates, federation.certificates.key.read_bytes()
    federation.renew_server(NOW)
    assert issued_by(tls.certificate.read_bytes(), tls.authority.read_bytes())
    assert "192.0.2.8" in federation.server_facts().names
    assert tls.key.read_bytes() != kept
    assert mode(tls.key) == 0o600
    (former,) = (federation.folder / "tls" / "former").iterdir()
    assert ((former / "server.key").read_bytes(), mode(former / "server.key")) == (kept, 0o600)


class Killed(BaseException):
    """As by a signal: nothing catches it."""


def renew_and_be_killed(federation: Federation) -> None:
    """Renew, and leave the folder as a kill between the two renamings does."""

    def replace(path: Path, target: Path) -> Path:
        if path.name == "server.pem":
            raise Killed
        return rename(path, target)

    rename = Path.replace
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            federation.renew_server(NOW)


def test_a_renewal_that_was_killed_between_key_and_certificate_is_noticed_and_mended_by_the_next(
    federation: Federation,
) -> None:
    tls = federation.certificates
    before = [path.read_bytes() for path in (tls.key, tls.certificate)]
    assert federation.has_server_key()
    renew_and_be_killed(federation)
    assert [path.read_bytes() == held for path, held in zip((tls.key, tls.certificate), before, strict=True)] == [
        False,
        True,
    ]
    with pytest.raises(
        StateError, match=r"server\.key .*is not the key of .*server\.pem.*: run `consilium federation renew"
    ):
        federation.require_valid_certificates(NOW)
    with pytest.raises(StateError, match="is not the key of"):
        serve(federation, threading.Event(), print, lambda: NOW)
    federation.renew_server(NOW)
    federation.require_valid_certificates(NOW)
    assert before in [
        [(former / name).read_bytes() for name in ("server.key", "server.pem")]
        for former in (federation.folder / "tls" / "former").iterdir()
    ]
    tls.key.unlink()
    with pytest.raises(StateError, match=r"server\.key is missing"):
        federation.require_valid_certificates(NOW)


class StandIn:
    """In a SuperLink's place; keeps what the coordinator has it do."""

    def __init__(self) -> None:
        self.port, self.done, self.control = 1, [], self

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def nodes(self) -> tuple[RegisteredNode, ...]:
        return ()

    def revive(self) -> None:
        self.done.append("revive")

    def restart(self) -> None:
        self.done.append("restart")

    def retire(self) -> None:
        pass


class Steps(threading.Event):
    """An ending that comes after steps, one each time the coordinator waits for it."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        super().__init__()
        self.steps = iter(steps)

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - as an event's
        step = next(self.steps, None)
        if step is not None:
            step()
        return step is None


def test_a_running_coordinator_never_takes_up_a_key_that_is_not_the_certificates(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    link, told, tls = StandIn(), [], federation.certificates
    monkeypatch.setattr("consilium.server.coordinator.SuperLink.start", lambda *_, **__: link)
    steps = Steps(
        lambda: None,  # revive
        lambda: renew_and_be_killed(federation),  # neither: it would read them
        lambda: None,
        lambda: federation.renew_server(NOW),  # restart, revive
        lambda: tls.key.rename(tls.key.with_suffix(".away")),
        lambda: tls.key.with_suffix(".away").rename(tls.key),  # restart, revive: whole again
        lambda: None,  # revive
    )
    serve(federation, steps, told.append, lambda: NOW)
    assert link.done == ["revive", "restart", "revive", "restart", "revive", "revive"]
    assert sum("the new certificate is in use" in line for line in told) == 2
    assert [record.getMessage().count("consilium federation renew") for record in caplog.records] == [1, 1]


def test_certificates_that_ran_out_are_refused_with_what_to_do(federation: Federation) -> None:
    federation.require_valid_certificates(NOW + 49 * DAY)
    with pytest.raises(StateError, match="consilium federation renew"):
        federation.require_valid_certificates(NOW + 51 * DAY)
    with pytest.raises(StateError, match="provision the federation anew"):
        federation.require_valid_certificates(NOW + 3651 * DAY)
    with pytest.raises(StateError, match="check the clock"):
        federation.require_valid_certificates(NOW - DAY)
    with pytest.raises(StateError, match="with --force"):
        federation.renew_server(NOW + 3651 * DAY)


def test_a_certificate_of_another_authority_is_refused(federation: Federation, tmp_path: Path) -> None:
    other = provision(tmp_path / "federation.toml", tmp_path / "fed2", NOW)
    federation.certificates.certificate.write_bytes(other.certificates.certificate.read_bytes())
    with pytest.raises(StateError, match="not of this federation's authority"):
        federation.require_valid_certificates(NOW)


def test_a_damaged_folder_is_told_apart_from_none(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no federation's folder"):
        open_federation(tmp_path / "nowhere")
    (federation.folder / "sites" / "north.json").write_text("{")
    with pytest.raises(StateError, match=r"north\.json is damaged"):
        federation.records()


def test_the_shipped_example_is_whole() -> None:
    shipped = load(FederationSettings, Path(__file__).parents[2] / "configs" / "federation.toml")
    assert set(shipped.sites) == {"north", "east"}
    spelled = parse(FederationSettings, {"name": "x", "superlink": {"address": "h:1"}}, "x")
    for key in ("invitation_days", "key_days"):
        assert getattr(shipped, key) == getattr(spelled, key)


def key_line(number: int, folder: Path) -> str:
    return make_node_key(folder / str(number)).read_text().strip()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [key_line(number, tmp_path_factory.mktemp("keys")) for number in range(3)]


@given(data=st.data())
def test_after_the_changes_exactly_the_sites_that_take_part_are_registered(
    keys: list[str], data: st.DataObject
) -> None:
    names = st.sampled_from(["a", "b", "c"])
    known = data.draw(st.dictionaries(names, st.tuples(st.sampled_from(keys), st.booleans(), st.integers(-1, 1))))
    present = data.draw(st.dictionaries(names, st.sampled_from(keys)))
    records = [
        SiteRecord(name=name, labels=("x",), key=key, key_until=NOW + until * DAY, revoked=NOW if revoked else None)
        for name, (key, revoked, until) in known.items()
    ]
    nodes = [
        RegisteredNode(number, name, node_key_pem(key.encode()), False)
        for number, (name, key) in enumerate(present.items())
    ]
    todo = changes(records, nodes, NOW)
    left = {node.name: node.public_key for node in nodes if node not in todo.leave}
    after = left | {record.name: record.key_pem for record in todo.enter}
    assert after == {record.name: record.key_pem for record in records if record.takes_part(NOW)}
    assert not set(left) & {record.name for record in todo.enter}


def test_a_kit_is_read_back_as_it_was_packed(federation: Federation) -> None:
    kit = read_kit(federation.kit("east"))
    assert (kit.facts.site, kit.facts.superlink) == ("east", "hub.example.org:9443")
    assert kit.files["authority.pem"] == federation.certificates.authority.read_bytes()
