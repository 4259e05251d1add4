"""The paper's figures 1 and 3 from our own pseudo masks, as fragments of HTML.

They need nothing but the page they stand in, whose style sheet has the colours of the report (``--ink``, ``--grid``, ``--kept``,
``--out``, ``--mark``).
"""

import base64
import io
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from consilium.common.errors import DataError
from consilium.common.soft_mask import SoftMasks
from consilium.server.exclusion import Reason, Statistics, reasons
from consilium.server.report.figures import entropy_histogram

PICTURE_PIXELS: Final = 192
_HEADS: Final = {
    Reason.FEW_TARGET_PIXELS: "left out: too few target pixels",
    Reason.HIGH_ENTROPY: "left out: entropy too high",
    Reason.KEPT: "kept",
}


def exclusion_examples(
    images: npt.NDArray[np.uint8],
    masks: SoftMasks,
    found: Statistics,
    *,
    alpha: float,
    beta: float | None,
    each: int = 1,
) -> Markup:
    """Draw examples of both exclusions and of kept images, with their pseudo masks below (figure 1).

    Nobody chooses them: one example is the middle one of its kind by what decided, several are spread evenly from least to
    most. Images that both thresholds leave out are not shown.

    Parameters
    ----------
    images
        uint8 (n, C, H, W); may be memory-mapped.
    masks
        Their pseudo masks, uint8 (n, K, H, W).
    found
        Target pixels and entropies of the masks.
    alpha, beta
        The thresholds, as in `exclusion.reasons`.
    each
        Examples of each kind, at least 1.

    Raises
    ------
    DataError
        If images, masks and statistics are not of the same images.
    """
    counts = (len(images), len(masks), len(found.target_pixels), len(found.entropy_bits))
    if len(set(counts)) != 1 or images.shape[2:] != masks.shape[2:]:
        raise DataError(
            f"images, pseudo masks and their statistics belong together one by one; got {images.shape}, {masks.shape} and "
            f"{counts[2]} and {counts[3]} numbers"
        )
    why = np.array(reasons(found, alpha=alpha, beta=beta, size=masks.shape[-1]), object)
    heads: list[Markup] = []
    lines: dict[str, list[Markup]] = {"image": [], "pseudo mask": [], "": []}
    for reason, head in _HEADS.items():
        by = found.entropy_bits if reason == Reason.HIGH_ENTROPY else found.target_pixels
        chosen = _spread(np.flatnonzero(why == reason), by, each)
        span, count = max(len(chosen), 1), int((why == reason).sum())
        heads.append(Markup('<th scope="col" colspan="{}">{} ({:,})</th>').format(span, head, count))
        for place in chosen:
            lines["image"].append(_cell(images[place], f"image, {head}"))
            lines["pseudo mask"].append(_cell(masks[place].max(axis=0)[None], f"pseudo mask, {head}"))
            words = f"N = {found.target_pixels[place]:,} px, E = {found.entropy_bits[place]:.2f} bits"
            lines[""].append(Markup("<td>{}</td>").format(words))
        if not len(chosen):
            for line in lines.values():
                line.append(Markup("<td>—</td>"))
    rows = Markup("\n").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, Markup("").join(line)) for name, line in lines.items()
    )
    threshold = f"alpha = {alpha:g} pixels at 384 x 384, " + ("no beta" if beta is None else f"beta = {beta:g} bits")
    return Markup(
        '<figure class="exclusion-examples">\n<table>\n<caption>Exclusion by pseudo masks, {}. In brackets: images of each kind'
        ".</caption>\n<thead><tr><td></td>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n</figure>\n"
    ).format(threshold, Markup("").join(heads), rows)


def entropy_histograms(found: Mapping[str, Statistics], *, alpha: float, beta: float | None, size: int) -> Markup:
    """Draw how gray-level entropy is spread over the pseudo masks of each transferal data set (figure 3).

    All have one axis of entropies; images are counted on an axis of each data set's own.

    Parameters
    ----------
    found
        Target pixels and entropies, by the data set's name.
    alpha, beta, size
        As in `exclusion.reasons`.
    """
    most = max((float(one.entropy_bits.max(initial=0.0)) for one in found.values()), default=0.0)
    most = max(most, beta or 0.0, 1.0) * 1.05
    parts = []
    for name, one in found.items():
        kept = np.array([reason == Reason.KEPT for reason in reasons(one, alpha=alpha, beta=beta, size=size)], np.bool_)
        drawn = entropy_histogram(one.entropy_bits, kept, beta, most_bits=most)
        parts.append(
            Markup("<figure>\n<figcaption>{}: {:,} of {:,} images kept</figcaption>\n{}\n</figure>").format(
                name, int(kept.sum()), len(kept), drawn
            )
        )
    return Markup('<div class="entropy-histograms">\n{}\n</div>\n').format(Markup("\n").join(parts))


def _spread(places: npt.NDArray[np.int64], by: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.int64]:
    """Choose so many, spread evenly over the order of ``by``; the middle one alone."""
    ordered = places[np.argsort(by[places], kind="stable")]
    if not len(ordered):
        return ordered
    ends = (0.5, 0.5) if count == 1 else (0.0, 1.0)
    return ordered[np.unique(np.rint(np.linspace(*ends, count) * (len(ordered) - 1)).astype(np.int64))]


def _cell(pixels: npt.NDArray[np.uint8], told: str) -> Markup:
    """Pixels, uint8 (C, H, W), as a picture in a cell."""
    image = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)))
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return Markup('<td><img src="{}" alt="{}" width="{}" height="{}"></td>').format(
        source, told, PICTURE_PIXELS, PICTURE_PIXELS
    )
