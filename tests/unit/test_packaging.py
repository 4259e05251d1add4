"""One package in four folders: what is listed, what is exported, who may import whom."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("clients", "common", "configs", "server")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_package_is_listed() -> None:
    found = {
        "consilium." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_there_is_no_folder_that_would_shadow_the_package() -> None:
    assert not (ROOT / "consilium").exists()


@pytest.mark.parametrize(
    ("folder", "forbidden"), [("common", ("server", "clients")), ("server", ("clients",)), ("clients", ("server",))]
)
def test_rooms_import_only_what_they_may(folder: str, forbidden: tuple[str, ...]) -> None:
    wrong = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        if path.is_relative_to(ROOT / folder)
        for name in imported(path)
        if any(name == f"consilium.{room}" or name.startswith(f"consilium.{room}.") for room in forbidden)
    }
    assert not wrong


@pytest.mark.parametrize(
    "module",
    [
        "server/exclusion.py",
        "server/fusion/weighted_mean.py",
        "clients/policy.py",
        "common/metrics.py",
        "common/evaluation/per_image.py",
        "common/evaluation/statistics.py",
        "common/evaluation/summary.py",
    ],
)
def test_the_core_knows_no_flower_no_sockets_and_no_paths(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(ROOT / module)} & {
        "flwr",
        "grpc",
        "socket",
        "pathlib",
        "subprocess",
    }


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    names = {text.split(">")[0].split("=")[0].split("[")[0].strip().lower() for text in wanted}
    assert names <= pinned
