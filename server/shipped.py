"""Settings files that are shipped: each is a whole run or a whole experiment, found by its name."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from consilium.common.errors import SettingsError

CONFIGS: Final = Path(str(files("consilium.configs")))


def find_settings(path: Path) -> Path:
    """Find a settings file: as a path, else by name (``demo.toml``, ``paper.toml``) among the shipped ones."""
    return _find(path, sorted(CONFIGS.glob("*.toml")), "settings file")


def find_experiment(path: Path) -> Path:
    """Find an experiment's file: as a path, else by name among the shipped ones."""
    shipped = [*sorted((CONFIGS / "paper").glob("*.toml")), *sorted(CONFIGS.glob("consensus-*.toml"))]
    return _find(path, shipped, "experiment")


def _find(path: Path, shipped: Sequence[Path], kind: str) -> Path:
    if path.is_file():
        return path
    for found in shipped:
        if found.name == path.name:
            return found
    known = ", ".join(found.name for found in shipped)
    raise SettingsError(f"{path}: there is no such {kind}, and none of that name is shipped ({known})")
