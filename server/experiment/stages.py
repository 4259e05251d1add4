"""The stages of an experiment: what a study does, on one machine and without a wire.

Each is a function from what it needs to what it leaves in a `Store`, and is computed once, whoever asks: an experiment's
cells share teachers, soft masks and students. They are a library too::

    store = Store(Path("runs/ablation"))
    lesions = prepare(store, "lesions", settings.data["lesions"], size=128, channels=1)
    teacher = teach(store, network, training, lesions, seed=0)
    masks = annotate(store, teacher, images)
    student = distil(store, images, fuse(store, [masks]), StudentSettings(...), seed=0)
    print(evaluate(store, student, tests).mean())
"""

import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from consilium.common.metrics import dice
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.networks.student_files import WEIGHTS_NAME, load_student, save_student, student_card
from consilium.common.networks.weights import digest_of_file
from consilium.common.soft_mask import SoftMasks, quantise, reduce_levels
from consilium.common.study import StudentSettings
from consilium.common.training.loop import Progress, fit
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings
from consilium.server import exclusion
from consilium.server.distill import distill
from consilium.server.experiment.data import DataSet
from consilium.server.experiment.store import Artefact, Store, digest_of
from consilium.server.fusion import weighted_mean
from consilium.server.pretrain import CHECKPOINTS, Shape, on_phantoms

CHUNK: Final = 128
"""Images predicted or fused at a time; bounds memory."""


@dataclass(frozen=True)
class Model:
    """A trained network in a store."""

    artefact: Artefact
    network: NetworkSettings
    device: str

    def load(self) -> nn.Module:
        """Read it: on the CPU, in evaluation mode."""
        return load_student(self.artefact.folder)[0]

    @property
    def start(self) -> NetworkSettings:
        """The same network, to begin with these weights."""
        return self.network.from_scratch.model_copy(update={"weights": str(self.artefact.folder / WEIGHTS_NAME)})


@dataclass(frozen=True)
class Masks:
    """Soft masks of a data set: uint8 (N, K, H, W), memory-mapped, and a digest that names them."""

    digest: str
    masks: SoftMasks


@dataclass(frozen=True)
class Selection:
    """Which images exclusion keeps, by position, and what was measured of all."""

    kept: npt.NDArray[np.int64]
    found: exclusion.Statistics
    reasons: list[exclusion.Reason]


def teach(
    store: Store, network: NetworkSettings, training: TrainingSettings, data: DataSet, *, seed: int, what: str = ""
) -> Model:
    """Train a teacher with the labels of a data set.

    Parameters
    ----------
    store
        Keeps it.
    network, training
        Which, and how.
    data
        With masks.
    seed
        Decides initial weights, order and augmentation.
    what
        For the display.
    """
    whole = np.arange(len(data))
    facts = training_facts(network, training, seed) | {"data": data.digest}
    make = _supervised(store, network, training, data, whole, seed, what or f"{network.name} learns {data.name}")
    return Model(store.keep("model", facts, make), network, training.device)


def pretrain(
    store: Store,
    network: NetworkSettings,
    training: TrainingSettings,
    images: int,
    shape: Shape,
    *,
    seed: int,
) -> Model:
    """Train a network on synthetic ultrasound.

    Parameters
    ----------
    store
        Keeps it.
    network, training
        Which, and how.
    images
        How many are made.
    shape
        As of the data it is for.
    seed
        Of the images, and as for `teach`.
    """
    facts = training_facts(network, training, seed) | {"phantoms": images, "shape": list(shape)}
    told = teller(store, f"{network.name} learns from {images} phantoms")

    def make(folder: Path) -> None:
        _save(folder, on_phantoms(network, training, images, shape, seed, folder, told), student_card(network, *shape))

    return Model(store.keep("model", facts, make), network, training.device)


def from_scratch(
    store: Store,
    network: NetworkSettings,
    training: TrainingSettings,
    data: DataSet,
    indices: npt.NDArray[np.int64],
    *,
    seed: int,
) -> Model:
    """Train a network with the labels of some images, by position."""
    facts = training_facts(network, training, seed) | {"data": data.digest, "indices": indices.tolist()}
    what = f"{network.name} learns {len(indices)} of {data.name} from scratch"
    make = _supervised(store, network, training, data, indices, seed, what)
    return Model(store.keep("model", facts, make), network, training.device)


