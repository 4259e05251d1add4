"""Which network, and how large. Imports no torch."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from consilium.common.settings import Settings

OWN_NETWORKS: Final = ("unet", "attention-unet", "sdu-net")
ENCODER_NETWORKS: Final = ("panoptic-fpn", "deeplabv3plus")
SMP_PREFIX: Final = "smp:"


class NetworkSettings(Settings):
    """A network by name.

    Three networks are trained from scratch only (``unet``, ``attention-unet``, ``sdu-net``); ``panoptic-fpn``,
    ``deeplabv3plus`` and ``smp:ARCH`` are a decoder on an encoder of segmentation-models-pytorch or timm.
    """

    name: str = Field(description="unet, attention-unet, sdu-net, panoptic-fpn, deeplabv3plus, or smp:ARCH")
    encoder: str = Field(
        "resnet18",
        pattern=r"^[A-Za-z0-9_.-]+$",  # timm would fetch "hf-hub:..." and read "local-dir:..."
        description="smp or timm (tu-NAME) encoder; the first three networks have none",
    )
    encoder_weights: str = Field(
        "none", description="none, a hub name such as imagenet, or a .safetensors or .pth file of the encoder's weights"
    )
    weights: str = Field(
        "none",
        pattern=r"^none$|\.safetensors$",
        description="none, or a .safetensors file to begin with, of this whole network: of `consilium pretrain`, or of a student",
    )
    width: int = Field(
        64, ge=4, le=256, description="channels of the first level; 64 is the published size and everything scales"
    )
    norm: Literal["batch", "group"] = Field("batch", description="group does not depend on the batch")

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        known = (*OWN_NETWORKS, *ENCODER_NETWORKS)
        if self.name not in known and not self.name.startswith(SMP_PREFIX):
            raise ValueError(f"name is one of {', '.join(known)}, {SMP_PREFIX}ARCH; got {self.name!r}")
        if self.name in OWN_NETWORKS and self.encoder_weights != "none":
            raise ValueError(f"{self.name} has no encoder, so encoder-weights must stay 'none'")
        if self.weights != "none" and self.encoder_weights != "none":
            raise ValueError(
                f"weights are those of the encoder, too; leave encoder-weights out; got {self.encoder_weights!r}"
            )
        if self.name == "sdu-net" and self.width % 16:
            raise ValueError(f"sdu-net splits its width by 16, so width is a multiple of 16; got {self.width}")
        if self.name.startswith(SMP_PREFIX) and self.width != 64:
            raise ValueError(f"width has no meaning for {SMP_PREFIX}ARCH; leave it out and choose a smaller encoder")
        return self

    @property
    def from_scratch(self) -> Self:
        """The same network with nothing to begin with: for one whose weights come from elsewhere."""
        return self.model_copy(update={"weights": "none", "encoder_weights": "none"})
