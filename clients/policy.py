"""What a site allows. Pure decisions: no files, no clock, no network."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from consilium.common.errors import ErrorCode, WireError
from consilium.common.settings import Settings
from consilium.common.soft_mask import SoftMasks, reduce_levels

Permission = Literal["predict", "evaluate", "fine-tune"]
Output = Literal["soft", "binary"]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Policy(Settings):
    """The ``[policy]`` of a site.

    The bounds on images and masks limit how much of the teacher's behaviour leaves the site. They assume that the audit
    log is kept: the budget is counted in it.
    """

    actions: tuple[Permission, ...] = Field(("predict", "evaluate", "fine-tune"), description="what may be asked for")
    levels: int = Field(
        256, ge=2, le=256, multiple_of=2, description="levels of a soft mask that leaves, even; 2 is a binary mask"
    )
    max_images: int = Field(100_000, ge=1, description="images of one catalogue")
    mask_budget: int = Field(1_000_000, ge=1, description="soft masks that may ever leave, repeats counted")
    max_message_mib: int = Field(512, ge=1, le=1024, description="largest message taken")
    trusted_signers: tuple[PublicKey, ...] = Field((), description="Ed25519 public keys, in hex, of coordinators")
    auto_approve: bool = Field(False, description="take studies of any signer; for simulations only")

    @model_validator(mode="after")
    def _one_kind_of_trust(self) -> Self:
        if self.auto_approve and self.trusted_signers:
            raise ValueError("either trusted-signers are named or auto-approve is true, not both")
        return self


def require_permission(policy: Policy, permission: Permission) -> None:
    """Refuse an action the site does not allow: `WireError` ``refused-by-policy``."""
    if permission not in policy.actions:
        raise WireError(ErrorCode.REFUSED_BY_POLICY, f"{permission} is not among policy.actions")


def require_consent(policy: Policy, signer: bytes) -> None:
    """Refuse a study whose signer the site does not trust: `WireError` ``not-consented``."""
    if not policy.auto_approve and signer.hex() not in policy.trusted_signers:
        raise WireError(ErrorCode.NOT_CONSENTED, f"signer {signer.hex()} is not among policy.trusted-signers")


def require_size(policy: Policy, image_count: int) -> None:
    """Refuse a catalogue of too many images: `WireError` ``refused-by-policy``."""
    if image_count > policy.max_images:
        raise WireError(
            ErrorCode.REFUSED_BY_POLICY,
            f"the catalogue has {image_count} images, policy.max-images is {policy.max_images}",
        )


def require_budget(policy: Policy, masks_gone: int, masks_wanted: int) -> None:
    """Refuse masks beyond the site's budget: `WireError` ``refused-by-policy``."""
    if masks_gone + masks_wanted > policy.mask_budget:
        raise WireError(
            ErrorCode.REFUSED_BY_POLICY,
            f"{masks_gone} masks have left, {masks_wanted} more are asked for, policy.mask-budget is {policy.mask_budget}",
        )


def output_kind(policy: Policy, teacher_output: Output) -> Output:
    """Tell which masks leave: a soft teacher behind two levels is binary to everyone else."""
    return "binary" if teacher_output == "binary" or policy.levels == 2 else "soft"


def limit_output(policy: Policy, teacher_output: Output, masks: SoftMasks) -> SoftMasks:
    """Coarsen masks, uint8 of any shape, to what may leave the site."""
    return reduce_levels(masks, 2 if output_kind(policy, teacher_output) == "binary" else policy.levels)
