"""Part of the benchmark of distillation: ``sre2l`` and ``fadrm+`` beside the published structure.

Networks have random weights, which take as long as trained ones, and running statistics of noise.
A run goes through all stages of a method in few steps, from the same images and with the same
crops. Before, gradients of the loss of each teacher are compared, in float64: in float32 rounding
turns single activations on or off, and either way is up to 5e-3 away from float64.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from coreset.bench.docs import Cell, contender, if_present, optional
from coreset.bench.harness import Contender, Options, Row, race
from coreset.bench.peers.recover import PublishedRecovery
from coreset.engine.condensed.methods.recover import RecoverParameters
from coreset.engine.condensed.methods.recovery import Recovery, augmented, batch_norm_losses
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, placed
from coreset.engine.models.teachers import Teacher
from coreset.engine.runtime.device import generator_for, has_fast_bfloat16, seeded_torch
from coreset.kernels.augment import normalised

CPU, CLASSES, STEPS = torch.device("cpu"), 10, 20
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "sre2l": ("resnet18",),
    "fadrm+": ("resnet18", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v2"),
}
PEER, OURS, HALF = "published structure", "ours", "ours, bfloat16"
GOAL, BF16_GOAL, SAME_WITHIN = 0.95, 1.5, 1e-4
"""Least ratios of speeds to the published structure, and largest relative error of gradients."""


def recover_rows(options: Options, size: int) -> Iterator[Row]:
    """Race runs of each method, and compare the gradients of its teachers."""
    torch.set_num_threads(options.threads)
    fast = has_fast_bfloat16(CPU)
    goals = {OURS: GOAL, HALF: BF16_GOAL if fast else None}
    for method, names in NETWORKS.items():
        small = round(size * 200 / 224)
        sizes = (size,) if method == "sre2l" else (small, size) * 2
        teachers = [_teacher(name, size) for name in names]
        parameters = RecoverParameters(iterations=STEPS, size=size)
        ours = Recovery(teachers=teachers, parameters=parameters, sizes=sizes, alpha=0.5)
        # The published codes leave the layout of weights as it is.
        networks = [
            placed(deepcopy(teacher.network), CPU, torch.contiguous_format) for teacher in teachers
        ]
        peer = PublishedRecovery(networks, sizes, parameters.lr)
        about = {"method": method, "size": size, "steps": STEPS, "fast_bfloat16": fast}
        for row in _race(options, ours, peer, size):
            times = row.get("speed_over", {}).get(PEER)
            yield about | row | {"times": times, "goal": goals.get(row["contender"])}


def _race(options: Options, ours: Recovery, peer: PublishedRecovery, size: int) -> Iterator[Row]:
    labels, mosaics = torch.arange(CLASSES), _mosaics(size)
    start = normalised(mosaics, IMAGENET_MEAN, IMAGENET_STD)
    error = max(
        _gradient_error(ours, peer, start, labels, turn) for turn in range(len(ours.teachers))
    )
    half = replace(ours, parameters=replace(ours.parameters, precision="bfloat16"))

    def run_ours(recovery: Recovery, _out: Path) -> None:
        recovery.run(labels, generator_for(0), mosaics)

    def check(_out: Path) -> str:
        return f"gradients differ by {error:.1e}" if not error <= SAME_WITHIN else ""

    entries = [
        Contender(name=PEER, run=lambda _: peer.run(start, labels, generator_for(0), STEPS)),
        Contender(name=OURS, run=partial(run_ours, ours), role="ours", check=check),
        Contender(name=HALF, run=partial(run_ours, half), role="ours"),
    ]
    for row in race(entries, repeats=options.repeats, work=options.work):
        if "median_seconds" in row:
            row["milliseconds"] = round(1e3 * row["median_seconds"] / STEPS, 1)
        yield row | {"gradient_error": error if row["contender"] == OURS else None}


def _gradient_error(
    ours: Recovery, peer: PublishedRecovery, start: Tensor, labels: Tensor, turn: int
) -> float:
    """Return how far our gradient of a loss is from the published one, as a share of its length."""
    # Noise, because layouts pool equal neighbours differently.
    noise = torch.randn(start.shape, generator=generator_for(3), dtype=torch.float64)
    images = (start + 0.1 * noise).requires_grad_()
    peer.networks[turn].double()
    (expected,) = torch.autograd.grad(peer.loss(images, labels, generator_for(1), turn), images)
    peer.networks[turn].float()
    teacher = replace(ours.teachers[turn], network=deepcopy(ours.teachers[turn].network).double())
    with batch_norm_losses(teacher) as losses:
        loss = ours.loss((teacher, losses), augmented(images, generator_for(1), 0.08), labels)
        (gradient,) = torch.autograd.grad(loss, images)
    return float((gradient - expected).norm() / expected.norm())


def _mosaics(size: int) -> Tensor:
    coarse = torch.rand((CLASSES, 3, 8, 8), generator=generator_for(2))
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (255 * smooth).to(torch.uint8)


@torch.no_grad()
def _teacher(name: str, size: int) -> Teacher:
    from torchvision.models import get_model

    with seeded_torch(0, CPU):
        network = get_model(name, weights=None, num_classes=CLASSES)
        for _ in range(3):  # statistics of layers that follow others need theirs first
            network.train()(torch.randn(CLASSES, 3, size, size))
    network = placed(network.eval().requires_grad_(requires_grad=False), CPU, torch.channels_last)
    return Teacher(
        name=name, source=Path(), digest="", network=network, mean=IMAGENET_MEAN,
        std=IMAGENET_STD, orders=torch.arange(CLASSES)[None],
    )  # fmt: skip


RECOVER_COLUMNS: Mapping[str, Cell] = {
    "method": "{method}",
    "px": "{size}",
    "way": contender,
    "ms a step": if_present("{milliseconds:.0f}", reason=True),
    "times the speed of the published": optional("times", "{times:.2f}"),
    "goal": optional("goal", "at least {goal:g}"),
    "gradients apart by": optional("gradient_error", "{gradient_error:.0e}"),
}
"""Table of ``distill.recover``."""
