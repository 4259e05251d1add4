"""What a site allows. Pure decisions: no files, no clock, no network."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from consilium.common.errors import ErrorCode, WireError
from consilium.common.settings import Name, NameList, Settings
from consilium.common.soft_mask import SoftMasks, reduce_levels

Permission = Literal["predict", "evaluate", "fine-tune"]
Output = Literal["soft", "binary"]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_METRICS_OF_TESTS = ("dice-mean", "dice-std")


class Policy(Settings):
    """A site's ``policy.toml``, or the ``[policy]`` of its ``site.toml``.

    It says what may leave at all; whether a study may have it, a person says (`consent`). The bounds on masks and students
    limit how much of the teacher's and the data's behaviour leaves the site. They assume that the audit log is kept: both are
    counted in it.
    """

    actions: tuple[Permission, ...] = Field(("predict", "evaluate", "fine-tune"), description="what may be asked for")
    studies: NameList = Field((), description="names of studies that may be shown; any where empty")
    trusted_signers: tuple[PublicKey, ...] = Field(
        (), description="Ed25519 public keys, in hex, of coordinators whose studies may be shown; anyone's where empty"
    )
    labels: NameList = Field((), description="labels of a study that are answered; all the teacher knows where empty")
    levels: int = Field(
        256, ge=2, le=256, multiple_of=2, description="levels of a soft mask that leaves, even; 2 is a binary mask"
    )
    sealed: bool = Field(
        True, description="masks leave only sealed to the study's key; false: in clear for a study that has none"
    )
    near_duplicate: float = Field(
        0.95,
        gt=0,
        le=1,
        description="correlation of thumbnails above which an image is one of the training images and is not answered; 1: never",
    )
    min_images: int = Field(10, ge=1, description="least images behind a metric that leaves")
    max_images: int = Field(100_000, ge=1, description="images of one catalogue")
    mask_budget: int = Field(
        1_000_000, ge=1, description="soft masks that may ever leave; an image asked again costs nothing"
    )
    max_students: int = Field(4, ge=1, description="different students of one study that are evaluated or fine-tuned")
    max_message_mib: int = Field(512, ge=1, le=1024, description="largest message taken")
    max_waiting: int = Field(8, ge=1, description="studies kept that nobody has decided about")
    review_mib: int = Field(4096, ge=0, description="largest catalogue whose images are kept before there is consent")
    auto_approve: bool = Field(
        False, description="take every study that may be shown, without a person's consent; for simulations only"
    )


def require_permission(policy: Policy, permission: Permission) -> None:
    """Refuse an action the site does not allow: `WireError` ``refused-by-policy``."""
    if permission not in policy.actions:
        raise WireError(ErrorCode.REFUSED_BY_POLICY, f"{permission} is not among policy.actions")


def require_signer(policy: Policy, signer: bytes) -> None:
    """Refuse a study whose signer the site does not trust: `WireError` ``refused-by-policy``."""
    if policy.trusted_signers and signer.hex() not in policy.trusted_signers:
        raise WireError(ErrorCode.REFUSED_BY_POLICY, f"signer {signer.hex()} is not among policy.trusted-signers")


def require_sealing(policy: Policy, key: bytes) -> None:
    """Refuse a study whose masks would travel in clear: `WireError` ``refused-by-policy``."""
    if policy.sealed and not key:
        raise WireError(ErrorCode.REFUSED_BY_POLICY, "the study has no key to seal masks to, and policy.sealed is true")


def require_study(policy: Policy, name: Name, image_count: int) -> None:
    """Refuse a study that may not be shown, or has too many images: `WireError` ``refused-by-policy``."""
    if policy.studies and name not in policy.studies:
        raise WireError(ErrorCode.REFUSED_BY_POLICY, f"{name} is not among policy.studies")
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


def require_students(policy: Policy, students: int) -> None:
    """Refuse a study's further students, of which ``students`` were sent with this one: `WireError` ``refused-by-policy``.

    Dice of a student made for the purpose tells about the labels it is compared with; many would tell them.
    """
    if students > policy.max_students:
        raise WireError(
            ErrorCode.REFUSED_BY_POLICY, f"student number {students}, policy.max-students is {policy.max_students}"
        )


def require_enough(policy: Policy, image_count: int) -> None:
    """Refuse a metric over too few images: `WireError` ``refused-by-policy``."""
    if image_count < policy.min_images:
        raise WireError(
            ErrorCode.REFUSED_BY_POLICY, f"a metric over {image_count} images, policy.min-images is {policy.min_images}"
        )


def public_card(policy: Policy, card: Mapping[str, object]) -> dict[str, object]:
    """What leaves of a teacher's card: no metric over too few images."""
    images = card.get("test-images", 0)
    enough = isinstance(images, int) and images >= policy.min_images
    told = {key: value for key, value in card.items() if enough or key not in _METRICS_OF_TESTS}
    for part in ("checked", "validation"):
        found = told.get(part)
        if isinstance(found, Mapping) and not int(found.get("images", 0)) >= policy.min_images:
            del told[part]
    return told


def output_kind(policy: Policy, teacher_output: Output) -> Output:
    """Tell which masks leave: a soft teacher behind two levels is binary to everyone else."""
    return "binary" if teacher_output == "binary" or policy.levels == 2 else "soft"


def limit_output(policy: Policy, teacher_output: Output, masks: SoftMasks) -> SoftMasks:
    """Coarsen masks, uint8 of any shape, to what may leave the site."""
    return reduce_levels(masks, 2 if output_kind(policy, teacher_output) == "binary" else policy.levels)
