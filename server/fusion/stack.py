"""The stack: a logistic regression on what the sites say of a pixel, for a coordinator with a few labelled images of its own.

Of each pixel it is given every site's logit; the same again where the site sees a target in the image, else 0; the logits in
order, whosever they are; the share of sites above one half; the mean over the sites that see a target; and the plain mean. So
it can learn whom to believe, when silence means something, and how much it takes. Each label has a regression of its own.

Fifty images are enough and it takes seconds: pixels of which the sites say nearly the same (to a 16th) are fitted as one, with
their number. Finally the threshold that gives these images the best Dice is moved to one half.

It needs every site's masks, and all of the sites it was fitted on: `consilium.server.stacking` tells what a study does where one
is missing. The order of sites does not matter. It computes in fractions: the same bytes again on the same kind of machine. Does
not work on sums alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from consilium.common.errors import DataError
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks, quantise
from consilium.server import gate
from consilium.server.fusion import patterns

RIDGE: Final = 1e-3
"""Of the squared weights, of standardised inputs, beside the mean loss of a pixel."""

_STEP: Final = 16
_KINDS: Final = 256 // _STEP + 1
_CLIP: Final = 1 / 510
_LEVELS: Final = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """A fitted stack of S sites.

    Attributes
    ----------
    sites
        Sorted.
    weights
        float64 (K, 3 S + 3): of the logits, those of sites that see a target, the ordered ones, the share of votes, the mean
        of those that see a target, the mean.
    offset
        float64 (K,).
    alpha
        Target pixels at 384 x 384 from which on a site sees a target.
    images
        How many it was fitted on.
    """

    sites: tuple[str, ...]
    weights: Floats
    offset: Floats
    alpha: float
    images: int

    def to_card(self) -> dict[str, Any]:
        """Give it as plain values: as JSON they are read back to the bit."""
        return {
            "sites": list(self.sites),
            "weights": self.weights.tolist(),
            "offset": self.offset.tolist(),
            "alpha": self.alpha,
            "images": self.images,
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """Read what `to_card` gave."""
        weights, offset = (np.array(card[key], np.float64) for key in ("weights", "offset"))
        return cls(tuple(card["sites"]), weights, offset, card["alpha"], card["images"])


def fit(masks: Mapping[str, SoftMasks], truth: npt.NDArray[np.uint8], alpha: float = 256.0) -> Stack:
    """Fit a stack.

    Parameters
    ----------
    masks
        By site, uint8 (n, K, H, W), of n labelled images.
    truth
        uint8 (n, K, H, W), 0 or 1.
    alpha
        Target pixels at 384 x 384 from which on a site sees a target.

    Raises
    ------
    DataError
        If shapes differ, or a label has no target pixel, or no other, in these images.
    """
    sites = tuple(sorted(masks))
    held = _stacked(sites, masks)
    if held.shape[1:] != truth.shape:
        raise DataError(f"masks and truth have one shape; got {held.shape[1:]} and {truth.shape}")
    sees = np.stack([gate.sees(mask, alpha) for mask in held])
    found = [_fit_label(held[:, :, k], sees[:, :, k], np.asarray(truth[:, k]) > 0) for k in range(truth.shape[1])]
    weights, offset = np.stack([weights for weights, _ in found]), np.array([offset for _, offset in found])
    return Stack(sites, weights, offset, alpha, len(truth))


def apply(stack: Stack, masks: Mapping[str, SoftMasks]) -> SoftMasks:
    """Give the pseudo masks, uint8 (n, K, H, W), of masks by site; `DataError` unless these are the sites it was fitted on."""
    if tuple(sorted(masks)) != stack.sites:
        raise DataError(f"this stack was fitted on {', '.join(stack.sites)}; got masks of {', '.join(sorted(masks))}")
    held = _stacked(stack.sites, masks)
    sees = np.stack([gate.sees(mask, stack.alpha) for mask in held])
    fused = np.empty(held.shape[1:], np.uint8)
    for image, label in np.ndindex(*held.shape[1:3]):
        score = _score(held[:, image, label], sees[:, image, label], stack.weights[label], float(stack.offset[label]))
        fused[image, label] = quantise(_sigmoid(score))
    return fused


def _stacked(sites: tuple[str, ...], masks: Mapping[str, SoftMasks]) -> SoftMasks:
    if not sites or len({masks[site].shape for site in sites}) != 1:
        raise DataError(f"a stack needs masks of one shape of every site; got {[masks[site].shape for site in sites]}")
    return np.stack([masks[site] for site in sites])


def _fit_label(levels: SoftMasks, sees: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
    """Fit on levels uint8 (S, n, H, W), sees bool (S, n) and truth bool (n, H, W)."""
    coarse = (levels.astype(np.int64) + _STEP // 2) // _STEP
    columns = [
        (one + _KINDS * seen[:, None, None]).ravel() for one, seen in zip(coarse, sees, strict=True)
    ]  # what a site says, and whether it sees a target
    at, pattern = patterns.find(columns, 2 * _KINDS)
    target = np.bincount(pattern, truth.ravel(), len(at))
    pixels = np.bincount(pattern, minlength=len(at)).astype(np.float64)
    if not 0 < target.sum() < pixels.sum():
        raise DataError(f"a stack needs target pixels and others; {target.sum():.0f} of {pixels.sum():.0f} are target")
    kinds = np.stack([column[at] for column in columns], axis=1)
    told = _inputs(np.minimum(kinds % _KINDS * _STEP, _LEVELS - 1), kinds >= _KINDS)
    share = pixels / pixels.sum()
    middle = share @ told
    spread = np.sqrt(share @ (told - middle) ** 2)
    spread[spread == 0] = 1.0
    told = (told - middle) / spread
    hit = target / pixels.sum()

    def loss(held: Floats) -> tuple[float, Floats]:
        score = told @ held[:-1] + held[-1]
        value = share @ np.logaddexp(0, score) - hit @ score + RIDGE / 2 * held[:-1] @ held[:-1]
        slope = share * _sigmoid(score) - hit
        return float(value), np.append(slope @ told + RIDGE * held[:-1], slope.sum())

    held = minimize(loss, np.zeros(told.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights = held[:-1] / spread
    offset = float(held[-1] - weights @ middle)
    fused = [quantise(_sigmoid(_score(levels[:, i], sees[:, i], weights, offset))) for i in range(len(truth))]
    threshold = _best_threshold(np.stack(fused), truth)
    return weights, offset - float(np.log(threshold / (1 - threshold)))


def _inputs(levels: npt.NDArray[np.integer], sees: npt.NDArray[np.bool_]) -> Floats:
    """Of N pixels, from levels (N, S) and sees bool (N, S): float64 (N, 3 S + 3)."""
    chance = levels / (_LEVELS - 1)
    held = np.clip(chance, _CLIP, 1 - _CLIP)
    logits = np.log(held / (1 - held))
    seen = sees.sum(axis=1)
    means = np.where(seen > 0, (chance * sees).sum(axis=1) / np.maximum(seen, 1), chance.mean(axis=1))
    votes = (levels >= TARGET_LEVEL).mean(axis=1)
    return np.column_stack([logits, logits * sees, np.sort(logits, axis=1), votes, means, chance.mean(axis=1)])


def _score(levels: SoftMasks, sees: npt.NDArray[np.bool_], weights: Floats, offset: float) -> Floats:
    """The logit of a target, float64 (H, W), from levels uint8 (S, H, W) and sees bool (S,) of one image and label."""
    flat = levels.reshape(len(levels), -1).T
    score = _inputs(flat, np.broadcast_to(sees, flat.shape)) @ weights + offset
    return np.asarray(score.reshape(levels.shape[1:]))


def _sigmoid(score: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -score)))


def _best_threshold(fused: SoftMasks, truth: npt.NDArray[np.bool_]) -> float:
    """The probability, nearest to one half, above which a target gives the highest mean Dice over the images."""
    dice = np.zeros(_LEVELS)
    for mask, real in zip(fused, truth, strict=True):
        drawn, hit = (np.bincount(part.ravel(), minlength=_LEVELS) for part in (mask, mask[real]))
        above, inside = (np.cumsum(counts[::-1])[::-1] for counts in (drawn, hit))  # at least this level
        sizes = above + np.count_nonzero(real)
        dice += np.where(sizes > 0, 2 * inside / np.maximum(sizes, 1), 1.0)
    levels = np.arange(1, _LEVELS)  # of these some are target, and some are not
    best = levels[dice[1:] >= dice[1:].max() - 1e-12]
    level = int(best[np.abs(best - TARGET_LEVEL).argmin()])
    return (level - 0.5) / (_LEVELS - 1)
