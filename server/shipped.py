"""Settings files that are shipped: each is a whole run, found by its name."""

from importlib.resources import files
from pathlib import Path

from consilium.common.errors import SettingsError


def find_settings(path: Path) -> Path:
    """Find a settings file: as a path, else by name (``demo.toml``, ``paper.toml``) among the shipped ones."""
    if path.is_file():
        return path
    shipped = Path(str(files("consilium.configs")))
    if (shipped / path.name).is_file():
        return shipped / path.name
    known = ", ".join(sorted(entry.name for entry in shipped.glob("*.toml")))
    raise SettingsError(f"{path}: there is no such settings file, and none of that name is shipped ({known})")
