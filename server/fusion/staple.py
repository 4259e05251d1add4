"""STAPLE (Warfield, Zou and Wells 2004): the truth is hidden, and each site has a sensitivity and a specificity, found with it.

Sites decide at one half. Expectation: the probability of a target at each pixel, from what the sites decided there, what they
are worth, and the prior, which is the mean share of target pixels over the sites. Maximisation: what each site is worth, from
these probabilities. Both need a pixel's decisions alone, so the work is that of the patterns that occur, at most ``2**sites``.

Each image and label is fused for itself, over the sites that know it; every site counts as one. Laws, checked by tests: the
order of sites does not matter; one site gives its decisions; where all agree the result is what they agree on. It believes
decisions, not how sure they were: a blurred outline becomes a sharp one. Does not work on sums alone (`all_masks`).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks, quantise
from consilium.server.fusion import patterns
from consilium.server.fusion.all_masks import AllMasks, by_label, fold, init, merge, unfold

__all__ = ["estimate", "finish", "fold", "init", "merge", "unfold"]

_START: Final = 0.99999
_STILL: Final = 1e-7
_MOST_ROUNDS: Final = 300


def finish(state: AllMasks) -> SoftMasks:
    """The pseudo masks: uint8 (n, K, H, W), the probability of a target; `DataError` if no site was folded in of a label."""
    fused = np.empty(state.shape, np.uint8)
    for label, planes in by_label(state, 1):
        for image in range(state.shape[0]):
            decisions = [(plane[image] >= TARGET_LEVEL).ravel() for plane in planes]
            decisions.sort(key=lambda one: np.packbits(one).tobytes())  # sums of fractions have one order then
            at, pattern = patterns.find(decisions, 2)
            decided = np.stack([one[at] for one in decisions], axis=1)
            truth, _, _ = estimate(decided, np.bincount(pattern).astype(np.float64))
            fused[image, label] = quantise(truth)[pattern].reshape(state.shape[2:])
    return fused


def estimate(
    decided: npt.NDArray[np.bool_], pixels: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Find the hidden truth of patterns and what each site is worth.

    Parameters
    ----------
    decided
        bool (P, S): what each of S sites decided, for each pattern.
    pixels
        float64 (P,): how many pixels have the pattern.

    Returns
    -------
    truth, sensitivity, specificity
        float64 (P,), (S,) and (S,), all in [0, 1].
    """
    prior = float((pixels @ decided).mean() / pixels.sum())
    sensitivity = specificity = np.full(decided.shape[1], _START)
    for _ in range(_MOST_ROUNDS):
        target = prior * np.where(decided, sensitivity, 1 - sensitivity).prod(axis=1)
        background = (1 - prior) * np.where(decided, 1 - specificity, specificity).prod(axis=1)
        both = target + background
        truth = np.divide(target, both, out=np.full_like(both, prior), where=both > 0)
        inside, outside = pixels * truth, pixels * (1 - truth)
        before = sensitivity, specificity
        # a sum of all in another order may be larger than itself, by its last bit
        sensitivity = np.minimum(inside @ decided / inside.sum(), 1.0) if inside.sum() > 0 else sensitivity
        specificity = np.minimum(outside @ ~decided / outside.sum(), 1.0) if outside.sum() > 0 else specificity
        if max(np.abs(sensitivity - before[0]).max(), np.abs(specificity - before[1]).max()) < _STILL:
            break
    return truth, sensitivity, specificity
