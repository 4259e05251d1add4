"""A teacher at its temperature."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.clients.teachers import Teacher
from consilium.common.temperature import temper


class TemperedTeacher:
    """A teacher whose masks go through `temper` before they leave."""

    def __init__(self, teacher: Teacher, temperature: float, clip: float) -> None:
        self.card: Final[Mapping[str, object]] = {**teacher.card, "temperature": temperature}
        self._teacher: Final = teacher
        self._temperature: Final = temperature
        self._clip: Final = clip

    def predict(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Segment images; see `Teacher`."""
        return temper(self._teacher.predict(images), self._temperature, self._clip)
