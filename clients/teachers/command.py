"""A teacher that is a command of any language or container: a folder of PNG images in, a folder of masks out."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.clients.teachers.fitted import Ask, Numbers
from consilium.clients.teachers.settings import CommandSettings
from consilium.common.errors import DataError, MachineError
from consilium.common.processes import Child

_GRACE_S: Final = 2.0


def opened(settings: CommandSettings, folder: Path, labels: Sequence[str]) -> Ask:
    """Make `Ask` of a command.

    It is run in the folder of the settings file for every batch: ``{images}`` becomes a new folder with images
    numbered from ``000000``, gray or RGB, 8 bits; ``{masks}`` an empty one for the masks, each of its image's size.
    With several labels, unless the masks are maps of classes, each label has a folder of its name in there. Gray
    levels are divided by 255 (of 16-bit files by 65535), those of binary masks are 0 or 255; classes are as they are. Both
    folders can be read by this user only and are removed afterwards. No shell is involved.

    Parameters
    ----------
    settings, folder
        Of the site.
    labels
        The site's.
    """

    def ask(pixels: Numbers) -> Numbers:
        with tempfile.TemporaryDirectory(prefix="consilium-teacher-") as temporary:
            images, masks = Path(temporary) / "images", Path(temporary) / "masks"
            images.mkdir()
            several = len(labels) > 1 and settings.output != "classes"
            shelves = [masks / label for label in labels] if several else [masks]
            for shelf in shelves:
                shelf.mkdir(parents=True)
            numbers = [f"{i:06d}" for i in range(len(pixels))]
            for number, picture in zip(numbers, pixels, strict=True):
                flat = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(flat)).save(images / settings.image_name.format(number=number))
            command = [_filled(part, images, masks) for part in settings.command]
            _run(command, folder, Path(temporary) / "log", settings.timeout_s)
            names = [settings.mask_name.format(number=number) for number in numbers]
            found = [_collected(shelf, names, pixels.shape[2:], settings.output) for shelf in shelves]
            return np.stack(found, axis=1)

    return ask


def _filled(part: str, images: Path, masks: Path) -> str:
    return part.replace("{images}", str(images)).replace("{masks}", str(masks))


def _run(command: list[str], folder: Path, log: Path, timeout_s: float) -> None:
    """Run a command to its end; it does not outlive this call, nor does what it started."""
    child = Child("teacher.command", command, log, folder=folder, grace_s=_GRACE_S)
    try:
        status = child.wait(timeout_s)
    finally:
        child.stop()
    if status is None:
        raise MachineError(
            f"teacher.command did not end in {timeout_s:g} s (teacher.timeout-s); give it longer, or fewer images at a time "
            "(teacher.batch)"
        )
    if status:
        raise DataError(f"teacher.command ended with status {status}; it said last:\n{child.tail() or 'nothing'}")


def _collected(shelf: Path, names: Sequence[str], shape: tuple[int, ...], output: str) -> npt.NDArray[np.generic]:
    """Read the masks of a folder: (n, H, W)."""
    there = {path.name for path in shelf.glob("*.png")}
    lacking = [name for name in names if name not in there]
    if lacking:
        others = sorted(there - set(names))
        raise DataError(
            f"teacher.command must write a mask of the name teacher.mask-name says for every image; {len(lacking)} of "
            f"{len(names)} are not there: {', '.join(lacking[:3])}"
            + (f"; there are {', '.join(others[:3])}" if others else "")
        )
    return np.stack([_mask(shelf / name, shape, output) for name in names])


def _mask(path: Path, shape: tuple[int, ...], output: str) -> npt.NDArray[np.generic]:
    try:
        with Image.open(path) as picture:
            levels = np.asarray(picture)
    except OSError as error:
        raise DataError(f"teacher.command: its mask {path.name} is no picture: {error}") from None
    if levels.shape != shape:
        raise DataError(
            f"teacher.command: a mask is gray and has the size of its image, here (height, width) {shape}; {path.name} has the "
            f"form {levels.shape}"
        )
    if output == "classes":
        return levels.astype(np.int64)
    if levels.dtype == np.bool_:
        return levels.astype(np.float32)
    whole = 255 if levels.dtype == np.uint8 else 65535
    if output == "binary" and whole == 255 and levels.max(initial=0) == 1:
        whole = 1  # masks of 0 and 1 are common, too
    return (levels / np.float32(whole)).astype(np.float32)
