"""The report: ``metrics.json`` for machines, ``report.html`` for people, and tables for the terminal."""

import json
import time
from typing import Final

from consilium.common.files import write_text
from consilium.server.report.metrics import metrics
from consilium.server.report.page import render
from consilium.server.study_run import StudyRun

__all__ = ["write_report"]

STAGE: Final = "report"


def write_report(run: StudyRun) -> None:
    """Write ``metrics.json`` and ``report.html`` into the run folder, whatever state the study is in.

    Both are replaced whole. The stage ``report`` is timed anew each time; the page is drawn before it ends, so its time is
    in ``metrics.json`` only.
    """
    started = time.monotonic()
    run.ledger.reopen(STAGE)
    run.stages.tell(STAGE, 0, 1)
    measured = metrics(run)
    measured["seconds"].pop(STAGE, None)
    write_text(run.folder.report, render(run, measured))
    seconds = time.monotonic() - started
    run.ledger.finish(STAGE, seconds)
    measured["seconds"][STAGE] = round(seconds, 3)
    write_text(run.folder.metrics, json.dumps(measured, indent=2) + "\n")
