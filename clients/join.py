"""Joining a federation: a kit is unpacked, the site's key is made here, and a join file is written to be sent back.

A kit comes by mail and is not trusted: it is read into memory whole, within a bound; only plain files of known names are
taken; and nothing is written before all of it is checked.
"""

import getpass
import io
import os
import shlex
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Final

from consilium.clients.policy import Policy
from consilium.clients.settings import ConnectionSettings, SiteSettings, load_site
from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.files import write_whole
from consilium.common.identity.certificates import certificate_facts
from consilium.common.identity.key_files import private_folder
from consilium.common.identity.node_keys import make_node_key
from consilium.common.joining import (
    AUTHORITY,
    KIT_FACTS,
    KIT_FILES,
    MAX_KIT_BYTES,
    NODE_KEY,
    SITE_POLICY,
    SITE_SETTINGS,
    JoinRequest,
    KitFacts,
    json_object,
    make_join,
    write_join,
)
from consilium.common.settings import kebab, parse, read_toml, toml_of

_GZIP: Final = 31  # zlib's window size that means a gzip file


@dataclass(frozen=True)
class Kit:
    """A kit that was checked.

    Parameters
    ----------
    facts
        What ``kit.json`` says.
    files
        Content by name: all of `KIT_FILES`.
    """

    facts: KitFacts
    files: dict[str, bytes]


@dataclass(frozen=True)
class Joined:
    """What `join` did.

    Parameters
    ----------
    request
        What is asked of the coordinator.
    path
        The join file, to be sent.
    notes
        What is to be looked at by hand.
    """

    request: JoinRequest
    path: Path
    notes: tuple[str, ...]


