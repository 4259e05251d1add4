"""The same study as a plain script: one process, no sites, no messages, no ledger, no checkpoints to resume from.

It loads the teachers of a prepared run folder and does what the study does: predict, average, exclude, train, score.
Stage seconds and results go to a JSON file.

    python benchmarks/_plain_study.py RUN_FOLDER THREADS RESULT.json
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from consilium.clients.settings import load_site
from consilium.clients.teachers.checkpoint import CheckpointTeacher
from consilium.common.catalogue import open_catalogue
from consilium.common.datasets import labelled
from consilium.common.metrics import dice
from consilium.common.networks.build import build
from consilium.common.networks.student_files import save_student, student_card
from consilium.common.settings import load
from consilium.common.soft_mask import quantise
from consilium.common.study import Study
from consilium.common.training.loop import fit
from consilium.common.training.predict import predict
from consilium.server import exclusion

BATCH = 16


def main() -> int:
    """Run the study."""
    root, threads, result = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if threads:
        torch.set_num_threads(threads)
    study, catalogue = load(Study, root / "study.toml"), open_catalogue(root / "catalogue")
    images, student_settings = catalogue.pixels, study.student
    seconds: dict[str, float] = {}
    scores: dict[str, float] = {}
    began = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal began
        seconds[stage], began = time.perf_counter() - began, time.perf_counter()

    homes = [load_site(root / "sites" / site / "site.toml") for site in study.sites]
    teachers = [CheckpointTeacher(home.teacher, home.settings.teacher, "cpu") for home in homes]
    soft = [
        np.concatenate([quantise(teacher.predict(images[at : at + BATCH])) for at in range(0, len(images), BATCH)])
        for teacher in teachers
    ]
    pseudo = np.ceil(np.mean(soft, axis=0, dtype=np.float32) - np.float32(0.5)).astype(np.uint8)  # halves down
    lap("collect")

    found = exclusion.statistics(pseudo)
    limits = study.exclusion
    reasons = exclusion.reasons(found, alpha=limits.alpha, beta=limits.beta, size=study.image.size)
    kept = np.array([i for i in catalogue.indices("transferal") if not reasons[i]])
    lap("select")

    student = build(student_settings.network, study.image.channels, len(study.labels), study.seed)
    fit(student, images, pseudo, student_settings.training, seed=study.seed, indices=kept)
    with tempfile.TemporaryDirectory() as folder:
        card = student_card(student_settings.network, study.image.channels, len(study.labels), study.image.size)
        save_student(Path(folder), student, card)
    lap("distill")

    tests = catalogue.indices("test")
    truth = labelled.open_packed(root / "test").masks
    for home, masks in zip(homes, soft, strict=True):
        scores[f"{home.settings.name} pooled"] = float(dice(masks[tests], truth).mean())
    scores["ensemble"] = float(dice(pseudo[tests], truth).mean())
    scores["student"] = float(dice(quantise(predict(student, images[tests], device="cpu")), truth).mean())
    lap("test")

    for home, teacher in zip(homes, teachers, strict=True):
        own = labelled.open_packed(home.test_set)
        scores[f"{home.settings.name} teacher"] = float(dice(quantise(teacher.predict(own.images)), own.masks).mean())
        local = quantise(predict(student, own.images, device="cpu"))
        scores[f"{home.settings.name} student"] = float(dice(local, own.masks).mean())
    lap("evaluate")
    result.write_text(json.dumps({"seconds": seconds, "scores": scores, "kept": len(kept)}), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
