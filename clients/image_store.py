"""The images a site was given: one sparse file a catalogue, filled as they come.

Every image is checked against its hash when it comes and again whenever it is used, so nothing here needs care about
crashes: an image that a power cut left half written is noticed, forgotten and asked for again.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common import planes
from consilium.common.catalogue import Manifest, image_id
from consilium.common.errors import ErrorCode, WireError

Pixels = npt.NDArray[np.uint8]


class ImageStore:
    """The images of one catalogue; several threads and processes may use the same folder.

    Parameters
    ----------
    folder
        Holds ``pixels.u8``, uint8 (N, C, H, W), and ``held.u8``, one byte an image: 1 where its pixels are there.
    manifest
        The list of the catalogue's images.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._position: Final = {entry.id: i for i, entry in enumerate(manifest.images)}
        self._shape: Final = manifest.image_shape
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        count = len(manifest.images)
        self._pixels = _mapped(folder / "pixels.u8", (count, *self._shape))
        self._held = _mapped(folder / "held.u8", (count,))

    def missing(self) -> list[bool]:
        """Tell, image by image of the list, whether its pixels are lacking."""
        return [bool(flag) for flag in self._held == 0]

    @property
    def size_bytes(self) -> int:
        """Bytes of all images of the list together."""
        return int(self._pixels.size)

    def held(self) -> list[str]:
        """Ids of the images whose pixels are here, in the order of the list."""
        return [name for name, i in self._position.items() if self._held[i]]

    def require_known(self, ids: Sequence[str]) -> None:
        """Refuse images that are not of the catalogue: `WireError` ``unknown-image``."""
        strangers = [name for name in ids if name not in self._position]
        if strangers:
            raise WireError(ErrorCode.UNKNOWN_IMAGE, f"{len(strangers)} not in the catalogue, first {strangers[0]}")

    def require_held(self, ids: Sequence[str]) -> None:
        """Refuse images whose pixels never came: `WireError` ``unknown-image``."""
        lacking = [name for name in ids if not self._held[self._position[name]]]
        if lacking:
            raise WireError(ErrorCode.UNKNOWN_IMAGE, f"{len(lacking)} without pixels, first {lacking[0]}")

    def put(self, name: str, coded: bytes) -> None:
        """Keep an image of the catalogue, coded as planes.

        Raises
        ------
        WireError
            ``bad-image`` if it cannot be decoded or has another hash.
        """
        try:
            pixels = planes.decode(coded, self._shape)
        except planes.PlanesError as error:
            raise WireError(ErrorCode.BAD_IMAGE, f"{name}: {error}") from None
        if image_id(pixels) != name:
            raise WireError(ErrorCode.BAD_IMAGE, f"{name}: the pixels have another hash")
        with self._lock:
            self._pixels[self._position[name]] = pixels
            self._held[self._position[name]] = 1

    def take(self, ids: Sequence[str]) -> Pixels:
        """Read images that are held: uint8 (n, C, H, W), in the order asked.

        Raises
        ------
        WireError
            ``unknown-image`` if one was damaged on the disk; it is then missing.
        """
        images = np.empty((len(ids), *self._shape), np.uint8)
        for i, name in enumerate(ids):
            images[i] = self._pixels[self._position[name]]
            if image_id(images[i]) != name:
                with self._lock:
                    self._held[self._position[name]] = 0
                raise WireError(ErrorCode.UNKNOWN_IMAGE, f"{name} was damaged on the disk and is forgotten")
        return images


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    """Map a file of zeros, made if it is not there; an existing one of another size is stretched or cut to size."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size != int(np.prod(shape)):
            os.ftruncate(descriptor, int(np.prod(shape)))
    finally:
        os.close(descriptor)
    return np.memmap(path, np.uint8, "r+", shape=shape)
