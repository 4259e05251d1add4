"""The command ``consilium follow-up``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def follow_up(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="run folder of the finished study")],
    key: Annotated[Path, typer.Option(help="the coordinator's Ed25519 signing key, that of the catalogue")],
    name: Annotated[str, typer.Option(help="the new study's name; FIRST's with -follow-up by default")] = "",
    run: Annotated[Path | None, typer.Option("--run", help="run folder; runs/NAME of the study by default")] = None,
) -> None:
    """Make ready a study on the same images that the sites answer with the first one's student, as each fine-tuned it.

    Its student goes on from the first one's. Every site names its fine-tuned student as its teacher by a command of its own,
    and is asked, and consents, anew.
    """
    from consilium.common.identity.signing import load_signing_key
    from consilium.server import follow_up as making
    from consilium.server.run_folder import RunFolder

    before = RunFolder(first)
    study = before.open_study()
    name = name or making.default_name(study)
    root = run or Path("runs") / name
    made = making.follow(before, RunFolder(root), name, load_signing_key(key))
    console = Console()

    def tell(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    tell(f"{name} follows {study.name}: {root.resolve()}")
    tell(f"At {', '.join(made.fine_tuned)}, before the study is shown to them:")
    tell(f"  consilium-site adopt SITE.toml {study.name}")
    if made.others:
        tell(f"{', '.join(made.others)} did not fine-tune the student, and may answer with their teachers as before.")
    tell("Then here, with --coordinator or --superlink as for the first:")
    tell(f"  consilium run {root / 'study.toml'} --run {root}")
