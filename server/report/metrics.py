"""``metrics.json``: what a study measured, for machines. `docs/metrics.md` documents every key."""

import json
import resource
from collections import Counter
from typing import Any

from consilium.common.wire import EvaluateReply, FineTuneReply, Score
from consilium.server import stacking
from consilium.server.agreement import stand_apart
from consilium.server.consensus import weights_of
from consilium.server.report.selection import by_collection, read_selection
from consilium.server.status import state_of
from consilium.server.study_run import StudyRun


def metrics(run: StudyRun) -> dict[str, Any]:
    """Gather what the ledger holds; whatever was not measured is null. Dice in percent, std over images."""
    cards = {site: json.loads(card) for site, card in run.ledger.sites().items()}
    answers, traffic, agreed = run.ledger.answers(), run.ledger.traffic(), run.ledger.agreement()
    apart = stand_apart(agreed)
    told, silent, collecting = run.participants.validation(), run.ledger.silent(), bool(run.ledger.finished_chunks())
    weights = weights_of(run.study.sites, run.study.fusion, told)
    local = {site: EvaluateReply.model_validate_json(held) for site, held in run.ledger.results("evaluate").items()}
    tuned = {site: FineTuneReply.model_validate_json(held) for site, held in run.ledger.results("fine-tune").items()}

    def site_metrics(site: str) -> dict[str, Any]:
        card = cards.get(site, {}).get("teacher")
        sent, received = traffic.get(site, (0, 0))
        answered, mask_bytes, _ = answers.get(site, (0, 0, 0.0))
        here = local.get(site)
        return {
            "network": _network(card),
            "offline": site in run.study.collect.offline,
            "images": {
                "answered": answered,
                "train": here.train_images if here else None,
                "test": here.test_images if here else None,
            },
            "teacher": {
                "fine_tuned_student": isinstance(card, dict) and card.get("fine-tuned-student") is True,
                "local_dice": _plain(here.teacher if here else None),
                "pooled_dice": _plain(run.pooled("pooled", site)),
                "pooled_dice_by_label": run.pooled_by_label("pooled", site),
            },
            "agreement": (
                {"mean": round(agreed[site].mean, 2), "n": agreed[site].n, "stands_apart": site in apart}
                if site in agreed
                else None
            ),
            "fusion": {
                "weight": weights[site] if collecting else None,
                "validation": told[site].to_card() if site in told else None,
                "silent": silent.get(site, 0) if site in answers else None,
            },
            "student": {"local_dice": _plain(here.student if here else None)},
            "fine_tuned": {"local_dice": _plain(tuned[site].fine_tuned)} if site in tuned else None,
            "bytes_sent": sent,
            "bytes_received": received,
            "bytes_per_mask": mask_bytes / answered if answered else None,
        }

    stages = {stage.name: stage for stage in run.ledger.stages()}
    selected = "select" in stages and stages["select"].finished
    selection = read_selection(run.folder) if selected else None
    transferal = run.catalogue.indices("transferal")
    excluded = Counter(reason.value for reason in selection.reasons.values() if reason) if selection else Counter()
    by_paper = Counter(reason.value for reason in selection.by_paper.values() if reason) if selection else Counter()
    parameters = run.ledger.results("parameters").get("")
    state = state_of(run.folder, run.study, run.ledger)
    return {
        "schema": 1,
        "study": run.study.name,
        "labels": list(run.study.labels),
        "status": state.word,
        "failure": state.told if state.word == "failed" else None,
        "awaits": state.told if state.word.startswith("awaits-") else None,
        "study_digest": run.study.digest,
        "catalogue_hash": run.catalogue.hash,
        "sites": {site: site_metrics(site) for site in run.study.sites},
        "ensemble": {
            "pooled_dice": _plain(run.pooled("ensemble")),
            "pooled_dice_by_label": run.pooled_by_label("ensemble"),
        },
        "student": {
            "network": run.study.student.network.name,
            "parameters": int(parameters) if parameters else None,
            "pooled_dice": _plain(run.pooled("student")),
            "pooled_dice_by_label": run.pooled_by_label("student"),
        },
        "fusion": run.study.fusion.model_dump(mode="json", by_alias=True),
        "stack": stacking.facts(run.study, run.ledger),
        "exclusion": run.study.exclusion.model_dump(mode="json", by_alias=True),
        "evaluation": run.evaluation(),
        "images": {
            "catalogue": len(run.catalogue),
            "transferal": len(transferal),
            "test": len(run.catalogue.indices("test")),
            "labelled": len(run.catalogue.indices("labelled")),
            "kept": len(transferal) - excluded.total() if selected else None,
            "excluded": dict(sorted(excluded.items())),
            "by_paper": (
                {"kept": len(transferal) - by_paper.total(), "excluded": dict(sorted(by_paper.items()))}
                if selected
                else None
            ),
            "collections": by_collection(run.catalogue, selection),
        },
        "seconds": {name: round(stage.seconds, 3) for name, stage in stages.items()},
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "events": [{"site": event.site, "stage": event.stage, "text": event.text} for event in run.ledger.events()],
    }


def _plain(score: Score | None) -> dict[str, Any] | None:
    return score.model_dump() if score else None


def _network(card: Any) -> str | None:
    """The teacher's network as its site names it; a site may send any JSON for a card."""
    network = card.get("network") if isinstance(card, dict) else None
    name = network.get("name") if isinstance(network, dict) else network
    return name if isinstance(name, str) else None
