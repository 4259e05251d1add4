"""``consilium data``: looking at a data set, and splitting it, before anything is trained on it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.errors import SettingsError

if TYPE_CHECKING:
    from consilium.common.datasets.cases import Case
    from consilium.common.datasets.check import Look

data_app = typer.Typer(help="Data sets: look at one, split one.", no_args_is_help=True)

SHOWN: Final = 12
"""Contradictions and duplicates told in the terminal; check.json has all. Faults are all told."""

NameArgument = Annotated[str, typer.Argument(help="the data set: `folder` for your own, or busi, ...")]
PathArgument = Annotated[Path, typer.Argument(help="its folder, as published")]
OutOption = Annotated[Path | None, typer.Option(help="where the results go; runs/data/NAME by default")]
WorkersOption = Annotated[int, typer.Option(help="threads that read images; 0: one for each core", min=0)]


@data_app.command(epilog="Example:  consilium data check busi Dataset_BUSI_with_GT")
def check(name: NameArgument, path: PathArgument, out: OutOption = None, workers: WorkersOption = 0) -> None:
    """Look at every image of a data set: what it holds, what is broken, what stands in it twice.

    Prints a table, writes check.json and a contact sheet. The exit status is 1 where an image or a mask cannot be used.
    """
    from consilium.common.datasets import contact_sheet, registry
    from consilium.common.datasets.check import report

    console = Console()
    cases, looks = _looked_at(name, path, workers, console)
    found = {"data_set": name, "folder": str(path.resolve())} | report(looks)
    found["left_out"] = [asdict(one) for one in registry.left_out(name, path)]
    folder = out or Path("runs") / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    told = f"{len(cases):,} images in {path}; outlined: the mask, and the share of the image that it covers"
    contact_sheet.draw(cases, name, told).save(folder / "contact-sheet.png")
    console.print(_check_table(name, found))
    _tell(console, path, found)
    for file in ("contact-sheet.png", "check.json"):
        console.print(f"{(folder / file).resolve()}", highlight=False, soft_wrap=True)
    if found["faults"]:
        raise typer.Exit(1)


@data_app.command(
    epilog="Examples:  consilium data split busi Dataset_BUSI_with_GT --parts train=0.7,val=0.1,test=0.2;  "
    "consilium data split nerve ultrasound-nerve --sites 4 --seed 1"
)
def split(
    name: NameArgument,
    path: PathArgument,
    parts: Annotated[str, typer.Option(help="names and shares; 80 % to train on and 20 % to test on by default")] = "",
    sites: Annotated[int, typer.Option(help="in place of --parts: that many equal parts, site-1, site-2, ...")] = 0,
    seed: Annotated[int, typer.Option(help="decides which group goes where", min=0)] = 0,
    near_duplicates: Annotated[
        bool | None,
        typer.Option(help="keep near duplicates together, too; by default where the data set names no groups"),
    ] = None,
    out: OutOption = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite another split")] = False,
    workers: WorkersOption = 0,
) -> None:
    """Split a data set by group (patient, subject, near duplicates), never by file, and write split.csv.

    The same images, parts and seed give the same bytes.
    """
    from consilium.common.datasets import registry
    from consilium.common.datasets import split as splitting

    if parts and sites:
        raise SettingsError("give --parts or --sites, not both")
    shares = splitting.sites(sites) if sites else splitting.read_parts(parts or "train=0.8,test=0.2")
    console = Console()
    cases, looks = _looked_at(name, path, workers, console)
    faults = [seen for seen in looks if seen.fault]
    if near_duplicates or (near_duplicates is None and not any(case.group for case in cases)):
        joined = splitting.join_groups(cases, _likeness(looks))
        cases = [replace(case, group=group) for case, group in zip(cases, joined, strict=True)]
    chosen = splitting.split(cases, shares, seed)
    table = (out or Path("runs") / "data" / name) / "split.csv"
    changed = splitting.write(table, splitting.rows(cases, chosen, path), force=force)
    console.print(_split_table(name, list(shares), looks, cases, chosen))
    for one in registry.left_out(name, path):
        console.print(f"left out: {_of_images(one.images, one.where)}: {one.why}", highlight=False, soft_wrap=True)
    if faults:
        console.print(
            f"{len(faults)} images have faults, such as {faults[0].source}: they have a part all the same; see "
            f"`consilium data check {name} {path}`",
            highlight=False,
        )
    console.print(
        f"{table.resolve()}{'' if changed else ' was there already, the same'}", highlight=False, soft_wrap=True
    )


def _looked_at(name: str, path: Path, workers: int, console: Console) -> "tuple[list[Case], list[Look]]":
    from consilium.common.datasets.check import look_at
    from consilium.common.datasets.registry import cases
    from consilium.server.board import image_progress

    listed = cases(name, path)
    with image_progress(console, "images are looked at", len(listed)) as show:
        show(0)
        return listed, look_at(listed, workers=workers, on_case=show)


def _likeness(looks: "Sequence[Look]") -> list[str]:
    from consilium.common.datasets.check import near_duplicate_groups

    return near_duplicate_groups(looks)


def _check_table(name: str, found: dict[str, Any]) -> Table:
    table = Table(
        title=f"Data set {name}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column()
    for column in ("Images", "With mask", "Empty mask"):
        table.add_column(column, justify="right")
    for kind, held in (*found["kinds"].items(), ("all", found)):
        if kind == "all" and table.rows:
            table.rows[-1].end_section = True
        table.add_row(Text(kind), *(f"{held[key]:,}" for key in ("images", "with_mask", "empty_mask")))
    return table


def _tell(console: Console, path: Path, found: dict[str, Any]) -> None:
    """Print what is behind the counts: facts in two columns, then faults and what is worth a look."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for label, text in _facts(found):
        facts.add_row(label, Text(text))
    console.print(facts)

    def short(source: str) -> str:
        return source.removeprefix(f"{path}/")

    faults = [(it["source"], it["why"]) for key in ("unreadable", "mask_faults") for it in found[key]]
    _lines(console, "Cannot be used", [f"{short(source)}: {why}" for source, why in faults], len(faults), "red")
    clashes = [f"{' and '.join(map(short, it['sources']))}: {it['why']}" for it in found["contradictions"]]
    _lines(console, "Near duplicates that contradict each other", clashes, SHOWN, "yellow")
    console.print()


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    height, width, share, groups = found["height"], found["width"], found["foreground"], found["groups"]
    near = found["near_duplicates"]
    in_groups = sum(map(len, near["groups"]))
    facts = []
    if height:
        facts = [
            ("width", f"{width['min']} to {width['max']}, median {width['median']} pixels"),
            ("height", f"{height['min']} to {height['max']}, median {height['median']} pixels"),
            ("different sizes", f"{found['sizes']:,}"),
            ("stored as", "; ".join(f"{mode}: {count:,}" for mode, count in found["modes"].items())),
        ]
    if share:
        quartiles = " / ".join(f"{100 * share[key]:.1f}" for key in ("q1", "median", "q3"))
        facts.append(
            ("foreground", f"{100 * share['mean']:.1f} % of the image, quartiles {quartiles} % (masks not empty)")
        )
    named = f"{groups['named']:,}, the largest of {groups['largest']:,} images" if groups["named"] else "none named"
    bare = f"; {groups['images_without']:,} images without" if groups["named"] and groups["images_without"] else ""
    redundant = f", {in_groups - len(near['groups'])} of them redundant" if in_groups else ""
    facts += [
        ("groups", named + bare),
        ("exact duplicates", _sets(found["exact_duplicates"])),
        ("near duplicates", _sets(near["groups"]) + redundant),
    ]
    if near["across_groups"]:
        facts.append(("", f"{near['across_groups']} pairs of them in different groups: split with --near-duplicates"))
    facts += [("left out", f"{_of_images(one['images'], one['where'])}: {one['why']}") for one in found["left_out"]]
    return facts


