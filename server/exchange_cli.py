"""``consilium exchange``: a study's questions and answers in files, for sites without a network path."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

exchange_app = typer.Typer(
    help="Ask sites without a network path: a request file out, a signed answer file in.", no_args_is_help=True
)

RunArgument = Annotated[Path, typer.Argument(help="run folder; the study was started in it once")]


@exchange_app.command(
    epilog="Example:  consilium exchange export runs/first --site west --key federation/signing.pem --out west.request"
)
def export(
    run: RunArgument,
    site: Annotated[str, typer.Option(help="one of the study's collect.offline")],
    key: Annotated[Path, typer.Option(help="the coordinator's Ed25519 signing key, that of the catalogue")],
    out: Annotated[Path | None, typer.Option(help="the file; STUDY-SITE.request here by default")] = None,
) -> None:
    """Write one signed file with all that a site is asked: the study, the list, the images, the key to seal answers to.

    Carry it to the site, whose command is `consilium-site answer`. It holds the shared images; nothing else in it is secret.
    """
    from consilium.common.catalogue import open_catalogue
    from consilium.common.identity.signing import fingerprint, load_signing_key
    from consilium.server import exchange
    from consilium.server.board import image_progress
    from consilium.server.run_folder import RunFolder

    console, folder = Console(), RunFolder(run)
    folder.open_study()
    catalogue = open_catalogue(folder.catalogue)
    with image_progress(console, "images are written", len(catalogue)) as show:
        made = exchange.export(run, site, load_signing_key(key), out, show)
    console.print(
        f"Request for {site}: {made.resolve()}, {made.stat().st_size:,} bytes", highlight=False, soft_wrap=True
    )
    console.print(f"signed by {fingerprint(catalogue.signer)}", highlight=False, soft_wrap=True)


@exchange_app.command(
    "import", epilog="Example:  consilium exchange import runs/first west.answer --signed-by SHA256:..."
)
def import_(
    run: RunArgument,
    answer: Annotated[Path, typer.Argument(help="what `consilium-site answer` wrote")],
    signed_by: Annotated[
        str, typer.Option(help="fingerprint of the site's key, as the site told it; only for a site's first answer")
    ] = "",
) -> None:
    """Check an answer file and take it into the study; its next start goes on as if the site had answered over the network."""
    from consilium.server import exchange
    from consilium.server.app import open_run
    from consilium.server.board import image_progress
    from consilium.server.run_folder import RunFolder

    console, folder = Console(), RunFolder(run)
    folder.open_study()
    with folder.locked():
        _, study = open_run(run)
        try:
            with image_progress(console, "answers are checked", len(study.catalogue)) as show:
                taken = exchange.import_answer(study, answer, signed_by, show)
        finally:
            study.ledger.close()
    console.print(
        f"{taken.site}: {taken.masks} masks are taken in, {taken.abstained} images are not answered; signed by {taken.signer}. "
        f"Start {study.study.name} again: it goes on with them.",
        highlight=False,
        soft_wrap=True,
    )