def fine_tune(
    store: Store,
    model: Model,
    training: TrainingSettings,
    data: DataSet,
    indices: npt.NDArray[np.int64],
    *,
    seed: int,
) -> Model:
    """Train a model on with the labels of some images, by position (Algorithm 2, line 12)."""
    facts = training_facts(model.network, training, seed) | {
        "from": model.artefact.digest,
        "data": data.digest,
        "indices": indices.tolist(),
    }
    what = f"{model.network.name} is fine-tuned on {len(indices)} of {data.name}"
    make = _supervised(store, model.network, training, data, indices, seed, what, model.load)
    return Model(store.keep("model", facts, make), model.network, training.device)


def annotate(store: Store, teacher: Model, data: DataSet, *, binary: bool = False) -> Masks:
    """Give a teacher's soft masks, or binary ones, of every image of a data set."""
    facts = {"teacher": teacher.artefact.digest, "images": data.pixels, "binary": binary}

    def begin() -> Callable[[slice], SoftMasks]:
        module = teacher.load()

        def masks_of(at: slice) -> SoftMasks:
            masks = quantise(predict(module, data.images[at], device=teacher.device))
            return reduce_levels(masks, 2) if binary else masks

        return masks_of

    return keep_masks(store, facts, len(data), begin, f"{teacher.network.name} annotates {data.name}")


def keep_masks(
    store: Store, facts: Mapping[str, Any], count: int, begin: Callable[[], Callable[[slice], SoftMasks]], what: str
) -> Masks:
    """Give soft masks, computing them if they are not there.

    Parameters
    ----------
    store
        Keeps them.
    facts
        All that decides them.
    count
        How many.
    begin
        Called only if they are to be computed; gives a function from a slice of the images to their masks.
    what
        For the display.
    """

    def make(folder: Path) -> None:
        write_masks(store, folder, count, begin(), what)

    kept = store.keep("masks", facts, make)
    return Masks(kept.digest, open_masks(kept.folder))


def fuse(store: Store, teachers: Sequence[Masks], weights: Sequence[int] | None = None) -> Masks:
    """Fuse soft masks by their weighted mean; one teacher's are its own.

    Parameters
    ----------
    store
        Keeps them.
    teachers
        Masks of one data set.
    weights
        A whole number, at least 1, for each; equal where None.
    """
    if len(teachers) == 1:
        return teachers[0]
    shares = list(weights or [1] * len(teachers))

    def fused(at: slice) -> SoftMasks:
        parts = [np.asarray(teacher.masks[at]) for teacher in teachers]
        state = weighted_mean.init(parts[0].shape)
        for part, weight in zip(parts, shares, strict=True):
            weighted_mean.fold(state, part, weight)
        return weighted_mean.finish(state)

    order = sorted(zip([teacher.digest for teacher in teachers], shares, strict=True))  # a sum knows no order
    facts = {"fused": [list(pair) for pair in order]}
    return keep_masks(
        store, facts, len(teachers[0].masks), lambda: fused, f"masks of {len(teachers)} teachers are fused"
    )


def select(store: Store, pseudo: Masks, *, alpha: float, beta: float | None) -> Selection:
    """Exclude images without a salient target; `alpha` and `beta` as in `exclusion.reasons`."""

    def make(folder: Path) -> None:
        parts = [exclusion.statistics(pseudo.masks[at]) for at in slices(len(pseudo.masks))]
        found = exclusion.join(parts)
        np.save(folder / "target_pixels.npy", found.target_pixels)
        np.save(folder / "entropy_bits.npy", found.entropy_bits)

    folder = store.keep("statistics", {"pseudo": pseudo.digest}, make).folder
    found = exclusion.Statistics(np.load(folder / "target_pixels.npy"), np.load(folder / "entropy_bits.npy"))
    reasons = exclusion.reasons(found, alpha=alpha, beta=beta, size=pseudo.masks.shape[-1])
    return Selection(np.array([i for i, reason in enumerate(reasons) if not reason], np.int64), found, reasons)