def read_kit(path: Path) -> Kit:
    """Read a kit and check all of it; writes nothing.

    Raises
    ------
    DataError
        If it is no kit, damaged, holds anything but the known files, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(MAX_KIT_BYTES + 1)
        files = _members(packed)
        facts = parse(KitFacts, json_object(files[KIT_FACTS]), KIT_FACTS)
        settings = _settings(files)
        authority = certificate_facts(files[AUTHORITY], AUTHORITY)
        _require_agreement(facts, settings, authority.fingerprint)
    except OSError as error:
        raise DataError(f"{path} can not be read: {error}") from None
    except (ValueError, SettingsError, StateError) as error:
        raise DataError(
            f"{path} is not taken as a kit: {error}. Nothing was written; ask the coordinator for a new kit"
        ) from None
    return Kit(facts, files)


def join(kit: Kit, folder: Path, now: datetime, *, new_key: bool = False, force: bool = False) -> Joined:
    """Make this site's key and join file. Done twice with the same kit, it keeps the key and writes the join file anew.

    Parameters
    ----------
    kit
        As `read_kit` gives it.
    folder
        The site's home, mode 0700.
    now
        With a time zone.
    new_key
        Make a new key although there is one; the former is kept beside it. A running site goes on with the former one until
        the coordinator has accepted the new one.
    force
        Replace an authority or settings that are there; the former are kept beside them.

    Raises
    ------
    StateError
        If the kit ran out, or the folder belongs to another federation.
    """
    facts = kit.facts
    if now >= facts.expires:
        raise StateError(
            f"the kit's invitation ran out on {facts.expires:%Y-%m-%d %H:%M}; ask the coordinator for a new kit (or mend this "
            f"machine's clock: it says {now:%Y-%m-%d %H:%M} UTC)"
        )
    if not certificate_facts(kit.files[AUTHORITY], AUTHORITY).is_valid(now):
        raise StateError("the kit's certificate authority is not valid today; ask the coordinator for a new kit")
    folder = private_folder(folder.resolve())
    authority = folder / AUTHORITY
    if authority.exists() and authority.read_bytes() != kit.files[AUTHORITY] and not force:
        raise StateError(
            f"{folder} belongs to another federation ({AUTHORITY} differs): give another --folder, or --force to leave that one"
        )
    key = folder / NODE_KEY
    stamp = f"before-{now:%Y%m%dT%H%M%SZ}-{token_hex(2)}"
    if new_key and key.exists():
        _put_aside(key, stamp)
        _put_aside(key.with_name(f"{NODE_KEY}.pub"), stamp)
    if not key.exists():
        make_node_key(key)
    notes = _lay_out(kit, folder, stamp, force=force)
    request = make_join(facts.site, facts.authority, key, facts.invitation, now)
    path = folder / f"{facts.site}.join"
    write_join(path, request)
    return Joined(request, path, notes)


def _members(packed: bytes) -> dict[str, bytes]:
    """Unpack in memory; `ValueError` says what is wrong."""
    unzip = zlib.decompressobj(_GZIP)
    try:
        content = unzip.decompress(packed, MAX_KIT_BYTES + 1)
    except zlib.error:
        raise ValueError("it is not a .tar.gz archive") from None
    if len(packed) > MAX_KIT_BYTES or len(content) > MAX_KIT_BYTES:
        raise ValueError(f"it is larger than {MAX_KIT_BYTES} bytes, which no kit is")
    if not unzip.eof or unzip.unused_data:
        raise ValueError("the archive is cut, or something was put after it")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for entry in tar:
                if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
                    raise ValueError(f"{entry.name!r} is a link, a folder or a device; a kit holds plain files only")
                if entry.name not in KIT_FILES or entry.name in files:
                    raise ValueError(f"{entry.name!r} is not a file of a kit, or is there twice")
                member = tar.extractfile(entry)
                files[entry.name] = member.read() if member else b""
    except (tarfile.TarError, EOFError, OverflowError, ArithmeticError) as error:
        raise ValueError(f"the archive is damaged: {error}") from None
    missing = [name for name in KIT_FILES if name not in files]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return files


def _require_agreement(facts: KitFacts, settings: SiteSettings, authority: str) -> None:
    """Refuse settings that say more than who the site is, whom it trusts and where it connects to.

    Whoever wrote the kit could else name a teacher that is a program, a folder outside the site's, or a policy.
    """
    connection = ConnectionSettings(superlink=facts.superlink, ca=AUTHORITY, node_key=NODE_KEY)
    allowed = SiteSettings(
        name=facts.site,
        labels=settings.labels,
        policy=Policy(trusted_signers=(facts.signer,)),
        connection=connection,
    )
    wrong = [kebab(key) for key in SiteSettings.model_fields if getattr(settings, key) != getattr(allowed, key)]
    if authority != facts.authority:
        wrong.append(AUTHORITY)
    if wrong:
        raise ValueError(
            f"its parts contradict each other, or go beyond a kit's (other than defaults): {', '.join(wrong)}"
        )


def _settings(files: Mapping[str, bytes]) -> SiteSettings:
    """The settings of a kit, its policy with them."""
    values = toml_of(files[SITE_SETTINGS].decode())
    if "policy" in values:
        raise ValueError(f"it has a policy in {SITE_SETTINGS} and another in {SITE_POLICY}")
    policy = parse(Policy, toml_of(files[SITE_POLICY].decode()), SITE_POLICY)
    return parse(SiteSettings, values | {"policy": policy}, SITE_SETTINGS)


def _lay_out(kit: Kit, folder: Path, stamp: str, *, force: bool) -> tuple[str, ...]:
    """Write the kit's files; settings and policy that are there stay, unless ``force``."""
    kept = set() if force else {name for name in (SITE_SETTINGS, SITE_POLICY) if (folder / name).exists()}
    if SITE_SETTINGS in kept and "policy" in read_toml(folder / SITE_SETTINGS):
        kept.add(SITE_POLICY)  # a site has one policy
    start = _start_command(folder)
    words = {
        "@USER@": getpass.getuser(),
        "@UID@": f"{os.getuid()}:{os.getgid()}",
        "@FOLDER@": str(folder),
        "@START@": start,
    }
    for name in KIT_FILES:
        if name == KIT_FACTS or name in kept:
            continue  # the invitation is not kept
        path, text = folder / name, kit.files[name].decode("utf-8", "replace")
        if name in ("consilium-site.service", "compose.yaml"):
            for word, value in words.items():
                text = text.replace(word, value)
        content = kit.files[name] if name == AUTHORITY else text.encode()
        if path.exists() and path.read_bytes() != content and name != "README.md":
            _put_aside(path, stamp)
        write_whole(path, content, 0o600)
    return tuple(_what_they_lack(kit, folder)) if kept else ()


def _what_they_lack(kit: Kit, folder: Path) -> Iterator[str]:
    """Say what of the kit's the site's own settings and policy, which were kept, lack."""
    held, offered = load_site(folder / SITE_SETTINGS).settings, _settings(kit.files)
    if (held.name, held.connection) != (offered.name, offered.connection):
        beside = _put_beside(kit, folder, SITE_SETTINGS)
        yield f"{folder / SITE_SETTINGS} was there and is kept; copy name and [connection] from {beside}"
    if kit.facts.signer not in held.policy.trusted_signers:
        beside = _put_beside(kit, folder, SITE_POLICY)
        yield f"your own policy was there and is kept; copy trusted-signers from {beside}"


def _put_beside(kit: Kit, folder: Path, name: str) -> str:
    beside = folder / f"{Path(name).stem}.kit.toml"
    write_whole(beside, kit.files[name], 0o600)
    return beside.name


def _put_aside(path: Path, stamp: str) -> None:
    if path.exists():
        path.replace(path.with_name(f"{path.name}.{stamp}"))


def _start_command(folder: Path) -> str:
    """The command that starts the site, as a systemd unit spells it."""
    found = shutil.which("consilium-site")
    command = [found] if found else [sys.executable, "-P", "-m", "consilium.clients.cli"]
    words = [*command, "start", str(folder / SITE_SETTINGS)]
    return " ".join(shlex.quote(word).replace("%", "%%") for word in words)
