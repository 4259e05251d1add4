"""Reading images and masks, and bringing them to a canonical form.

The canonical form is the paper's (appendix A.1): stretched to a square, gray (ITU-R 601 luma) or RGB, uint8.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from consilium.common.errors import DataError

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
"""File name endings that are read, in any case."""

Pixels = npt.NDArray[np.uint8]
Target = npt.NDArray[np.bool_]


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder and its sub-folders, in natural order of their paths.

    Raises
    ------
    DataError
        If the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and is_shown(path)]
    if not files:
        raise DataError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none; is it the right folder?")
    return sorted(files, key=lambda path: natural(path.relative_to(folder).as_posix()))


def is_shown(path: Path) -> bool:
    """Whether this is a file, and not one that a file manager leaves behind, as ``._a.png``."""
    return not path.name.startswith(".") and path.is_file()


def natural(text: str) -> list[tuple[int, str]]:
    """Make a key that sorts names as people do: ``a2`` before ``a10``."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for char in text + "\0":
        if char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, char))
    return parts


def read_image(path: Path, size: int, channels: int) -> Pixels:
    """Read one image in canonical form.

    Parameters
    ----------
    path
        PNG, JPEG, TIFF, BMP or DICOM, of any bit depth; deeper than 8 bits is scaled by its own range.
    size, channels
        Height and width in pixels; 1 (gray) or 3 (RGB).

    Returns
    -------
    uint8, shape (channels, size, size).

    Raises
    ------
    DataError
        If the file cannot be read as an image.
    """
    return canonical(open_image(path), size, channels)


def canonical(image: Image.Image, size: int, channels: int) -> Pixels:
    """Bring a picture to canonical form: uint8 (channels, size, size); see `read_image`."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))


def read_mask(paths: Sequence[Path], size: int, of: Path | None = None) -> Pixels:
    """Read the union of one or more masks of an image, stretched.

    Parameters
    ----------
    paths
        Mask files of one image; see `target_of` for what counts.
    size
        Height and width of the result in pixels.
    of
        The image; where given, the masks must have its size.

    Returns
    -------
    uint8, shape (1, size, size), 0 or 1.

    Raises
    ------
    DataError
        If a mask cannot be read, or has another size than its image.
    """
    target = union(paths)
    if of is not None:
        check_size(target, open_image(of), str(paths[0]))
    return canonical_mask(target, size)


def target_of(mask: Image.Image) -> Target:
    """Say which pixels of a drawn mask are the target: bool (H, W), those whose gray is above 127.

    Lossy files and every colour mode are welcome; alpha is ignored.
    """
    return np.asarray(np.asarray(mask.convert("RGB").convert("L")) > 127, np.bool_)


def union(paths: Sequence[Path], rule: Callable[[Image.Image], Target] = target_of) -> Target:
    """Read the union of one or more masks of an image, at their own size.

    Parameters
    ----------
    paths
        Mask files of one image.
    rule
        Says which pixels of a mask are the target; a `ValueError` says that this is no such mask.

    Returns
    -------
    bool, shape (H, W).

    Raises
    ------
    DataError
        If there is no mask, one cannot be read, or they are not of one size.
    """
    if not paths:
        raise DataError("an image's masks: expected at least one file, found none")
    first, *others = (_target(path, rule) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        if other.shape != first.shape:
            raise DataError(
                f"{path}: the masks of one image have one size, here {_size(first)}; this one has {_size(other)}. Export it "
                "again, or take it out."
            )
        first |= other
    return first


def _target(path: Path, rule: Callable[[Image.Image], Target]) -> Target:
    try:
        return rule(open_image(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def check_size(target: Target, image: Image.Image, source: str) -> None:
    """Refuse a mask, bool (H, W), of another size than its image; ``source`` names it in the `DataError`."""
    if target.shape != (image.height, image.width):
        raise DataError(
            f"{source}: a mask has the size of its image, here {image.width} x {image.height}; this one has {_size(target)}. "
            "Export it again, or take the pair out."
        )


def _size(target: Target) -> str:
    return f"{target.shape[1]} x {target.shape[0]}"


def canonical_mask(target: Target, size: int) -> Pixels:
    """Stretch a mask, bool (H, W), like its image, and threshold it again: uint8 (1, size, size), 0 or 1."""
    drawn = Image.fromarray(target.astype(np.uint8) * np.uint8(255))
    return (canonical(drawn, size, 1) > 127).astype(np.uint8)


def read_folder(folder: Path, size: int, channels: int = 1) -> tuple[Pixels, list[Path]]:
    """Read all images of a folder in canonical form.

    Returns
    -------
    uint8 (n, channels, size, size), and the files in the same order.
    """
    files = image_files(folder)
    return np.stack([read_image(path, size, channels) for path in files]), files


def iter_images(files: Iterable[Path], size: int, channels: int) -> Iterator[tuple[Path, Pixels]]:
    """Read images one at a time, so that memory is that of one."""
    for path in files:
        yield path, read_image(path, size, channels)


def open_image(path: Path) -> Image.Image:
    """Read a picture as it was published: upright, 8 bits a channel, in any mode of Pillow.

    Raises
    ------
    DataError
        If the file cannot be read as an image.
    """
    try:
        if path.suffix.lower() == ".dcm":
            return open_dicom(path)
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); repair it or take it out") from None
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(upright)))
    return upright


def count_frames(path: Path) -> int:
    """Count the pictures of a DICOM file; 0 for one without any, such as a report.

    Raises
    ------
    DataError
        If the file is damaged. Neither this nor what is returned says more of the patient than the path does.
    """
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames", "Rows"])
        return int(data.get("NumberOfFrames") or 1) if data.get("Rows") else 0
    except Exception as error:  # pydicom raises many kinds for damaged files, some with a tag's value in their text
        raise DataError(f"{path}: cannot be read as DICOM ({type(error).__name__}); repair it or take it out") from None


def open_dicom(path: Path, frame: int = 0) -> Image.Image:
    """Read one picture of a DICOM file: 8 bits a channel, gray with black at 0, or RGB.

    Raises
    ------
    DataError
        If the file is damaged. Neither this nor what is returned says more of the patient than the path does.
    """
    try:
        about = pydicom.Dataset()  # gets the tags about the picture, and no others
        pixels = pixel_array(path, ds_out=about, index=frame)
        photometric = about.get("PhotometricInterpretation")
        if photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, about)
        if pixels.dtype != np.uint8:
            pixels = _to_8_bits(pixels)
        if photometric == "MONOCHROME1":
            pixels = 255 - pixels
        return Image.fromarray(pixels)
    except Exception as error:  # as above
        raise DataError(
            f"{path}: frame {frame} cannot be read as DICOM ({type(error).__name__}); repair the file or take it out"
        ) from None


def _to_8_bits(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    wide = pixels.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    return np.asarray(np.rint((wide - low) * (255.0 / (high - low or 1.0))), np.uint8)
