"""The coordinator's own labelled images: a few, which every site is asked about first, and on which a stack is fitted.

They stand in front of the catalogue with the role "labelled". Their true masks lie packed in the run folder and are never sent to
anyone; the images are, as all of the catalogue. No student is trained or tested on them.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.catalogue import Catalogue, CatalogueImage, image_id
from consilium.common.datasets import labelled
from consilium.common.datasets.labelled import Labelled
from consilium.common.errors import SettingsError, StateError
from consilium.common.files import write_text
from consilium.common.study import Study
from consilium.server.run_folder import RunFolder
from consilium.server.transferal_sets import stamp

LABELS: Final = "labels.json"
"""Beside the packed masks: what their channels show, in order."""


def catalogue_images(data: Labelled) -> Iterator[CatalogueImage]:
    """Give the images as a catalogue takes them; they come first there."""
    for image, source, group in zip(data.images, data.sources, data.groups, strict=True):
        yield CatalogueImage(image, source, group, "labelled", stamp=stamp(source))


def pack(run: RunFolder, data: Labelled, labels: Sequence[str]) -> None:
    """Keep the true masks in the run folder; ``labels`` are their channels."""
    run.labelled_set.mkdir(parents=True, exist_ok=True)
    write_text(run.labelled_set / LABELS, json.dumps(list(labels)) + "\n")
    ids = tuple(image_id(image) for image in data.images)
    labelled.pack(run.labelled_set, Labelled(data.images, data.masks, ids, data.groups))


def require(run: RunFolder, study: Study, catalogue: Catalogue) -> None:
    """Refuse a study whose fusion is a stack, before anything is asked, where it could not be fitted; see `true_masks`."""
    if study.fusion.method == "stack":
        true_masks(run, study, catalogue)


def true_masks(run: RunFolder, study: Study, catalogue: Catalogue) -> npt.NDArray[np.uint8]:
    """Give the true masks of the labelled images, uint8 (n, K, H, W), 0 or 1, in the order of the catalogue.

    Raises
    ------
    SettingsError
        If there are none, too many to be held at a time, or if they are of other labels or show one nowhere.
    StateError
        If they do not lie where they belong, or stand elsewhere in the catalogue than in front.
    """
    indices = catalogue.indices("labelled")
    if not len(indices):
        raise SettingsError(
            'fusion.method = "stack" is fitted on labelled images of the coordinator, and the catalogue in '
            f"{catalogue.folder} lists none: build one with `consilium catalogue build ... --labelled FOLDER`, into a new run "
            "folder, or choose another fusion.method"
        )
    if indices[-1] != len(indices) - 1:
        raise StateError(
            f"labelled images stand in front of a catalogue; in {catalogue.folder} some come after others: build it again"
        )
    held = study.collect.chunk * study.collect.chunks_in_flight
    if len(indices) > held:
        raise SettingsError(
            f"the masks of all labelled images are held until the stack is fitted, and collect.chunk x chunks-in-flight = {held} "
            f"are held at a time; the catalogue lists {len(indices)}: set chunks-in-flight higher, or give fewer images"
        )
    names, truth = _packed(run)
    if names != list(study.labels):
        raise SettingsError(
            f"{run.labelled_set} holds masks of {', '.join(names)}; the study's labels are {', '.join(study.labels)}: build the "
            "catalogue with these as --label, in this order"
        )
    ids = [catalogue.manifest.images[i].id for i in indices]
    lacking = sum(name not in truth for name in ids)
    if lacking:
        raise StateError(
            f"{run.labelled_set} lacks the true masks of {lacking} of {len(ids)} labelled images of the catalogue: put back the "
            "folder that was made with it, or build the catalogue again"
        )
    masks = np.stack([truth[name] for name in ids])
    flat = [label for k, label in enumerate(study.labels) if not 0 < np.count_nonzero(masks[:, k]) < masks[:, k].size]
    if flat:
        raise SettingsError(
            f"a stack is fitted on images that show each label somewhere, and not everywhere; the {len(ids)} labelled images do "
            f"not for {', '.join(flat)}: build the catalogue with others"
        )
    return masks


def _packed(run: RunFolder) -> tuple[list[str], dict[str, npt.NDArray[np.uint8]]]:
    """What lies in the run folder: labels, and masks uint8 (K, H, W) by image id."""
    try:
        names = json.loads((run.labelled_set / LABELS).read_text("utf-8"))
        held = labelled.open_packed(run.labelled_set)
    except (OSError, ValueError, StateError) as error:
        raise StateError(
            f"{run.labelled_set} does not hold the true masks of the labelled images ({error}): put back the folder that was "
            "made with the catalogue, or build it again, into a new run folder"
        ) from None
    return list(names), dict(zip(held.sources, held.masks, strict=True))
