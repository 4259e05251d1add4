"""Finding what a site names by import path. What is imported runs here, with all rights of this process: it is the site's own."""

import importlib
import sys
from pathlib import Path
from typing import Any

from consilium.common.errors import SettingsError


def imported(key: str, target: str, code: Path | None) -> Any:
    """Import ``pkg.mod:name``.

    Parameters
    ----------
    key
        Of the settings, for messages.
    target
        The import path.
    code
        A folder that is searched after everything that is installed.

    Raises
    ------
    SettingsError
        If there is no such module or name, or importing it fails.
    """
    module, _, name = target.partition(":")
    if code is not None:
        if not code.is_dir():
            raise SettingsError(f"teacher.code: there is no folder {code}")
        if str(code) not in sys.path:
            sys.path.append(str(code))  # last: nothing installed is replaced; it stays, since modules import lazily
            importlib.invalidate_caches()
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise SettingsError(
            f"{key} = {target!r} cannot be imported: {type(error).__name__}: {error}. Install its package in this environment, "
            "or name its folder in teacher.code"
        ) from error
    if not callable(found):
        raise SettingsError(f"{key} = {target!r} must be callable; it is a {type(found).__name__}")
    return found
