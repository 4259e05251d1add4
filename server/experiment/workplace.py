"""An experiment's folder while cells are computed in it, one after the other: what grids and ablations share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import tomli_w
from pydantic import BaseModel
from rich.console import Console

from consilium.common.files import write_text
from consilium.common.locks import alone
from consilium.server.experiment.display import Display
from consilium.server.experiment.store import Store


class Named(Protocol):
    """A cell: something that is computed together."""

    @property
    def name(self) -> str:
        """For people."""
        ...


CellT = TypeVar("CellT", bound=Named)
RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Workplace:
    """A folder that no other process writes results into.

    Attributes
    ----------
    root, store
        The folder, and where what is computed is kept.
    display
        Told how far it is.
    """

    root: Path
    store: Store
    display: Display

    def compute(
        self,
        cells: Iterable[CellT],
        rows_of: Callable[[CellT], list[RowT]],
        write: Callable[[Path, list[RowT]], None],
        found: Callable[[list[RowT]], str],
    ) -> list[RowT]:
        """Compute cells, and write ``results.csv`` anew after each; gives all rows.

        Parameters
        ----------
        cells, rows_of
            What, in this order, and what computes one.
        write
            Writes all rows so far, whole.
        found
            Says what the rows of a cell are, for people.
        """
        rows: list[RowT] = []
        for cell in cells:
            with self.display.cell(cell.name) as finish:
                added = rows_of(cell)
                rows += added
                write(self.root / "results.csv", rows)
                finish(found(added))
        return rows


@contextmanager
def workplace(
    settings: BaseModel, root: Path, cells: int, *, artefacts: Path | None = None, console: Console | None = None
) -> Iterator[Workplace]:
    """Work alone in an experiment's folder, with its settings written there.

    Parameters
    ----------
    settings
        Written as ``experiment.toml``.
    root
        The folder; made where it is not there.
    cells
        How many there are.
    artefacts
        The store, where it is not the folder's own.
    console
        Told how far it is.

    Raises
    ------
    StateError
        If another process works there.
    """
    root.mkdir(parents=True, exist_ok=True)
    taken = f"{root} is in use by another process; wait for it, or stop it"
    with alone(root / "lock", taken), Display(console or Console(quiet=True), cells) as display:
        written = settings.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_text(root / "experiment.toml", tomli_w.dumps(written))
        yield Workplace(root, Store(artefacts or root / "artefacts", display.tell), display)
