"""Distill segmentation models into one student, no federation needed: IMAGES OUT [--test FOLDER with images/, masks/]."""

import argparse
from pathlib import Path

import numpy as np
from torch.nn.functional import avg_pool2d

from consilium.clients.teachers.module import ModuleTeacher
from consilium.common import metrics, soft_mask
from consilium.common.datasets import folder
from consilium.common.images import read_folder
from consilium.common.networks.student_files import save_student
from consilium.common.study import StudentSettings
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings
from consilium.server.distill import card_of, distill
from consilium.server.ensemble import pseudo_masks
from consilium.server.exclusion import reasons, statistics

parser = argparse.ArgumentParser(description=__doc__)
for name, kind in {"images": Path, "out": Path, "--test": Path, "--size": int, "--budget": int}.items():
    parser.add_argument(name, type=kind, default={"--size": 128, "--budget": 2000}.get(name))
a = parser.parse_args()

# Your models here: any torch module or callable from float images (n, C, H, W) to logits (n, K, h, w).
models = [lambda x, k=k: 30 * (0.3 - avg_pool2d(x, k, 1, k // 2, count_include_pad=False)) for k in (5, 9, 13)]
teachers = [ModuleTeacher(model, logits=True) for model in models]
images, _ = read_folder(a.images, a.size)
masks = pseudo_masks(teachers, images)
kept = np.flatnonzero([not why for why in reasons(statistics(masks), alpha=256, beta=6.0, size=a.size)])
print(f"{len(kept)} of {len(images)} images kept")  # the paper's beta is 2.5
settings = StudentSettings(training=TrainingSettings(image_budget=a.budget, learning_rate=1e-3))
student, _ = distill(images, masks, settings, seed=0, kept=kept)
save_student(a.out, student, card_of(student, settings, a.size, 1, ("lesion",)))
if a.test:
    test = folder.read(a.test, a.size, 1)
    print(
        "Dice in percent:", metrics.score(metrics.dice(soft_mask.quantise(predict(student, test.images)), test.masks))
    )
