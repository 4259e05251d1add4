"""The sites that take part in a study: what each said of itself, and what the coordinator goes by."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from consilium.common import labels, wire
from consilium.common.catalogue import Catalogue
from consilium.common.errors import ErrorCode, StudyError, WireError
from consilium.common.study import Study
from consilium.common.validation import Validation, from_card
from consilium.server import questions
from consilium.server.ledger import Ledger
from consilium.server.seals import Seals


@dataclass(frozen=True)
class Described:
    """What is kept of a site's description, in JSON; how many of the study's labels it knows; which images it lacks."""

    card: str
    labels: int
    missing: list[bool]


@dataclass(frozen=True)
class Participants:
    """The sites of a study, as the ledger has them.

    Parameters
    ----------
    study, catalogue, ledger, seals
        What they take part in, on which images, what is known of them, and their keys.
    """

    study: Study
    catalogue: Catalogue
    ledger: Ledger
    seals: Seals

    def described(self, site: str, reply: wire.DescribeReply) -> Described:
        """Check what a site said of itself; `WireError` if it cannot take part so."""
        known = [self.study.labels[place] for place in labels.positions(self.study.labels, reply.labels)]
        if not known:
            raise WireError(ErrorCode.BAD_MESSAGE, f"its teacher knows none of {', '.join(self.study.labels)}")
        self.seals.pin(site, reply.signer)
        card = {"output": reply.output, "labels": known, "teacher": _teacher_card(reply.teacher)}
        return Described(json.dumps(card), len(known), wire.from_bits(reply.missing, len(self.catalogue)))

    def takes_part(self, site: str, described: Described) -> None:
        """Record that a site takes part, and what it said of itself."""
        self.ledger.consented("describe", site)
        self.ledger.site_described(site, described.card)

    def online(self) -> set[str]:
        """Those that take part over the network."""
        return set(self.ledger.sites()) & set(self.study.online)

    def lacks_answers(self, site: str) -> bool:
        """Whether an offline site's answer file, or part of it, is not imported yet."""
        chunks = set(range(questions.chunks(self.study, self.catalogue)))
        return site not in self.ledger.sites() or not chunks <= (
            self.ledger.finished_chunks().keys() | self.ledger.held_chunks(site)
        )

    def known_labels(self, site: str) -> tuple[int, ...]:
        """Positions of the study's labels that a site's masks are of, as it described itself; all, where it is no site."""
        card = self.ledger.sites().get(site)
        told = json.loads(card).get("labels") if card else None
        return labels.positions(self.study.labels, self.study.labels if told is None else told)

    def validation(self, *, pin: bool = False) -> dict[str, Validation]:
        """What sites report of their teachers, as it was when collecting began: weights stay the same over all starts."""
        held = self.ledger.results("validation").get("")
        if held is None:
            cards = {site: json.loads(card) for site, card in self.ledger.sites().items()}
            told = {site: from_card(card["teacher"]) for site, card in cards.items() if site in self.study.sites}
            held = json.dumps({site: {"validation": found.to_card()} for site, found in told.items() if found})
            if pin:
                self.ledger.keep_result("", "validation", held)
        found = {site: from_card(card) for site, card in json.loads(held).items()}
        return {site: one for site, one in found.items() if one is not None}

    def require_every_label(self, sites: Iterable[str]) -> None:
        """Refuse a label that nobody of some sites knows, or too few for the fusion, before anything is collected."""
        known = {site: [self.study.labels[place] for place in self.known_labels(site)] for site in sites}
        orphans = [label for label in self.study.labels if not any(label in told for told in known.values())]
        if orphans:
            raise StudyError(
                "\n  ".join(
                    [
                        f"nobody knows {', '.join(orphans)}: each label needs a site whose teacher knows it. Have a site name "
                        "what it calls so in its label-map, or start a study without it.",
                        *(f"{site} knows {', '.join(told)}" for site, told in sorted(known.items())),
                    ]
                )
            )

        least = self.study.fusion.least_sites
        for label in self.study.labels:
            those = sorted(site for site, told in known.items() if label in told)
            if len(those) < least:
                raise StudyError(
                    f"fusion.trim = {self.study.fusion.trim} needs at least {least} sites that know a label; {label} is known to "
                    f"{len(those)} of those that take part ({', '.join(those)}). Mend the sites, or start a study with a lower "
                    "trim or another fusion.method."
                )


def _teacher_card(text: str) -> dict[str, Any]:
    """What a site says of its teacher: a JSON object, else `WireError` ``bad-message``."""
    try:
        card = json.loads(text)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or not isinstance(card.get("network", {}), dict):
        raise WireError(ErrorCode.BAD_MESSAGE, "the teacher's card is no JSON object")
    return card
