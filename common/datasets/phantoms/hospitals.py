"""Four imaginary hospitals: what each one's scanner does to every image, and who comes to it."""

from dataclasses import dataclass
from typing import Final

Range = tuple[float, float]


@dataclass(frozen=True)
class Scanner:
    """What a hospital's machine does to every case."""

    depth_cm: float
    """Depth shown; a deeper view shows thinner layers."""
    gain_db: float
    """Level of subcutaneous fat above the black end of the display."""
    dynamic_range_db: float
    """Echo levels between black and white."""
    gamma: float
    """Exponent of the gray map; below 1 washes out, above 1 darkens."""
    black: float
    """Gray level of the black end, 0 to 1 (a lifted floor washes the image out)."""
    axial_speckle: float
    """Standard deviation of the point spread function along the beam, in image sides."""
    lateral_speckle: float
    """The same across the beam."""
    looks: int
    """Envelopes averaged (spatial compounding): more looks, less speckle."""
    noise_db: float
    """Level of electronic noise, against fat, before the time-gain curve."""
    slope_db: float
    """Echo level lost from top to bottom that the time-gain curve does not restore."""
    tgc_ripple_db: float
    """Standard deviation of the time-gain curve's error along the depth."""
    shadow_strength: float
    """Factor on every shadow and enhancement (compounding weakens them)."""
    caliper_share: float
    """Share of images with burnt-in calipers on a lesion, or on a structure that is none."""
    text_share: float
    """Share of images with burnt-in text."""


@dataclass(frozen=True)
class CaseMix:
    """Who comes to a hospital: ranges are (low, high) of uniform distributions."""

    radius: Range
    """Mean lesion radius in image sides (0.1 covers about 3 % of the image, 0.25 about 20 %)."""
    contrast_db: Range
    """Echo level of a lesion against the tissue around it; negative is hypoechoic."""
    hyperechoic_share: float
    """Share of lesions somewhat brighter than their surroundings (8 to 11 dB), whatever `contrast_db`."""
    cyst_share: float
    """Share of lesions without inner echoes."""
    fuzziness: Range
    """Width of the border's transition in image sides."""
    lobulation: Range
    """Relative size of the outline's slow waves."""
    spiculation: Range
    """Relative size of the outline's fast waves."""
    aspect: Range
    """Width over height."""
    rim_db: Range
    """Rim around the lesion against the tissue: bright around a dark lesion, dark around a bright one."""
    shadow_share: float
    """Probability of a shadow behind a solid lesion."""
    enhancement_share: float
    """Probability of enhancement behind a lesion without a shadow; a cyst always has it."""
    second_lesion_share: float
    """Share of images with two lesions."""
    lobules: float
    """Expected number of dark fat lobules."""
    vessels: float
    """Expected number of vessels cut across."""
    ribs: float
    """Probability of ribs in view."""
    ligaments: float
    """Expected number of shadows of ligaments."""


@dataclass(frozen=True)
class Hospital:
    """A scanner and the patients in front of it."""

    name: str
    scanner: Scanner
    case_mix: CaseMix


HOSPITALS: Final[dict[str, Hospital]] = {
    # A modern linear probe: fine speckle, compounding. Smooth, dark, benign masses; never a rib or a shadowing mass.
    "north": Hospital(
        "north",
        Scanner(
            depth_cm=3.6, gain_db=20, dynamic_range_db=66, gamma=1.0, black=0.02, axial_speckle=0.0045,
            lateral_speckle=0.0065, looks=4, noise_db=-34, slope_db=5, tgc_ripple_db=1.0, shadow_strength=0.8,
            caliper_share=0.0, text_share=0.2,
        ),
        CaseMix(
            radius=(0.14, 0.24), contrast_db=(-13, -7), hyperechoic_share=0.0, cyst_share=0.15,
            fuzziness=(0.008, 0.018), lobulation=(0.02, 0.14), spiculation=(0.0, 0.03), aspect=(1.1, 1.7),
            rim_db=(0, 3), shadow_share=0.0, enhancement_share=0.8, second_lesion_share=0.1, lobules=1.5,
            vessels=0.5, ribs=0.0, ligaments=0.3,
        ),
    ),
    # An old machine at low gain: coarse speckle, strong shadows. Small irregular masses; never sees a cyst or a vessel.
    "east": Hospital(
        "east",
        Scanner(
            depth_cm=4.6, gain_db=20, dynamic_range_db=56, gamma=1.15, black=0.0, axial_speckle=0.008,
            lateral_speckle=0.016, looks=2, noise_db=-24, slope_db=9, tgc_ripple_db=1.5, shadow_strength=1.2,
            caliper_share=0.0, text_share=0.1,
        ),
        CaseMix(
            radius=(0.105, 0.155), contrast_db=(-18, -12), hyperechoic_share=0.0, cyst_share=0.0,
            fuzziness=(0.01, 0.02), lobulation=(0.06, 0.16), spiculation=(0.05, 0.12), aspect=(0.75, 1.15),
            rim_db=(1, 5), shadow_share=0.8, enhancement_share=0.0, second_lesion_share=0.05, lobules=0.6,
            vessels=0.0, ribs=0.5, ligaments=0.8,
        ),
    ),
    # Everything bright and flat: high gain, wide dynamic range. Faint masses with a bright halo, a few hyperechoic.
    "south": Hospital(
        "south",
        Scanner(
            depth_cm=4.0, gain_db=36, dynamic_range_db=80, gamma=0.95, black=0.06, axial_speckle=0.006,
            lateral_speckle=0.010, looks=4, noise_db=-26, slope_db=2, tgc_ripple_db=2.5, shadow_strength=0.7,
            caliper_share=0.0, text_share=0.1,
        ),
        CaseMix(
            radius=(0.11, 0.18), contrast_db=(-15, -9), hyperechoic_share=0.15, cyst_share=0.0,
            fuzziness=(0.010, 0.020), lobulation=(0.04, 0.14), spiculation=(0.0, 0.04), aspect=(1.0, 1.6),
            rim_db=(5, 9), shadow_share=0.2, enhancement_share=0.3, second_lesion_share=0.1, lobules=0.0,
            vessels=0.6, ribs=0.3, ligaments=0.5,
        ),
    ),
    # A narrow dynamic range, hard black and white. Cysts and dark masses under calipers; many vessels and ribs.
    "west": Hospital(
        "west",
        Scanner(
            depth_cm=5.0, gain_db=20, dynamic_range_db=50, gamma=0.9, black=0.0, axial_speckle=0.0055,
            lateral_speckle=0.010, looks=3, noise_db=-30, slope_db=4, tgc_ripple_db=2.0, shadow_strength=1.0,
            caliper_share=0.7, text_share=0.8,
        ),
        CaseMix(
            radius=(0.11, 0.20), contrast_db=(-16, -10), hyperechoic_share=0.0, cyst_share=0.6,
            fuzziness=(0.008, 0.018), lobulation=(0.03, 0.18), spiculation=(0.0, 0.04), aspect=(0.9, 1.6),
            rim_db=(0, 5), shadow_share=0.2, enhancement_share=0.5, second_lesion_share=0.25, lobules=1.2,
            vessels=1.5, ribs=0.6, ligaments=0.0,
        ),
    ),
}  # fmt: skip
