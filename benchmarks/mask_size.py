"""Bytes of a soft mask on the wire at 384 x 384, against other codings of the same masks, and the time they take.

The masks are real: small teachers are trained, and predict images they were not trained on. Two work below the canonical
size and are brought to it as a site does it, two work at it natively and are trained far too briefly for that, so that
they give fuzz: fuzz is what costs bytes.

    python benchmarks/mask_size.py --busi Dataset_BUSI_with_GT --transferal DDTI/image
    python benchmarks/mask_size.py                                      # synthetic images

`--transferal` adds images of another kind than the teachers know, which is what a study asks about.
"""

import io
import lzma
import statistics
import sys
import time
import zlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _measure import parser, print_machine, print_table, print_target
from PIL import Image
from torch import nn

from consilium.clients.teachers import geometry
from consilium.common import planes
from consilium.common.datasets import busi, labelled, phantoms
from consilium.common.datasets.labelled import Labelled
from consilium.common.images import image_files, read_image
from consilium.common.metrics import dice
from consilium.common.networks.build import build
from consilium.common.networks.settings import NetworkSettings
from consilium.common.soft_mask import SoftMasks, quantise, reduce_levels
from consilium.common.study import ExclusionSettings
from consilium.common.training.loop import fit
from consilium.common.training.predict import predict
from consilium.common.training.settings import TrainingSettings
from consilium.server.exclusion import statistics as exclusion_statistics

TARGET_BYTES = 10_000
TEST_SHARE = 0.25
FEW_LEVELS = 16
"""A site's policy may coarsen its masks; told for comparison."""


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher to train: network, the size it works at, and images it sees."""

    network: NetworkSettings
    size: int
    image_budget: int

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.network.name}, {self.network.width} wide, at {self.size}"


TEACHERS: tuple[TeacherPlan, ...] = (
    TeacherPlan(NetworkSettings(name="panoptic-fpn", width=32), 128, 4000),
    TeacherPlan(NetworkSettings(name="unet", width=16), 128, 2000),
    TeacherPlan(NetworkSettings(name="unet", width=8), 384, 300),
    TeacherPlan(NetworkSettings(name="panoptic-fpn", width=32), 384, 400),
)
TINY_TEACHERS: tuple[TeacherPlan, ...] = (TeacherPlan(NetworkSettings(name="unet", width=4), 48, 8),)


@dataclass(frozen=True)
class Coding:
    """A way to write a mask, uint8 (1, H, W), as bytes and to read it again."""

    name: str
    encode: Callable[[SoftMasks], bytes]
    decode: Callable[[bytes, tuple[int, int, int]], npt.NDArray[np.generic]]


def _npy(mask: SoftMasks) -> bytes:
    file = io.BytesIO()
    np.save(file, mask.astype(np.float32) / np.float32(255))
    return file.getvalue()


def _from_npy(data: bytes, _shape: tuple[int, int, int]) -> npt.NDArray[np.generic]:
    return np.asarray(np.rint(np.load(io.BytesIO(data)) * 255), np.uint8)


def _png(mask: SoftMasks) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask[0]).save(file, "png", optimize=True)
    return file.getvalue()


def _from_png(data: bytes, _shape: tuple[int, int, int]) -> npt.NDArray[np.generic]:
    return np.asarray(Image.open(io.BytesIO(data)))[None]


def _from_raw(data: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.generic]:
    return np.frombuffer(data, np.uint8).reshape(shape)


CODINGS = (
    Coding("consilium", planes.encode, planes.decode),
    Coding("PNG, optimised", _png, _from_png),
    Coding(
        "zlib 9",
        lambda mask: zlib.compress(mask.tobytes(), 9),
        lambda data, shape: _from_raw(zlib.decompress(data), shape),
    ),
    Coding(
        "lzma", lambda mask: lzma.compress(mask.tobytes()), lambda data, shape: _from_raw(lzma.decompress(data), shape)
    ),
    Coding("raw uint8", lambda mask: mask.tobytes(), _from_raw),
    Coding("float32 .npy", _npy, _from_npy),
)


def labelled_images(given: Namespace, size: int) -> tuple[Labelled, Labelled]:
    """Images to train on and others to predict, canonical; no near duplicates in both."""
    if given.busi is None:
        count = 16 if given.tiny else 400
        images, masks = phantoms.make("north", count, size, seed=3)
        data = Labelled(images, masks, tuple(map(str, range(count))), ("",) * count)
    else:
        data = busi.read(given.busi, size, 1)
    train, test = labelled.split(data.groups, TEST_SHARE, seed=0)
    return data.take(train), data.take(test[: given.masks])


def trained(plan: TeacherPlan, train: Labelled, threads: int) -> nn.Module:
    """Train a teacher at its own size."""
    network = build(plan.network, 1, 1, seed=0)
    settings = TrainingSettings(
        image_budget=plan.image_budget, batch=8, learning_rate=1e-3, threads=threads, device="cpu"
    )
    masks = geometry.to_masks(train.masks, plan.size) * np.uint8(255)
    fit(network, geometry.to_size(train.images, plan.size), masks, settings, seed=0)
    return network


def masks_of(network: nn.Module, images: npt.NDArray[np.uint8], size: int) -> SoftMasks:
    """What a teacher that works at ``size`` says of images, on their canonical grid."""
    parts = [
        geometry.to_grid(predict(network, geometry.to_size(images[at : at + 16], size), 1, "cpu"), images.shape[-1])
        for at in range(0, len(images), 16)
    ]
    return quantise(np.concatenate(parts))


@dataclass
class Measured:
    """Of one coding: bytes, and seconds to write and to read, mask by mask."""

    sizes: list[int]
    encode_s: list[float]
    decode_s: list[float]


def measure(masks: SoftMasks) -> dict[str, Measured]:
    """Code every mask in every way, turn and turn about."""
    found = {coding.name: Measured([], [], []) for coding in CODINGS}
    for number, mask in enumerate(masks):
        for coding in CODINGS if number % 2 == 0 else CODINGS[::-1]:
            began = time.perf_counter()
            data = coding.encode(mask)
            coded = time.perf_counter()
            back = coding.decode(data, mask.shape)
            ended = time.perf_counter()
            if not np.array_equal(back, mask):
                raise SystemExit(f"{coding.name} does not give the mask back")
            of = found[coding.name]
            of.sizes.append(len(data))
            of.encode_s.append(coded - began)
            of.decode_s.append(ended - coded)
    return found


def print_by_entropy(sizes: npt.NDArray[np.int64], bits: npt.NDArray[np.float64]) -> None:
    """Bytes of crisp and of fuzzy masks, at the paper's limit of gray-level entropy."""
    beta = ExclusionSettings().beta
    rows = []
    for kind, chosen in ((f"at most {beta:g} bits", bits <= beta), (f"more than {beta:g} bits", bits > beta)):
        held = sizes[chosen]
        numbers = (
            [f"{value:,.0f}" for value in (held.mean(), np.median(held), np.percentile(held, 95))]
            if len(held)
            else ["-"] * 3
        )
        rows.append((kind, len(held), *numbers))
    print_table(("entropy of the mask", "masks", "mean bytes", "median", "95 %"), rows)


