"""A kit comes by mail: what is no kit leaves nothing behind; what is one makes a site."""

import gzip
import io
import json
import stat
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.clients.join import join, read_kit
from consilium.clients.settings import load_site
from consilium.common.errors import DataError, StateError
from consilium.common.joining import KIT_FILES, MAX_KIT_BYTES
from consilium.server.federation import utc_now
from consilium.server.kit import pack
from consilium.server.provision import provision

NOW = utc_now()
SETTINGS = 'name = "trial"\n[superlink]\naddress = "hub.example.org:9443"\n[sites.north]\n'


@pytest.fixture(autouse=True)
def _the_time_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are valid from when they are made on, which may be long after this file was read."""
    monkeypatch.setitem(globals(), "NOW", utc_now() - timedelta(seconds=2))  # a certificate's times are whole seconds


@pytest.fixture(scope="module")
def kit_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    (folder / "f.toml").write_text(SETTINGS)
    return provision(folder / "f.toml", folder / "fed", utc_now()).kit("north")


@pytest.fixture(scope="module")
def files(kit_path: Path) -> dict[str, bytes]:
    return read_kit(kit_path).files


Files = dict[str, bytes]


def archive(files: Files, *extra: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in extra:
            tar.addfile(entry)
    return packed.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def without(files: Files, name: str) -> Files:
    return {other: content for other, content in files.items() if other != name}


def swapped(files: Files, name: str, old: str, new: str) -> bytes:
    text = files[name].decode()
    assert old in text
    return archive(files | {name: text.replace(old, new).encode()})


def program(files: Files) -> bytes:
    """A kit whose teacher is a command, to be run whenever the site's doctor or gateway opens it."""
    before, _, rest = files["site.toml"].decode().partition("[teacher]")
    after = rest[rest.index("# The site's labelled images") :]
    teacher = '[teacher]\nkind = "command"\ncommand = ["touch", "{images}", "{masks}"]\noutput = "binary"\n'
    return archive(files | {"site.toml": (before + teacher + after).encode()})


