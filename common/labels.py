"""Label sets: a study's labels as a site sees them.

A study names the channels of its masks. A site may know only some of them, call them otherwise, or tell several of its own
classes apart where the study has one. What it does not know it does not send, and is not asked about.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True)
class LabelView:
    """Those labels of a study that a site knows.

    Attributes
    ----------
    known
        Their positions among the study's labels, ascending.
    sources
        For each of them the site's own channels that are united in it, at least one.
    """

    known: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]

    def take(self, planes: npt.NDArray[ScalarT]) -> npt.NDArray[ScalarT]:
        """Turn a site's channels into the study's.

        Parameters
        ----------
        planes
            (n, site's labels, H, W): masks of 0 and 1, levels, or probabilities.

        Returns
        -------
        (n, known labels, H, W) of the same type. United channels give the largest value of each pixel: the union of masks of
        0 and 1, and for probabilities the least that the union can have, whether the classes exclude each other or not.
        """
        if self.sources == tuple((i,) for i in range(planes.shape[1])):
            return planes
        united = [planes[:, list(rows)].max(axis=1) for rows in self.sources]
        return np.stack(united, axis=1)


def view(study_labels: Sequence[str], own_labels: Sequence[str], label_map: Mapping[str, Sequence[str]]) -> LabelView:
    """See a study's labels as a site does.

    Parameters
    ----------
    study_labels, own_labels
        The study's labels and the site's, each in the order of its channels.
    label_map
        For labels of studies, the site's own labels that they mean; none at all if the site does not know such a thing
        though it has a label of that name. A label that is not in the map means the site's label of the same name.
    """
    sources = {
        place: tuple(own_labels.index(own) for own in meant)
        for place, label in enumerate(study_labels)
        if (meant := label_map.get(label, [label] if label in own_labels else []))
    }
    return LabelView(tuple(sources), tuple(sources.values()))


def positions(study_labels: Sequence[str], told: Iterable[str]) -> tuple[int, ...]:
    """Find which of a study's labels a site told that it knows; what else it told does not count."""
    names = set(told)
    return tuple(place for place, label in enumerate(study_labels) if label in names)
