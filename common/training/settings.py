"""How a network is trained. Imports no torch."""

import math
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from consilium.common.settings import Settings

PAPER_IMAGES: Final = 700_000
"""Images a training of the paper sees in all, repeats counted, unless `PAPER_MOST_EPOCHS` ends it before."""
PAPER_MOST_EPOCHS: Final = 500
_ELSEWHERE: Final = ("device", "threads", "checkpoint_every_s")
_LATER: Final = {"augment_until": 1.0}


def paper_epochs(images: int) -> int:
    """Give the paper's number of epochs on so many images: ``min(500, 700,000 / images)``, rounded, at least 1.

    Appendix A.3 has four numbers and the words "inversely proportional to the image number". Images times epochs are
    697 x 500 = 348,500, 3,830 x 175 = 670,250, 11,143 x 60 = 668,580 and 25,331 x 30 = 759,930: three times about 700,000
    (their geometric mean is 698,000), and once the 500 epochs that teachers were given too. The rule gives 500, 183, 63
    and 28 there, within 9 % of what was used, 500 on the teachers' 1,237 images, and 41 on the 17,125 of PASCAL VOC2012,
    for which the paper has no number. As in the paper, images that exclusion leaves out later count: it shortens a training.
    """
    return max(1, min(PAPER_MOST_EPOCHS, round(PAPER_IMAGES / max(images, 1))))


def _check_epochs(value: object) -> object:
    if value == "paper" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError('epochs are a whole number of at least 0, or "paper"')


Epochs = Annotated[int | Literal["paper"], PlainValidator(_check_epochs)]


def _from_switch(value: object) -> object:
    """Let augmentation be switched on and off too, as when the paper's was the only one."""
    return ("paper" if value else "none") if isinstance(value, bool) else value


Augmentation = Annotated[Literal["none", "paper", "strong"], BeforeValidator(_from_switch)]


class TrainingSettings(Settings):
    """The paper's training (appendix A.3) unless said otherwise: Adam, 1e-4, batches of 4.

    The length is given by exactly one of `epochs` and `image_budget`. The paper's epochs follow from the number of
    images: `paper_epochs`.

    The loss is Dice and binary cross-entropy with equal weights. ``paper`` takes Dice as equation 1 has it, which is made
    for masks of 0 and 1: for a soft pseudo mask its best answer is a hard mask that is too large. ``dice-bce`` is the same
    for masks of 0 and 1, and right for soft ones (`consilium.common.training.loss`).

    What the paper does not have is off: another share of Dice, weight decay, a warm-up, clipped gradients, averaged weights,
    CutMix, strong augmentation, an end without augmentation.
    """

    epochs: Epochs = Field(0, description='times every image is seen; "paper": as many as the paper on so many images')
    image_budget: int = Field(0, ge=0, description="images seen in all, repeats counted")
    loss: Literal["dice-bce", "paper"] = Field(
        "dice-bce", description="right for soft masks, or equation 1 to the letter"
    )
    dice_share: float = Field(0.5, ge=0, le=1, description="of Dice in the loss; the rest is binary cross-entropy")
    batch: int = Field(4, ge=1, description="images a step, over all processes together")
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(0.0, ge=0, description="of adamw; biases and normalisations are spared")
    learning_rate: float = Field(1e-4, gt=0)
    warm_up: float = Field(
        0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises to its own"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate: the paper's, or down to 0 along half a cosine"
    )
    clip_norm: float = Field(0.0, ge=0, description="longest gradient of all weights together; 0 clips none")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the weights' moving average, which is kept; 0 averages none"
    )
    augment: Augmentation = Field("paper", description="none, the five of appendix A.1, or those and changes of gray")
    cutmix: float = Field(0.0, ge=0, le=1, description="probability that an image gets a box of another of its batch")
    augment_until: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the steps that are augmented and mixed; those after see images as they are",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every_s: float = Field(30.0, ge=0, description="seconds between checkpoints")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's own choice")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs != 0) == (self.image_budget > 0):
            raise ValueError(
                f"exactly one of epochs and image-budget is above 0; got {self.epochs} and {self.image_budget}"
            )
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                f'weight-decay needs optimizer = "adamw"; got {self.weight_decay:g} and "{self.optimizer}"'
            )
        if self.cutmix and self.batch < 2:
            raise ValueError(f"cutmix needs a batch of 2 images or more; got {self.batch}")
        return self

    def indecisive(self) -> set[str]:
        """Name the fields that do not decide which weights come of a training, and so are in no digest of it.

        That is where and how fast it runs; and, at its default, what was no setting yet when trainings were known by a
        digest already: a teacher, a checkpoint or an artefact of that time stays what it is.
        """
        return {*_ELSEWHERE, *(name for name, default in _LATER.items() if getattr(self, name) == default)}

    def augments(self, step: int, steps: int) -> bool:
        """Tell whether a step, counted from 0, of so many sees augmented images."""
        return step < round(self.augment_until * steps)

    def on(self, image_count: int) -> Self:
        """Give these settings with ``epochs = "paper"`` spelled out for a data set of so many images."""
        if self.epochs != "paper":
            return self
        return self.model_copy(update={"epochs": paper_epochs(image_count)})

    def rate(self, step: int, steps: int) -> float:
        """Give the learning rate of a step, counted from 0, of so many; a function of the step alone, so that it resumes."""
        rising = round(self.warm_up * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2

    def steps(self, image_count: int) -> int:
        """Give the number of optimiser steps on `image_count` images.

        Every batch is full: the shuffled epochs follow one another as one stream that is cut into batches, so a batch
        may hold the end of one epoch and the start of the next. The last batch is filled up: the budget rounds up. A
        batch of one left-over image, which batch normalisation on 1 x 1 features cannot take, never occurs.
        """
        epochs = self.on(image_count).epochs
        images = self.image_budget or int(epochs) * image_count
        return -(-images // self.batch)


class FineTuningSettings(Settings):
    """Algorithm 2, line 12, with the paper's numbers: 50 labelled images (section 5.2), 50 epochs (appendix A.3)."""

    images: int = Field(50, ge=0, description="labelled images to train on; 0 means all")
    training: TrainingSettings = TrainingSettings(epochs=50)
