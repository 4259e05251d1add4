"""``consilium-site review``, ``approve``, ``revoke``, ``answer`` and ``audit``: what a site's person decides, and sees of it."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.clients.command_line import SettingsFile, counting, load, say
from consilium.common.errors import SettingsError

if TYPE_CHECKING:
    from consilium.clients.review import Listed
    from consilium.clients.settings import SiteHome

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Its name, the first digits of its digest, or a request file.")
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.command(
        "review",
        epilog="Examples: consilium-site review hospital/site.toml\n\nconsilium-site review hospital/site.toml breast-2026",
    )(review)
    app.command(epilog="Example: consilium-site approve hospital/site.toml breast-2026 --until 2027-03-31")(approve)
    app.command(epilog="Example: consilium-site revoke hospital/site.toml breast-2026")(revoke)
    app.command(epilog="Example: consilium-site answer hospital/site.toml first-west.request --out first-west.answer")(
        answer
    )
    app.command(epilog="Example: consilium-site audit hospital/site.toml")(audit)


def review(
    settings: SettingsFile,
    study: Annotated[
        str,
        typer.Argument(
            metavar="[STUDY]", help="Its name, the first digits of its digest, or a request file; none: list all."
        ),
    ] = "",
) -> None:
    """See which studies were shown to this site, and of one: who asks, for what, and which images.

    Writes pictures of the shared images, and of those that look like the site's own training images: they are not answered.
    """
    home = load(settings)
    from rich.console import Console
    from rich.table import Table

    from consilium.clients import review as reviews
    from consilium.common.identity.signing import fingerprint

    console = Console()
    if not study:
        shown = reviews.listed(home)
        if not shown:
            console.print(f"No study was shown to {home.settings.name} yet.")
            return
        table = Table(title=f"studies shown to {home.settings.name}")
        for column in ("study", "digest", "images here", "signed by", "state"):
            table.add_column(column, overflow="fold")
        for one in shown:
            held = f"{len(one.shown.images.held())} of {len(one.shown.manifest.images)}"
            state = one.state + (f" until {one.until}" if one.until else "")
            table.add_row(one.shown.study.name, one.digest[:12], held, fingerprint(one.shown.signer), state)
        console.print(table)
        return
    one = _find(home, study)
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in reviews.in_words(home, one):
        table.add_row(*row)
    console.print(table)
    looked = reviews.look(home, one)
    say(f"{looked.held} of {looked.images} images are here: {looked.folder / 'images.png'}")
    if looked.near:
        say(
            f"{len(looked.near)} of them look like your own training images and are NOT answered: "
            f"{looked.folder / 'near-duplicates.png'}"
        )
    elif not looked.own:
        say("No training images are packed here ([data]), so none of them could be told to be your own.")
    elif home.settings.policy.near_duplicate < 1:
        say(f"None of them looks like one of your own {looked.own} training images.")


def approve(
    settings: SettingsFile,
    study: StudyName,
    until: Annotated[
        str, typer.Option(metavar="DATE", help="Last day, in UTC, like 2027-03-31; 90 days from now by default.")
    ] = "",
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Approve though not all of the study's images are here to be seen.")
    ] = False,
) -> None:
    """Consent to a study on its catalogue, until a day, signed with the site's own consent key.

    Review it first. What the policy does not allow stays forbidden.
    """
    home = load(settings)
    from datetime import UTC, date, datetime, timedelta

    from consilium.clients.consent import DEFAULT_DAYS, ConsentBook
    from consilium.common.identity.signing import fingerprint

    today = datetime.now(UTC).date()
    try:
        last = date.fromisoformat(until) if until else today + timedelta(days=DEFAULT_DAYS)
    except ValueError:
        raise SettingsError(f"--until is a day like 2027-03-31; got {until!r}") from None
    if last < today:
        raise SettingsError(f"--until is today or later; got {last}")
    one = _find(home, study)
    held, images = len(one.shown.images.held()), len(one.shown.manifest.images)
    if held < images and not unseen:
        raise SettingsError(
            f"{held} of the {images} images of {one.shown.study.name} are here. The coordinator sends them while it starts the "
            "study; wait for them and review them, or approve with --unseen"
        )
    book = ConsentBook(home.consents, home.settings.name)
    _, key = book.decide(one.shown.request, one.shown.signer, "approved", last)
    say(
        f"{home.settings.name} consents to {one.shown.study.name} ({one.digest[:12]}) of {fingerprint(one.shown.signer)} until "
        f"{last}, signed with {fingerprint(key)}. It holds from now on; consilium-site revoke ends it."
    )


def revoke(settings: SettingsFile, study: StudyName) -> None:
    """End the consent to a study at once, or decline one; a running gateway refuses from its next answer on.

    What has left has left: consilium-site audit says what that is.
    """
    home = load(settings)
    from datetime import UTC, datetime

    from consilium.clients.consent import ConsentBook

    one = _find(home, study)
    book = ConsentBook(home.consents, home.settings.name)
    book.decide(one.shown.request, one.shown.signer, "revoked", datetime.now(UTC).date())
    say(f"{home.settings.name} does not take part in {one.shown.study.name} ({one.digest[:12]}) from now on")


def answer(
    settings: SettingsFile,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What `consilium exchange export` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="The answer file; named like REQUEST, with .answer, here by default.")
    ] = None,
) -> None:
    """Answer a request file, for a site without a network path: soft masks, sealed and signed, in one file to carry back.

    Consent, policy, budget and audit log are those of a connected site. The exit status is 3, which is no fault, if nobody has
    consented yet. Interrupted, the same command goes on, and gives no image a second mask.
    """
    home = load(settings)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from consilium.clients import exchange
    from consilium.clients.site import open_site

    out = out or Path(request.with_suffix(".answer").name)
    with counting(f"{home.settings.name} answers") as on_images:
        done = exchange.answer(home, open_site(home), request, out, on_images)
    say(
        f"{home.settings.name}: {done.masks} masks, sealed, in {out}; {done.abstained} images are not answered. Carry it back "
        "to the coordinator; nobody on the way can read it."
    )
    say("It is signed with this key, to compare by telephone:")
    say(f"  {done.signer}")


def audit(
    settings: SettingsFile,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")] = False,
) -> None:
    """Check the audit log's chain and tell what left this hospital, study by study.

    The exit status is not 0 if a line was changed or taken out; the line is named.
    """
    home = load(settings)
    from consilium.clients import audit as log

    if not home.audit_log.is_file():
        raise SettingsError(
            f"{home.audit_log} is not there: this site was never asked for anything, or its log was moved"
        )
    told = log.what_left(home.audit_log)
    if as_json:
        say(json.dumps({"site": home.settings.name, **told}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"what left {home.settings.name}")
    for column in ("study", "from", "to", "masks", "again", "not answered", "metrics", "students", "bytes", "refusals"):
        table.add_column(column, overflow="fold")
    for digest, one in told["studies"].items():
        refusals = ", ".join(f"{count} {code}" for code, count in sorted(one["refusals"].items())) or "none"
        counts = [str(one[key]) for key in ("masks", "repeats", "abstained", "metrics", "students")]
        table.add_row(digest[:12], one["first"][:16], one["last"][:16], *counts, f"{one['bytes']:,}", refusals)
    Console().print(table)
    say(f"The chain of {told['lines']} lines is whole. Its end, to be noted elsewhere: {told['last']}")


def _find(home: "SiteHome", study: str) -> "Listed":
    """Find a study that was shown; a request file is shown now."""
    from consilium.clients import review as reviews
    from consilium.common.exchange import is_exchange_file

    if not is_exchange_file(Path(study)):
        return reviews.find(home, study)
    from consilium.clients import exchange

    request = exchange.show(home, Path(study)).request
    return next(one for one in reviews.listed(home) if one.shown.request == request)