def _of_images(count: int, where: str) -> str:
    return f"{count:,} image{'s' * (count > 1)} in {where}"


def _sets(held: Sequence[Sequence[str]]) -> str:
    return f"{sum(map(len, held)):,} images in {len(held):,} set{'s' * (len(held) > 1)}" if held else "none"


def _lines(console: Console, title: str, lines: Sequence[str], most: int, style: str) -> None:
    if not lines:
        return
    console.print(Text(f"\n{title}: {len(lines)}", style=f"bold {style}"))
    for line in lines[:most]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    if len(lines) > most:
        console.print(Text(f"  and {len(lines) - most} more, in check.json", style="dim"))


def _split_table(
    name: str, parts: Sequence[str], looks: "Sequence[Look]", cases: "Sequence[Case]", chosen: Sequence[str]
) -> Table:
    kinds = list(dict.fromkeys(case.kind for case in cases if case.kind))
    kinds = kinds if 1 < len(kinds) <= 6 else []
    table = Table(
        title=f"Split of {name}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    empty = ["Empty masks"] if any(seen.share == 0 for seen in looks) else []
    for column in ("Part", "Images", "Share", "Groups", *kinds, "Foreground", *empty):
        table.add_column(column, justify="left" if column == "Part" else "right", overflow="fold")
    for part in (*parts, "all"):
        held = [i for i, one in enumerate(chosen) if part in (one, "all")]
        shares = [share for i in held if (share := looks[i].share) is not None]
        if part == "all":
            table.rows[-1].end_section = True
        table.add_row(
            Text(part),
            f"{len(held):,}",
            f"{100 * len(held) / len(cases):.1f} %",
            f"{len({cases[i].group or str(-i) for i in held}):,}",
            *(f"{sum(cases[i].kind == kind for i in held):,}" for kind in kinds),
            f"{100 * sum(shares) / len(shares):.2f} %" if shares else "—",
            *([f"{sum(share == 0 for share in shares):,}"] if empty else []),
        )
    return table
