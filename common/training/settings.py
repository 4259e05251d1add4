"""How a network is trained. Imports no torch."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from consilium.common.settings import Settings


class TrainingSettings(Settings):
    """The paper's training (appendix A.3) unless said otherwise: Adam, 1e-4, batches of 4.

    The length is given by exactly one of `epochs` and `image_budget`. The paper's epochs are inversely proportional
    to the number of images: that is a budget of images.
    """

    epochs: int = Field(0, ge=0, description="times every image is seen")
    image_budget: int = Field(0, ge=0, description="images seen in all, repeats counted")
    batch: int = Field(4, ge=1, description="images a step, over all processes together")
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate: the paper's, or down to 0 along half a cosine"
    )
    augment: bool = Field(True, description="the five augmentations of appendix A.1")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every_s: float = Field(30.0, ge=0, description="seconds between checkpoints")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's own choice")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs > 0) == (self.image_budget > 0):
            raise ValueError(
                f"exactly one of epochs and image-budget is above 0; got {self.epochs} and {self.image_budget}"
            )
        return self

    def rate(self, step: int, steps: int) -> float:
        """Give the learning rate of a step, counted from 0, of so many; a function of the step alone, so that it resumes."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2

    def steps(self, image_count: int) -> int:
        """Give the number of optimiser steps on `image_count` images.

        Every batch is full: the shuffled epochs follow one another as one stream that is cut into batches, so a batch
        may hold the end of one epoch and the start of the next. The last batch is filled up: the budget rounds up. A
        batch of one left-over image, which batch normalisation on 1 x 1 features cannot take, never occurs.
        """
        images = self.image_budget or self.epochs * image_count
        return -(-images // self.batch)
