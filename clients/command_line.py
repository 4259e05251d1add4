"""What the commands of ``consilium-site`` share: a site's settings as an argument, lines, and a count of images."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from consilium.clients.settings import SiteHome

SettingsFile = Annotated[
    Path, typer.Argument(metavar="SITE.toml", help="The site's settings; its folder holds the site.")
]


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show how many images are done, on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def load(settings: Path) -> "SiteHome":
    """Read a site's settings."""
    from consilium.clients.settings import load_site

    return load_site(settings)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
