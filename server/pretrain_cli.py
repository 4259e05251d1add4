"""The command ``consilium pretrain``."""

import textwrap
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from rich.console import Console
from rich.progress import Progress as Bar

from consilium.common.settings import parse, read_toml
from consilium.common.study import Study
from consilium.server.shipped import find_settings


def pretrain(
    study: Annotated[Path, typer.Argument(help="settings of a study, TOML, or the name of a shipped file")],
    out: Annotated[Path, typer.Option(help="folder for the weights")],
    images: Annotated[int, typer.Option(min=1, help="synthetic images that are made")] = 1600,
    budget: Annotated[int, typer.Option(min=1, help="images seen in all, repeats counted")] = 16_000,
) -> None:
    """Let a study's student see synthetic ultrasound first: a start for it, and for sites, where there are no pretrained weights.

    Stopped and started again, it goes on where it was.
    """
    from consilium.server.pretrain import pretrain as run

    path, console = find_settings(study), Console()
    document = read_toml(path)
    document.pop("simulation", None)  # a simulated study is a study
    settings = parse(Study, document, str(path))
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task(f"{settings.student.network.name} learns from {images} phantoms", total=None)
        weights = run(
            settings,
            out,
            images=images,
            budget=budget,
            on_step=lambda at: bar.update(task, completed=at.step, total=at.steps),
        )
    network = settings.student.network.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for_study, for_site = (
        textwrap.indent(tomli_w.dumps({whose: {"network": table}}), "  ")
        for whose, table in (
            ("student", {"weights": str(weights.resolve())}),
            ("teacher", network | {"weights": f"/where/the/copy/is/{weights.name}"}),
        )
    )
    told = (
        f"Give the study a start:\n\n{for_study}\n"
        "A site that trains its teacher may begin with a copy of the file (no patient's image is in it), in its site.toml:\n\n"
        f"{for_site}"
    )
    console.print(told, highlight=False, markup=False, soft_wrap=True)
