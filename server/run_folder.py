"""The run folder: everything a study leaves on the coordinator's disk; enough to resume it and to check it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import MachineError, StateError
from consilium.common.files import write_text
from consilium.common.settings import load, to_toml
from consilium.common.soft_mask import Shape, SoftMasks
from consilium.common.study import Study
from consilium.server.disk import GO_ON

LOCK: Final = "lock"
SIMULATION_LOCK: Final = "simulation.lock"
_LOCK_TRIES: Final = 10
_LOCK_PAUSE_S: Final = 0.05


class RunFolder:
    """Where each thing of a run is.

    Parameters
    ----------
    root
        The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root: Final = root.resolve()
        self.study: Final = self.root / "study.toml"
        self.catalogue: Final = self.root / "catalogue"
        self.ledger: Final = self.root / "ledger.sqlite"
        self.pseudo_masks: Final = self.root / "pseudo_masks.u8"
        self.site_masks: Final = self.root / "site_masks.u8"
        self.selection: Final = self.root / "selection.csv"
        self.student: Final = self.root / "student"
        self.sealing_key: Final = self.root / "sealing.pem"
        self.sealing_offer: Final = self.root / "sealing.json"
        self.site_keys: Final = self.root / "site_keys.json"
        self.test_set: Final = self.root / "test"
        self.test_sites: Final = self.test_set / "sites.csv"
        self.labelled_set: Final = self.root / "labelled"
        self.evaluation_rows: Final = self.root / "evaluation.csv"
        self.evaluation: Final = self.root / "evaluation.json"
        self.metrics: Final = self.root / "metrics.json"
        self.report: Final = self.root / "report.html"

    def create(self, study: Study) -> None:
        """Make the folder and freeze the study's settings in it; `StateError` if it holds another study."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self.study.exists():
            held = load(Study, self.study)
            if held != study:
                raise StateError(
                    f"{self.root} holds a study with other settings ({_first_difference(held, study)}). "
                    "Go on with its own settings, or give another run folder with --run."
                )
            return
        write_text(self.study, to_toml(study))

    def open_study(self) -> Study:
        """Read the frozen settings; `StateError` if this is no run folder."""
        if not self.study.is_file():
            raise StateError(f"{self.root} is not a run folder: study.toml is missing")
        return load(Study, self.study)

    @contextmanager
    def locked(self, name: str = LOCK) -> Iterator[None]:
        """Keep every other process from writing here; `StateError` if one does already."""
        with (self.root / name).open("w") as handle:
            for patience in reversed(range(_LOCK_TRIES)):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # perhaps `in_use`, which only has a look
                    if not patience:
                        raise StateError(f"{self.root} is in use by another process; wait for it, or stop it") from None
                    time.sleep(_LOCK_PAUSE_S)
            yield

    def in_use(self, *names: str) -> bool:
        """Whether a process holds one of some locks; by default, whether one writes here."""
        for name in names or (LOCK, SIMULATION_LOCK):
            with suppress(FileNotFoundError), (self.root / name).open() as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        return False


def _first_difference(held: Study, given: Study) -> str:
    old, new = held.model_dump(by_alias=True), given.model_dump(by_alias=True)
    key = next(key for key in old if old[key] != new[key])
    return f"{key}: {old[key]!r} there, {new[key]!r} given"


class MaskFile:
    """Soft masks of many images in one file, uint8 (N, K, H, W), written in pieces.

    Written with plain calls, not through a memory map, so that a full disk is an error and not a killed process. A file that
    ``holds_masks`` already must be whole; else it is made, or brought to its size.
    """

    def __init__(self, path: Path, count: int, shape: Shape, *, holds_masks: bool = False) -> None:
        self._path: Final = path
        self._shape: Final = (count, *shape)
        self._bytes: Final = int(np.prod(shape))
        if not path.exists():
            path.touch()
        found, wanted = path.stat().st_size, count * self._bytes
        if holds_masks and found != wanted:
            raise StateError(
                f"{path} has {found} bytes in place of {wanted}, though the ledger says masks were collected: it was "
                "deleted or cut. Put it back, or delete it and ledger.sqlite to collect again."
            )
        if found != wanted:
            os.truncate(path, wanted)

    def write(self, first: int, masks: SoftMasks) -> None:
        """Write masks uint8 (n, K, H, W) at position ``first``, and wait until they are on disk."""
        try:
            with self._path.open("r+b") as file:
                file.seek(first * self._bytes)
                file.write(np.ascontiguousarray(masks).tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MachineError(f"{self._path}: masks could not be written ({error.strerror}); {GO_ON}") from None

    def read(self) -> npt.NDArray[np.uint8]:
        """The whole file, memory-mapped for reading: uint8 (N, K, H, W)."""
        return np.memmap(self._path, np.uint8, "r", shape=self._shape)
