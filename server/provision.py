"""Making a federation: its folder, whole or not at all. `federation` says what lies in it."""

import contextlib
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from secrets import token_hex

from consilium.common.errors import StateError
from consilium.common.identity.certificates import make_authority
from consilium.common.identity.key_files import private_folder
from consilium.common.identity.signing import make_signing_key, public_key_of
from consilium.common.settings import load
from consilium.server.federation import Federation, in_use
from consilium.server.federation_settings import FederationSettings


def provision(settings_file: Path, folder: Path, now: datetime, *, force: bool = False) -> Federation:
    """Make a federation: authority, SuperLink's certificate, signing key, a kit for every site of the file.

    Parameters
    ----------
    settings_file
        A ``federation.toml``.
    folder
        Receives it all, mode 0700.
    now
        With a time zone.
    force
        Put a federation that is there already aside, under a name with the date, and make a new one.

    Raises
    ------
    SettingsError
        If the settings are wrong.
    StateError
        If the folder holds something, and ``force`` is not given.
    """
    settings = load(FederationSettings, settings_file)
    content = settings_file.read_bytes()
    folder = folder.resolve()
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise StateError(
                f"{folder} is not empty, and keys are never overwritten: to add a site run `consilium federation add {folder} "
                "NAME`; to start anew, with every site joining again, give --force (what is there is put aside)"
            )
        with in_use(folder):  # not under a coordinator that runs
            folder.rename(folder.with_name(f"{folder.name}.before-{now:%Y%m%dT%H%M%SZ}-{token_hex(2)}"))
    # Made under another name first, so that a stopped provisioning leaves nothing that looks whole.
    making = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(making, ignore_errors=True)
    private_folder(making)
    with _removed_on_error(making):
        federation = Federation(making, settings)
        (making / "federation.toml").write_bytes(content)
        authority = make_authority(making / "tls", f"consilium {settings.name}"[:64])
        authority.certificate.rename(making / "authority.pem")
        federation.certify(making / "tls")
        key = make_signing_key(federation.signing_key)
        (making / "signing.pub").write_text(public_key_of(key).hex() + "\n", "ascii")
        private_folder(making / "sites")
        for name, site in settings.sites.items():
            federation.add(name, site.labels, now)
        if folder.exists():
            folder.rmdir()
        making.rename(folder)
    return Federation(folder, settings)


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
