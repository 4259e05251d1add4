"""What a site does in an ablation: it trains its teacher, measures it on its own images, and answers about others.

What a scenario says is wrong with a site is done to all its teacher's answers, those to itself too: a site does not know it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from consilium.common.datasets.labelled import Labelled
from consilium.common.files import write_text
from consilium.common.soft_mask import SoftMasks, quantise
from consilium.common.temperature import LOGITS_CLIP, temper
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings
from consilium.common.validation import Validation, measure
from consilium.common.views import Views, look
from consilium.server.ablation.settings import SiteSettings
from consilium.server.experiment import stages
from consilium.server.experiment.data import DataSet
from consilium.server.experiment.stages import Masks, Model
from consilium.server.experiment.store import Store

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Teacher:
    """A site's teacher, and what is wrong with it."""

    model: Model
    logits: float
    inverted: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its answers."""
        return {"teacher": self.model.artefact.digest, "logits": self.logits, "inverted": self.inverted}

    def asked(self, module: nn.Module, views: Views) -> Callable[[npt.NDArray[np.uint8]], Probabilities]:
        """Give its probabilities, at temperature 1, as a function of images."""

        def answer(images: npt.NDArray[np.uint8]) -> Probabilities:
            said = temper(predict(module, images, device=self.model.device), 1 / self.logits, LOGITS_CLIP)
            return 1 - said if self.inverted else said

        return lambda images: look(answer, images, views)


def teach(store: Store, name: str, site: SiteSettings, data: DataSet, *, seed: int) -> Teacher:
    """Train a site's teacher with the site's labels."""
    own = stages.seed_of(seed, name)
    what = f"{name} trains its teacher, {site.network.name}"
    model = stages.teach(store, site.network, site.training, data, seed=own, what=what)
    return Teacher(model, site.logits, site.inverted)


def fine_tune(
    store: Store, name: str, teacher: Teacher, student: Model, training: TrainingSettings, data: DataSet, *, seed: int
) -> Teacher:
    """Give what answers in a site's teacher's place in a follow-up: the student, trained on with the site's labels."""
    model = stages.fine_tune(store, student, training, data, np.arange(len(data)), seed=stages.seed_of(seed, name))
    return replace(teacher, model=model)


def validate(store: Store, teacher: Teacher, data: DataSet, views: Views) -> Validation:
    """Measure a teacher on its site's validation images: Dice, the temperature that would suit it, misses and false alarms."""
    facts = teacher.facts | {"data": data.digest, "views": views}

    def make(folder: Path) -> None:
        labelled = Labelled(data.images, data.truth, data.sources, data.groups)
        found = measure(teacher.asked(teacher.model.load(), views), labelled, LOGITS_CLIP)
        if found is None:
            raise ValueError(f"{data.name} holds no image")  # a part without images was refused when it was dealt
        write_text(folder / "validation.json", json.dumps(asdict(found)) + "\n")

    kept = store.keep("validation", facts, make)
    return Validation(**json.loads((kept.folder / "validation.json").read_text("utf-8")))


def answer(store: Store, teacher: Teacher, data: DataSet, views: Views, temperature: float) -> Masks:
    """Give the soft masks that leave a site: views averaged, at its temperature."""
    facts = teacher.facts | {"images": data.pixels, "views": views, "temperature": temperature}

    def begin() -> Callable[[slice], SoftMasks]:
        ask = teacher.asked(teacher.model.load(), views)
        return lambda at: quantise(temper(ask(np.asarray(data.images[at])), temperature, LOGITS_CLIP))

    return stages.keep_masks(store, facts, len(data), begin, f"{teacher.model.network.name} annotates {data.name}")
