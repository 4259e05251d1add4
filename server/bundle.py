"""The Flower app bundle: a name for the code each site has installed, and the settings of a run.

The bundle holds one ``pyproject.toml`` and no code. Flower ships it to every site and puts its folder first on
``sys.path``; as nothing is in it, the ServerApp and ClientApp that run are those of the installed package.
"""

import hashlib
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import tomli_w
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab

from consilium.common.errors import SettingsError

RunConfig = Mapping[str, bool | int | float | str]
"""Flower's run config: flat, kebab-case keys, plain values."""


def write_bundle(
    folder: Path,
    run_config_defaults: RunConfig,
    *,
    server_app: str = "consilium.server.app:app",
    client_app: str = "consilium.clients.app:app",
) -> Path:
    """Write the app folder that `Control.submit` and ``flwr run`` take.

    Parameters
    ----------
    folder
        Made if need be; its ``pyproject.toml`` is replaced.
    run_config_defaults
        Every key a run may set, with its default: Flower refuses overrides of keys that are not here. Keys must not
        contain a dot (Flower would read a table into it).
    server_app, client_app
        ``module:attribute`` of the two apps; the modules must be importable where they run.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    SettingsError
        If a key or value is not one Flower can carry.
    """
    faults = [
        f"run config {key!r} = {value!r}: keys are words without dots, values are bool, int, float or str"
        for key, value in run_config_defaults.items()
        if not key or "." in key or not isinstance(value, bool | int | float | str)
    ]
    if faults:
        raise SettingsError("; ".join(faults))
    document = {
        "project": {
            "name": "consilium",
            "version": version("consilium"),
            "description": "Hospitals teach one segmentation model through soft masks of shared images",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "consilium",
                    "components": {"serverapp": server_app, "clientapp": client_app},
                    "config": dict(run_config_defaults),
                }
            }
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    return folder


def read_bundle(folder: Path) -> Fab:
    """Read an app folder in the form that the SuperLink takes; `SettingsError` if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Flower 1.41 with pathspec 1.0
            content = build_fab_from_disk(folder)
    except ValueError as error:
        raise SettingsError(f"{folder} is no Flower app: {error}") from error
    return Fab(hashlib.sha256(content).hexdigest(), content, {})
