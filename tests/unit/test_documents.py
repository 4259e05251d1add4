"""What README and docs say can be followed: links lead somewhere, commands and their options exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import Command
from typer.main import get_command

from consilium.clients.cli import app as site
from consilium.server.cli import app as coordinator

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for place in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "configs/**/*.toml", "examples/**/*.md")
    for path in ROOT.glob(place)
)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]*)`")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def test_every_link_leads_to_a_file_and_to_a_heading_in_it() -> None:
    broken, seen = [], 0
    for page in PAGES:
        text = CODE.sub("", FENCED.sub("", page.read_text()))
        for link in re.findall(r"]\(([^)\s]+)\)", text):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            if re.match(r"[a-z]+:", link):
                continue
            seen += 1
            if not target.exists() or (heading and heading not in anchors(target)):
                broken.append((page.relative_to(ROOT).as_posix(), link))
    assert seen > 100
    assert not broken


def commands(command: Command, *name: str) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Each command's words, and its options."""
    yield name, {option for one in command.params for option in one.opts} | {"--help"}
    for word, one in getattr(command, "commands", {}).items():
        yield from commands(one, *name, word)


SIGNED = {
    *("consilium catalogue 1", "consilium study key 1", "consilium sealed answer 1"),
    *("consilium exchange 1", "consilium exchange request 1", "consilium exchange answer 1"),
}
"""What signatures begin with, in docs/wire.md: no commands."""
KNOWN = dict([*commands(get_command(coordinator), "consilium"), *commands(get_command(site), "consilium-site")])


def told(page: Path) -> Iterator[list[str]]:
    """The words of every command on a page that has more than its name."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".toml":
        code = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    else:
        code = [*"\n".join(FENCED.findall(text)).splitlines(), *CODE.findall(FENCED.sub("", text))]
        code += [line for line in text.splitlines() if line.startswith("    ")]
    for line in code:
        if found := re.match(r"\s*(?:\$ )?(consilium(?:-site)? [^#`|;]*)", line):
            yield found.group(1).split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_and_its_options_exist(page: Path) -> None:
    for words in told(page):
        if " ".join(words) in SIGNED:
            continue
        name = max((known for known in KNOWN if tuple(words[: len(known)]) == known), key=len)
        rest = words[len(name) :]
        group = any(other[: len(name)] == name != other for other in KNOWN)
        assert not group or not rest or rest[0].startswith("-"), f"there is no command {' '.join(words)}"
        unknown = {word.strip("[](),.") for word in rest if word.startswith(("--", "[--"))} - KNOWN[name]
        assert not unknown, f"{' '.join(name)} has no {', '.join(unknown)}"