HOSTILE: dict[str, Callable[[Files], bytes]] = {
    "a path upwards": lambda files: archive(files | {"../evil": b"x"}),
    "an absolute path": lambda files: archive(files | {"/tmp/evil": b"x"}),  # noqa: S108 - the evil
    "a file nobody asked for": lambda files: archive(files | {".bashrc": b"x"}),
    "a node key": lambda files: archive(files | {"node-key": b"x"}),
    "a symbolic link": lambda files: archive(
        without(files, "README.md"), special("README.md", tarfile.SYMTYPE, "/etc/passwd")
    ),
    "a hard link": lambda files: archive(
        without(files, "README.md"), special("README.md", tarfile.LNKTYPE, "site.toml")
    ),
    "a folder": lambda files: archive(files, special("folder", tarfile.DIRTYPE)),
    "a pipe": lambda files: archive(without(files, "README.md"), special("README.md", tarfile.FIFOTYPE)),
    "a device": lambda files: archive(without(files, "README.md"), special("README.md", tarfile.CHRTYPE)),
    "a file twice": lambda files: archive(files, special("site.toml", tarfile.REGTYPE)),
    "a file missing": lambda files: archive(without(files, "authority.pem")),
    "a bomb": lambda _: gzip.compress(bytes(100 * MAX_KIT_BYTES)),
    "a big file": lambda _: bytes(2 * MAX_KIT_BYTES),
    "something behind the archive": lambda files: archive(files) + gzip.compress(b"more"),
    "no archive": lambda _: b"<html>",
    "nothing": lambda _: b"",
    "facts that are a list": lambda files: archive(files | {"kit.json": b"[]"}),
    "facts with more": lambda files: archive(files | {"kit.json": files["kit.json"].replace(b"{", b'{"a": 1,', 1)}),
    "settings for another site": lambda files: swapped(files, "site.toml", 'name = "north"', 'name = "east"'),
    "settings for another server": lambda files: swapped(files, "site.toml", "hub.example.org:9443", "evil.org:1"),
    "a key elsewhere": lambda files: swapped(files, "site.toml", '"node-key"', '"/home/me/.ssh/id_ecdsa"'),
    "a signer more": lambda files: swapped(
        files, "policy.toml", "trusted-signers = [", f'trusted-signers = ["{"0" * 64}", '
    ),
    "trust in everyone": lambda files: swapped(
        files, "policy.toml", 'trusted-signers = ["', 'auto-approve = true\n# trusted-signers = ["'
    ),
    "a teacher that is a program": lambda files: program(files),
    "a teacher's folder elsewhere": lambda files: swapped(
        files, "site.toml", "[teacher]", '[teacher]\nfolder = "../x"'
    ),
    "images elsewhere": lambda files: swapped(files, "site.toml", 'folder = ""', 'folder = "/srv/patients"'),
    "a gateway for all": lambda files: swapped(files, "site.toml", "unix:gateway.sock", "127.0.0.1:5000"),
    "a second policy": lambda files: archive(files | {"site.toml": files["site.toml"] + b"\n[policy]\nlevels = 256\n"}),
    "a policy": lambda files: swapped(files, "policy.toml", "mask-budget = 1000000", "mask-budget = 2000000"),
    "settings that are no TOML": lambda files: archive(files | {"site.toml": b"\xff"}),
    "an authority that is none": lambda files: archive(files | {"authority.pem": b"-----BEGIN CERTIFICATE-----"}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_kit_is_refused_and_nothing_is_written(case: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / "kit.tar.gz").write_bytes(HOSTILE[case](files))
    with pytest.raises(DataError, match="Nothing was written"):
        read_kit(tmp_path / "kit.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["kit.tar.gz"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_archive_is_refused_or_reads_as_it_was(
    files: Files, tmp_path: Path, places: list[tuple[float, int]]
) -> None:
    content = bytearray(gzip.decompress(pack(files, 0)))
    for place, byte in places:
        content[int(place * len(content))] = byte
    path = tmp_path / "kit.tar.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    try:
        kit = read_kit(path)
    except DataError:
        return
    assert set(kit.files) == set(KIT_FILES)


def test_a_kit_that_names_a_program_is_refused_for_its_teacher(files: Files, tmp_path: Path) -> None:
    (tmp_path / "kit.tar.gz").write_bytes(program(files))
    with pytest.raises(DataError, match=r"beyond a kit's \(other than defaults\): teacher\."):
        read_kit(tmp_path / "kit.tar.gz")


def test_no_file_is_no_kit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can not be read"):
        read_kit(tmp_path / "absent")


def test_a_site_that_joins_has_all_it_needs_for_its_owner_alone(kit_path: Path, tmp_path: Path) -> None:
    joined = join(read_kit(kit_path), tmp_path / "north", NOW)
    home = tmp_path / "north"
    private = {path.name for path in home.iterdir() if stat.S_IMODE(path.stat().st_mode) == 0o600}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert private == set(KIT_FILES) - {"kit.json"} | {"node-key"}
    assert {path.name for path in home.iterdir()} - private == {"node-key.pub", "north.join"}
    assert joined.notes == ()
    invitation = json.loads(read_kit(kit_path).files["kit.json"])["invitation"]
    assert not any(invitation in path.read_text() for path in home.iterdir())
    for name in ("consilium-site.service", "compose.yaml"):
        text = (home / name).read_text()
        assert str(home) in text
        assert "@" not in text
    service = pytest.importorskip("yaml").safe_load((home / "compose.yaml").read_text())["services"]["site"]
    assert service["volumes"] == [f"{home}:/site"]
    assert service["build"]["dockerfile_inline"].startswith("FROM python:")


def test_joining_again_keeps_the_key_and_what_was_changed_by_hand(kit_path: Path, tmp_path: Path) -> None:
    home, kit = tmp_path / "north", read_kit(kit_path)
    first = join(kit, home, NOW)
    changes = {"site.toml": ("channels = 1", "channels = 3"), "policy.toml": ("levels = 256", "levels = 2")}
    for name, (old, new) in changes.items():
        (home / name).write_text((home / name).read_text().replace(old, new))
    before = {name: (home / name).read_text() for name in changes}
    second = join(kit, home, NOW + timedelta(hours=1))
    assert second.request.public_key == first.request.public_key
    assert second.notes == ()
    assert {name: (home / name).read_text() for name in changes} == before
    assert load_site(home / "site.toml").settings.policy.levels == 2


def test_settings_that_were_there_stay_and_it_is_said_what_they_lack(kit_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "north"
    home.mkdir()
    (home / "site.toml").write_text('name = "mine"\n')
    joined = join(read_kit(kit_path), home, NOW)
    assert (home / "site.toml").read_text() == 'name = "mine"\n'
    assert [note.partition("; ")[2] for note in joined.notes] == ["copy name and [connection] from site.kit.toml"]
    assert load_site(home / "site.toml").settings.policy.trusted_signers == (kit_signer(kit_path),)
    assert load_site(home / "site.kit.toml").settings.name == "north"
    assert join(read_kit(kit_path), home, NOW, force=True).notes == ()
    assert load_site(home / "site.toml").settings.name == "north"
    (kept,) = home.glob("site.toml.before-*")
    assert kept.read_text() == 'name = "mine"\n'


def test_a_site_keeps_its_own_policy_wherever_it_stands_and_has_one_only(kit_path: Path, tmp_path: Path) -> None:
    kit, mine = read_kit(kit_path), f'trusted-signers = ["{"1" * 64}"]\n'
    for name, content in (("site.toml", f'name = "north"\n[policy]\n{mine}'), ("policy.toml", mine)):
        home = tmp_path / name
        home.mkdir()
        (home / name).write_text(content)
        joined = join(kit, home, NOW)
        assert load_site(home / "site.toml").settings.policy.trusted_signers == ("1" * 64,)
        assert "copy trusted-signers from policy.kit.toml" in joined.notes[-1]
        assert kit_signer(kit_path) in (home / "policy.kit.toml").read_text()
    assert not (tmp_path / "site.toml" / "policy.toml").exists()


def kit_signer(path: Path) -> str:
    return read_kit(path).facts.signer


def test_a_folder_of_another_federation_is_left_alone_unless_forced(kit_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "north"
    join(read_kit(kit_path), home, NOW)
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    (tmp_path / "f.toml").write_text(SETTINGS)
    other = read_kit(provision(tmp_path / "f.toml", tmp_path / "fed", NOW).kit("north"))
    with pytest.raises(StateError, match="another federation"):
        join(other, home, NOW)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    joined = join(other, home, NOW, force=True)
    assert (home / "authority.pem").read_bytes() == other.files["authority.pem"]
    assert (home / "node-key").read_bytes() == before["node-key"]
    assert joined.request.authority == other.facts.authority
