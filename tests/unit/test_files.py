"""Files are seen as they were or as they are to be, whoever is killed, fails or writes at the same time."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consilium.common.errors import StateError
from consilium.common.files import create_whole, replacing, write_text, write_whole
from consilium.common.identity.key_files import write_private
from consilium.common.identity.signing import load_signing_key, public_key_of, signing_key


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def _umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
def test_a_mode_is_as_given_and_else_that_of_any_new_file(tmp_path: Path) -> None:
    for given, expected in ((None, 0o640), (0o600, 0o600), (0o664, 0o664)):
        write_whole(tmp_path / "file", b"x", given)
        assert mode(tmp_path / "file") == expected
    create_whole(tmp_path / "new", b"x", 0o600)
    assert mode(tmp_path / "new") == 0o600
    assert names(tmp_path) == ["file", "new"]


def test_a_file_takes_its_name_only_when_its_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda file: seen.append((os.fstat(file).st_size, path.read_text())))
    write_text(path, "a new one")
    with replacing(path) as partial:
        partial.write_text("the newest one")
    assert seen == [(9, "old"), (14, "a new one")]
    monkeypatch.setattr("os.fsync", lambda file: seen.append((os.fstat(file).st_size, str((tmp_path / "k").exists()))))
    create_whole(tmp_path / "k", b"key", 0o600)
    assert seen[2:] == [(3, "False")]


def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    def stopped() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        stopped()
    monkeypatch.setattr("os.fsync", full)
    for write in (lambda: write_text(path, "new"), lambda: create_whole(tmp_path / "key", b"new", 0o600)):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_two_that_write_one_file_never_mix_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as one, one.open("w") as first:
        first.write("one")
        with replacing(path) as two:
            two.write_text("the other")
        assert path.read_text() == "the other"
    assert path.read_text() == "one"
    assert names(tmp_path) == ["file"]


def test_a_new_file_never_overwrites_one_that_another_process_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    monkeypatch.setattr("os.fsync", lambda _file: path.write_bytes(b"theirs"))  # after any look whether it is there
    with pytest.raises(StateError, match=r"never overwritten; .*key exists: move it away first"):
        write_private(path, b"ours")
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["key"]


def test_a_new_file_is_made_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    create_whole(tmp_path / "key", b"ours", 0o600)
    with pytest.raises(FileExistsError):
        create_whole(tmp_path / "key", b"another", 0o600)
    assert ((tmp_path / "key").read_bytes(), mode(tmp_path / "key")) == (b"ours", 0o600)
    assert names(tmp_path) == ["key"]


_KILLED = """
import os, sys
from pathlib import Path
from consilium.common.identity.signing import make_signing_key
os.fsync = lambda file: os._exit(9)
make_signing_key(Path(sys.argv[1]))
"""


def test_a_process_killed_while_it_writes_a_key_leaves_none_and_the_next_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert subprocess.run([sys.executable, "-c", _KILLED, path], check=False).returncode == 9
    assert not path.exists()
    assert public_key_of(signing_key(path)) == public_key_of(load_signing_key(path))


def test_whoever_is_first_makes_the_key_that_all_have(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}" / "key"
        with ThreadPoolExecutor(8) as pool:
            held = set(pool.map(lambda _: public_key_of(signing_key(path)), range(8)))  # noqa: B023 - used up here
        assert held == {public_key_of(load_signing_key(path))}
        assert names(path.parent) == ["key"]