def distil(
    store: Store,
    data: DataSet,
    pseudo: Masks,
    settings: StudentSettings,
    *,
    seed: int,
    kept: npt.NDArray[np.int64] | None = None,
    agreement: npt.NDArray[np.float64] | None = None,
) -> Model:
    """Train a student on pseudo-annotated images (Algorithm 1, line 11).

    Parameters
    ----------
    store
        Keeps it.
    data, pseudo
        The transferal images and their pseudo masks.
    settings
        The student.
    seed
        As for `teach`.
    kept
        Positions of the images to train on; all where None.
    agreement
        As of `distill`; whatever decides the pseudo masks decides it too.

    Raises
    ------
    StudyError
        If no image is kept.
    """
    chosen = np.arange(len(data)) if kept is None else kept
    facts = (
        training_facts(settings.network, settings.training, seed)
        | {
            "images": data.pixels,
            "pseudo": pseudo.digest,
            "kept": digest_of(chosen.tolist()),
            "image_weights": settings.image_weights,
            "generations": settings.generations,
        }
        | ({"targets": settings.targets} if settings.targets != "soft" else {})
    )
    what = f"{settings.network.name} learns {len(chosen)} pseudo masks of {data.name}"

    def make(folder: Path) -> None:
        student, _ = distill(
            data.images,
            pseudo.masks,
            settings,
            seed=seed,
            kept=chosen,
            agreement=agreement,
            folder=folder / CHECKPOINTS,
            on_step=teller(store, what),
        )
        save_model(folder, student, settings.network, data, pseudo.masks.shape[1])

    return Model(store.keep("model", facts, make), settings.network, settings.training.device)


def evaluate(
    store: Store, model: Model, data: DataSet, indices: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """Give the Dice, in [0, 1], of a model on each image of a data set, or on some by position."""
    chosen = np.arange(len(data)) if indices is None else indices
    facts = {"model": model.artefact.digest, "data": data.digest, "indices": digest_of(chosen.tolist())}

    def make(folder: Path) -> None:
        module, what, values = model.load(), f"{model.network.name} is tested on {data.name}", []
        for at in slices(len(chosen)):
            masks = quantise(predict(module, data.images[chosen[at]], device=model.device))
            values.append(dice(masks, data.truth[chosen[at]]))
            store.tell(what, at.stop, len(chosen))
        np.save(folder / "dice.npy", np.concatenate(values))

    values: npt.NDArray[np.float64] = np.load(store.keep("scores", facts, make).folder / "dice.npy")
    return values


def seed_of(seed: int, name: str) -> int:
    """Give a name a seed of its own, so that two of the same network differ."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0] >> 1)


def training_facts(network: NetworkSettings, training: TrainingSettings, seed: int) -> dict[str, Any]:
    """All that decides a training but the images."""
    how: Mapping[str, Any] = training.model_dump(mode="json", exclude=training.indecisive())
    which: dict[str, Any] = network.model_dump(mode="json")
    if network.weights != "none":
        which["weights"] = digest_of_file(Path(network.weights))  # what is in it decides, not where it lies
    return {"network": which, "training": how, "seed": seed}


def _supervised(
    store: Store,
    network: NetworkSettings,
    training: TrainingSettings,
    data: DataSet,
    indices: npt.NDArray[np.int64],
    seed: int,
    what: str,
    start: Callable[[], nn.Module] | None = None,
) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        module = start() if start else build(network, data.images.shape[1], data.truth.shape[1], seed)
        fit(
            module,
            data.images[indices],
            data.truth[indices] * np.uint8(255),
            training,
            seed=seed,
            folder=folder / CHECKPOINTS,
            on_step=teller(store, what),
        )
        save_model(folder, module, network, data, data.truth.shape[1])

    return make


def save_model(folder: Path, module: nn.Module, network: NetworkSettings, data: DataSet, classes: int) -> None:
    """Leave a trained network for `Model.load`, and no checkpoint."""
    _save(folder, module, student_card(network, data.images.shape[1], classes, data.images.shape[-1]))


def _save(folder: Path, module: nn.Module, card: Mapping[str, Any]) -> None:
    save_student(folder, module, card)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def teller(store: Store, what: str) -> Callable[[Progress], None]:
    """Give what tells the store's display of a training's steps."""
    return lambda progress: store.tell(what, progress.step, progress.steps)


def write_masks(store: Store, folder: Path, count: int, give: Callable[[slice], SoftMasks], what: str) -> None:
    """Leave soft masks in a folder, chunk by chunk."""
    file: SoftMasks | None = None
    for at in slices(count):
        masks = give(at)
        if file is None:
            shape = (count, *masks.shape[1:])
            file = np.lib.format.open_memmap(folder / "masks.npy", mode="w+", dtype=np.uint8, shape=shape)
        file[at] = masks
        store.tell(what, at.stop, count)
    if isinstance(file, np.memmap):
        file.flush()


def open_masks(folder: Path) -> SoftMasks:
    """Open what `write_masks` left."""
    masks: SoftMasks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False)
    return masks


def slices(count: int) -> list[slice]:
    """Cut so many images into chunks."""
    return [slice(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]