def main() -> int:
    """Train, measure and print."""
    options = parser(__doc__)
    options.add_argument("--busi", type=Path, help="folder Dataset_BUSI_with_GT; synthetic images where not given")
    options.add_argument("--transferal", type=Path, help="images of another kind, predicted too")
    options.add_argument("--masks", type=int, default=150, help="at most so many masks a teacher")
    options.add_argument("--threads", type=int, default=1, help="CPU threads of training and prediction")
    options.add_argument("--effort", type=float, default=1.0, help="train teachers so many times as long")
    given = options.parse_args()
    size = 96 if given.tiny else 384
    plans = TINY_TEACHERS if given.tiny else TEACHERS
    teachers = [replace(plan, image_budget=max(8, round(plan.image_budget * given.effort))) for plan in plans]
    torch.set_num_threads(given.threads)
    print_machine()
    train, test = labelled_images(given, size)
    asked = {"test": test.images}
    if given.transferal is not None:
        files = image_files(given.transferal)[: given.masks]
        asked["other"] = np.stack([read_image(path, size, 1) for path in files])
    counts = ", ".join(f"{len(images)} {kind}" for kind, images in asked.items())
    print(f"{len(train)} labelled images to train on; predicted: {counts}; masks of {size} x {size}\n", flush=True)

    entropy: list[float] = []
    rows, whole = [], {coding.name: Measured([], [], []) for coding in CODINGS}
    for plan in teachers:
        began = time.perf_counter()
        network = trained(plan, train, given.threads)
        took = time.perf_counter() - began
        for kind, images in asked.items():
            masks = masks_of(network, images, plan.size)
            found = measure(masks)
            ours = np.array(found["consilium"].sizes)
            rows.append(
                (
                    f"{plan.name}, {plan.image_budget:,} images seen, {kind}",
                    f"{took:.0f} s",
                    f"{100 * dice(masks, test.masks).mean():.0f} %" if kind == "test" else "",
                    f"{exclusion_statistics(masks).entropy_bits.mean():.2f}",
                    f"{np.mean(ours):,.0f}",
                    f"{np.median(ours):,.0f}",
                    f"{np.percentile(ours, 95):,.0f}",
                    f"{np.mean([len(planes.encode(mask)) for mask in reduce_levels(masks, FEW_LEVELS)]):,.0f}",
                    *(f"{np.mean(found[coding.name].sizes):,.0f}" for coding in CODINGS[1:4]),
                )
            )
            entropy += exclusion_statistics(masks).entropy_bits.tolist()
            print(f"  {plan.name}, {kind}: {np.mean(ours):,.0f} bytes", file=sys.stderr, flush=True)
            for name, of in found.items():
                whole[name].sizes += of.sizes
                whole[name].encode_s += of.encode_s
                whole[name].decode_s += of.decode_s
    head = ("teacher, images", "trained in", "Dice", "entropy, bits", "consilium, bytes: mean", "median", "95 %")
    print_table((*head, f"{FEW_LEVELS} levels: mean", *(f"{coding.name}: mean" for coding in CODINGS[1:4])), rows)

    print_by_entropy(np.array(whole["consilium"].sizes), np.array(entropy))
    mean = float(np.mean(whole["consilium"].sizes))
    print_table(
        ("coding, all masks", "mean bytes", "median", "95 %", "times consilium's", "encode, ms", "decode, ms"),
        [
            (
                name,
                f"{np.mean(of.sizes):,.0f}",
                f"{np.median(of.sizes):,.0f}",
                f"{np.percentile(of.sizes, 95):,.0f}",
                f"{np.mean(of.sizes) / mean:.2f}",
                f"{1000 * statistics.median(of.encode_s):.2f}",
                f"{1000 * statistics.median(of.decode_s):.2f}",
            )
            for name, of in whole.items()
        ],
    )
    print_target(f"at most {TARGET_BYTES:,} bytes a mask on average (here {mean:,.0f})", mean <= TARGET_BYTES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
