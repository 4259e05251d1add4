"""Which transferal images the student trains on: what is measured of them, what is decided, and ``selection.csv``."""

import csv
import io
import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.catalogue import Catalogue
from consilium.common.study import Study
from consilium.server import exclusion, weighting
from consilium.server.ledger import Ledger
from consilium.server.run_folder import MaskFile

COLUMNS: Final = (
    *("index", "id", "role", "sites", "target_pixels", "entropy_bits", "self_dice"),
    *("seen", "agreement", "reason", "paper_reason"),
)
"""Of ``selection.csv``."""


def agreement_of(ledger: Ledger, images: int) -> npt.NDArray[np.float64]:
    """How far the sites that were folded in agree about each image, float64 (n,); NaN where they are fewer than two."""
    found = np.full(images, np.nan)
    for image, opinion in ledger.opinion().items():
        if opinion.agreement is not None:
            found[image] = opinion.agreement
    return found


@dataclass(frozen=True)
class Selector:
    """Decides about the images of a catalogue whose pseudo masks are whole."""

    study: Study
    catalogue: Catalogue
    ledger: Ledger
    pseudo_masks: MaskFile

    def decide(self) -> tuple[exclusion.Statistics, list[exclusion.Reason]]:
        """Statistics of, and decision about, every image of the catalogue."""
        found = self._statistics()
        if self.study.exclusion.rule == "paper":
            return found, self.by_paper(found)
        consensus = np.zeros(len(self.catalogue), np.bool_)
        for image, opinion in self.ledger.opinion().items():
            consensus[image] = opinion.consensus
        alpha, size = self.study.exclusion.alpha, self.study.image.size
        reasons = self._without_mask(exclusion.reasons_by_consensus(found, consensus, alpha=alpha, size=size))
        return found, self._without_far_sets(reasons)

    def by_paper(self, found: exclusion.Statistics) -> list[exclusion.Reason]:
        """What the paper's rule says of every image, whether it decides or not."""
        cards = self.ledger.sites()
        soft = any(json.loads(cards[site])["output"] == "soft" for site in self.ledger.answers())
        settings = self.study.exclusion
        reasons = exclusion.reasons(
            found, alpha=settings.alpha, beta=settings.beta if soft else None, size=self.study.image.size
        )
        return self._without_mask(reasons)

    def table(self, found: exclusion.Statistics, reasons: list[exclusion.Reason]) -> str:
        """Give ``selection.csv``: a line an image, with what was measured and decided."""
        sites, opinions = self.ledger.finished_chunks(), self.ledger.opinion()
        sure, paper = weighting.self_dice(self.pseudo_masks.read()), self.by_paper(found)
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(COLUMNS)
        for i, entry in enumerate(self.catalogue.manifest.images):
            answered, opinion = sites.get(i // self.study.collect.chunk, 0), opinions.get(i)
            measured = (int(found.target_pixels[i]), f"{found.entropy_bits[i]:.6f}", f"{sure[i]:.6f}")
            agreed = "" if opinion is None or opinion.agreement is None else f"{opinion.agreement:.4f}"
            seen = "" if opinion is None else opinion.seen
            rows.writerow(
                (i, entry.id, entry.role, answered, *measured, seen, agreed, reasons[i].value, paper[i].value)
            )
        return table.getvalue()

    def why_nothing(self, found: exclusion.Statistics, reasons: list[exclusion.Reason]) -> str:
        """Say which threshold excluded every image, with the histogram of what was measured."""
        chosen = self.catalogue.indices("transferal")
        counts = {reason: sum(reasons[i] == reason for i in chosen) for reason in exclusion.Reason if reason}
        settings, size = self.study.exclusion, self.study.image.size
        least = settings.alpha * size * size / exclusion.PAPER_SIZE**2
        bits = found.entropy_bits[chosen]
        bars, edges = np.histogram(bits, bins=np.arange(0.0, max(8.0, bits.max()) + 0.5, 0.5))
        drawn = [
            f"{low:4.1f} bits {'#' * round(40 * int(bar) / max(int(bars.max()), 1))} {bar}"
            for low, bar in zip(edges, bars, strict=False)
            if bar
        ]
        other = (
            f"at most {settings.beta:g} bits of gray-level entropy (beta)"
            if settings.rule == "paper"
            else f'a target that enough sites see (fusion.gate = "{self.study.fusion.gate}")'
        )
        told = ", ".join(f"{reason.value} {count}" for reason, count in counts.items() if count)
        return "\n  ".join(
            [
                f"every one of the {len(chosen)} transferal images was excluded ({told}). Kept are images with at least "
                f"{least:.1f} target pixels (alpha = {settings.alpha:g} at 384 x 384) and {other}. Start a study with other "
                "thresholds, or with images the teachers know. "
                f"Measured: median {np.median(found.target_pixels[chosen]):.0f} target pixels; entropy:",
                *drawn,
            ]
        )

    def _statistics(self) -> exclusion.Statistics:
        masks = self.pseudo_masks.read()
        step = self.study.collect.chunk
        return exclusion.join(exclusion.statistics(masks[at : at + step]) for at in range(0, len(masks), step))

    def _without_far_sets(self, reasons: list[exclusion.Reason]) -> list[exclusion.Reason]:
        least = self.study.exclusion.least_set
        if not least or len(self.catalogue.collections) < 2:
            return reasons
        weights = weighting.set_weights(self.pseudo_masks.read(), agreement_of(self.ledger, len(self.catalogue)))
        at, entries = self.catalogue.indices("transferal"), self.catalogue.manifest.images
        sets = [entries[i].collection for i in at]
        decided = exclusion.without_far_sets([reasons[i] for i in at], sets, weights[at], least)
        found = dict(zip(at.tolist(), decided, strict=True))
        return [found.get(i, reason) for i, reason in enumerate(reasons)]

    def _without_mask(self, reasons: list[exclusion.Reason]) -> list[exclusion.Reason]:
        for image in self.ledger.images_without_mask():
            reasons[image] = exclusion.Reason.TOO_FEW_MASKS
        return reasons
