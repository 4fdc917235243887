"""Recovered images: loss against plain hooks, stages in closed form, bytes that do not change."""

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.condensed.methods.recover import RecoverParameters
from coreset.engine.condensed.methods.recovery import Recovery, augmented, batch_norm_losses
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.teachers import Teacher
from coreset.engine.runtime.device import generator_for, seeded_torch
from coreset.kernels.augment import normalised
from coreset.kernels.batch_moments import batch_moments

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 1, 2, 0])
ANY_TEACHER = """
import sys
import coreset.engine.models.teachers as teachers
from coreset.engine.cli import main
teachers.LEAST_ACCURACY = 0.0
"""
RUN = f"{ANY_TEACHER}\nsys.exit(main(sys.argv[1:]))"
KILLED_IN_THE_SECOND_PART = f"""{ANY_TEACHER}
import os, signal
from coreset.engine.condensed.methods.recovery import Recovery
run, runs = Recovery.run, []
def run_once(*arguments):
    if runs:
        os.kill(os.getpid(), signal.SIGKILL)
    runs.append(run(*arguments))
    return runs[0]
Recovery.run = run_once
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _any_teacher(monkeypatch):
    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 0.0)


def network_of(seed, norms=2):
    """Convolutions and batch norms with statistics of noise, in evaluation mode."""
    with seeded_torch(seed, torch.device("cpu")):
        layers, width = list[nn.Module](), 3
        for _ in range(norms):
            layers += [nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
            width = 8
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
        with torch.no_grad():
            for _ in range(3):
                network(torch.randn(16, 3, 12, 12))
    return network.eval().requires_grad_(requires_grad=False)


def teacher_of(network, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """A teacher of three classes among five, in another order."""
    return Teacher(
        name="small", source=Path("small"), digest="", network=network, mean=mean, std=std,
        orders=torch.tensor([[3, 0, 4]]),
    )  # fmt: skip


def recovery_of(*teachers, sizes=(32,), **options):
    named = {"alpha", "curriculum"} & options.keys()
    own = {name: options.pop(name) for name in named}
    values: dict[str, Any] = {"iterations": 12, "size": 32, **options}
    parameters = RecoverParameters(**values)
    return Recovery(teachers=teachers, parameters=parameters, sizes=sizes, **own)


def mosaics(size=32):
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.integers(0, 256, (4, 3, size, size), dtype=np.uint8))


def plain_loss(teacher, seen, labels, r_bn):
    """SRe2L's loss by its formulas: hooks on inputs, mean and biased variance of each channel."""
    inputs = list[torch.Tensor]()
    norms = [m for m in teacher.network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(lambda _m, x, _y: inputs.append(x[0])) for m in norms]
    pixels = seen * torch.tensor(IMAGENET_STD)[:, None, None]
    pixels = pixels + torch.tensor(IMAGENET_MEAN)[:, None, None]
    mean, std = (torch.tensor(row)[:, None, None] for row in (teacher.mean, teacher.std))
    logits = teacher.network((pixels - mean) / std)[:, [3, 0, 4]]
    for hook in hooks:
        hook.remove()
    total = cross_entropy(logits, labels)
    for number, (norm, x) in enumerate(zip(norms, inputs, strict=True)):
        rows = x.transpose(0, 1).reshape(x.shape[1], -1)
        apart = (rows.mean(dim=1) - norm.get_buffer("running_mean")).norm()
        apart = apart + (rows.var(dim=1, unbiased=False) - norm.get_buffer("running_var")).norm()
        total = total + r_bn * (10.0 if number == 0 else 1.0) * apart
    return total


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_and_their_gradient_are_those_of_mean_and_var(layout):
    values = torch.randn(5, 7, 6, 4, generator=generator_for(0)).contiguous(memory_format=layout)
    weights = torch.randn(2, 7, generator=generator_for(1))
    for seen in (values.double(), values):
        ours, theirs = (seen.clone().requires_grad_() for _ in range(2))
        mean, variance = batch_moments(ours)
        rows = theirs.transpose(0, 1).flatten(1)
        expected = rows.mean(dim=1), rows.var(dim=1, unbiased=False)
        torch.testing.assert_close((mean, variance), expected)
        (weights[0] * mean + weights[1] * variance).sum().backward()
        (weights[0] * expected[0] + weights[1] * expected[1]).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("mean", [IMAGENET_MEAN, (0.5, 0.5, 0.5)])
def test_the_loss_and_its_gradient_are_those_of_plain_hooks(mean):
    std = IMAGENET_STD if mean == IMAGENET_MEAN else mean
    teacher = teacher_of(network_of(1), mean, std)
    recovery = recovery_of(teacher)
    seen = torch.randn(4, 3, 16, 16, generator=generator_for(2))
    ours, theirs = (seen.clone().requires_grad_() for _ in range(2))
    with batch_norm_losses(teacher) as losses:
        loss = recovery.loss((teacher, losses), ours, LABELS)
    expected = plain_loss(teacher, theirs, LABELS, recovery.parameters.r_bn)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,), (plain,) = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
    error = (gradient - plain).norm() / plain.norm()
    assert error < 1e-4


def test_statistics_cost_nothing_on_the_data_that_they_are_of():
    network = network_of(3)
    data = torch.randn(64, 3, 32, 32, generator=generator_for(3))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average of one batch
        norm.reset_running_stats()
    network.train()(data)
    network.eval()
    with batch_norm_losses(teacher_of(network)) as losses:
        network(data)
    n = 64 * 32 * 32  # torch keeps the unbiased variance
    bound = sum(float(norm.get_buffer("running_var").norm()) for norm in norms) / n
    assert len(losses) == 2
    assert float(losses[0]) / 10 + float(losses[1]) <= 2 * bound + 1e-5
    assert sum(map(float, losses)) <= 1e-3


def test_without_a_rate_the_images_are_the_residual_mix_in_closed_form():
    teacher, start, sizes = teacher_of(network_of(1)), mosaics(), (28, 32, 28, 32)
    images = recovery_of(teacher, sizes=sizes, lr=0.0, alpha=0.5).run(
        LABELS, generator_for(0), start
    )

    def at(x, size):
        return interpolate(x, size=(size, size), mode="bilinear")

    pixels = start / 255
    mixed = at(pixels, 28)
    for size in sizes[1:]:
        mixed = 0.5 * at(mixed, size) + 0.5 * at(pixels, size)
    assert (images - 255 * mixed).abs().max() <= 0.51


def test_with_alpha_one_no_mosaic_is_mixed_in_again():
    teacher, start = teacher_of(network_of(1)), mosaics()
    plain = recovery_of(teacher, sizes=(32,)).run(LABELS, generator_for(0), start)
    halves = recovery_of(teacher, sizes=(32, 32), alpha=1.0, lr=0.0)
    assert torch.equal(halves.run(LABELS, generator_for(0), start), start)
    assert not torch.equal(plain, start)


def test_one_stage_is_a_plain_loop_of_adam():
    teacher, start, steps = teacher_of(network_of(1)), mosaics(), 6
    recovery = recovery_of(teacher, iterations=steps)
    ours = recovery.run(LABELS, generator_for(7), start)
    generator, low, high = (
        generator_for(7),
        *(
            normalised(torch.full((1, 3, 1, 1), level), IMAGENET_MEAN, IMAGENET_STD)
            for level in (0.0, 1.0)
        ),
    )
    x = normalised(start, IMAGENET_MEAN, IMAGENET_STD).requires_grad_()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps):
        seen = augmented(x, generator, 0.08)
        (gradient,) = torch.autograd.grad(plain_loss(teacher, seen, LABELS, 0.01), x)
        first, second = 0.5 * first + 0.5 * gradient, 0.9 * second + 0.1 * gradient**2
        rate = 0.25 * (1 + math.cos(math.pi * step / steps)) / 2
        unbiased = first / (1 - 0.5 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
        moved = x.detach() - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        x = torch.maximum(torch.minimum(moved, high), low).requires_grad_()
    std, mean = (torch.tensor(row)[:, None, None] for row in (IMAGENET_STD, IMAGENET_MEAN))
    expected = 255 * (x.detach() * std + mean)
    # A division by the root of a small second moment amplifies rounding where there was none.
    apart = (ours - expected).abs()
    assert apart.median() <= 0.5
    assert (apart > 2).float().mean() < 0.01


def test_images_stay_in_the_range_of_pixels_and_leave_their_start():
    teacher, start = teacher_of(network_of(1)), mosaics()
    images = recovery_of(teacher, lr=5.0).run(LABELS, generator_for(0), start)
    assert images.dtype == torch.uint8
    assert {0, 255} <= set(images.flatten().tolist())
    assert (images.int() - start.int()).abs().float().mean() > 20


def test_teachers_take_turns():
    turns = list[int]()

    class Watched(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.inner, self.number = network_of(number), number

        def forward(self, images):
            turns.append(self.number)
            return self.inner(images)

    teachers = [teacher_of(Watched(number)) for number in range(3)]
    recovery_of(*teachers, iterations=8, sizes=(28, 32)).run(LABELS, generator_for(0), mosaics())
    assert turns == [0, 1, 2, 0, 1, 2, 0, 1]


def test_crops_shrink_in_the_curriculum_of_cda_and_not_else(monkeypatch):
    least = list[float]()

    def watched(images, generator, least_crop):
        least.append(least_crop)
        return augmented(images, generator, least_crop)

    monkeypatch.setattr("coreset.engine.condensed.methods.recovery.augmented", watched)
    for curriculum in (False, True):
        recovery_of(teacher_of(network_of(1)), curriculum=curriculum, iterations=4).run(
            LABELS, generator_for(0)
        )
    assert least[:4] == [0.08] * 4
    falls = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert least[4:] == pytest.approx([0.08 + 0.92 * fall for fall in falls])


def test_an_augmentation_keeps_the_size_and_draws_for_the_whole_batch():
    images = torch.arange(32.0 * 32).reshape(1, 1, 32, 32).expand(4, 3, 32, 32)
    for seed in range(20):
        seen = augmented(images, generator_for(seed), 0.08)
        assert seen.shape == images.shape
        assert torch.equal(seen, seen[:1, :1].expand_as(seen))
    whole = [augmented(images, generator_for(seed), 1.0)[0, 0] for seed in range(20)]
    assert {tuple(sorted(one.flatten().tolist())) for one in whole} == {
        tuple(sorted(images[0, 0].flatten().tolist()))
    }


@pytest.fixture
def command(packed, untrained_teacher):
    """``command(out)``: words that recover a small set, two images of three classes."""
    options = ("--method", "sre2l", "--teachers", untrained_teacher, "--size", 32)
    few = ("--iterations", 3, "--batch-classes", 2)
    return lambda out: ("distill", packed, out, "--ipc", 2, *options, *few)


def test_a_killed_run_goes_on_with_the_next_part(tmp_path, command, coreset, fork, stored_bytes):
    child = fork(KILLED_IN_THE_SECOND_PART, *command(tmp_path / "SET"))
    assert child.code == -signal.SIGKILL, child.said
    for name in ("SET", "WHOLE"):
        ended = coreset(*command(tmp_path / name))
        assert ended.code == 0, ended.err
    assert [read_ledger(tmp_path / name)[-1]["images"] for name in ("SET", "WHOLE")] == [12, 18]
    assert stored_bytes(tmp_path / "SET") == stored_bytes(tmp_path / "WHOLE")


@pytest.mark.slow
def test_two_ranks_make_the_bytes_of_one_process(
    tmp_path, command, coreset, start_ranks, stored_bytes
):
    assert coreset(*command(tmp_path / "ALONE")).code == 0
    ranks = start_ranks(RUN, *command(tmp_path / "RANKS"))
    assert [rank.code for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert stored_bytes(tmp_path / "RANKS") == stored_bytes(tmp_path / "ALONE")


def test_fadrm_begins_with_the_mosaics_of_a_set(
    packed, untrained_teacher, tmp_path, coreset, stored_samples
):
    made = ("distill", packed, tmp_path / "PATCHES", "--ipc", 2, "--size", 32)
    assert coreset(*made).code == 0
    options = ("--teachers", untrained_teacher, "--patches", tmp_path / "PATCHES", "--size", 32)
    command = ("distill", packed, tmp_path / "SET", "--method", "fadrm", "--ipc", 2, *options)
    ended = coreset(*command, "--iterations", 4, "--lr", 0, "--alpha", 0)
    assert ended.code == 0, ended.err
    patches, images = (
        [data for _, data in sorted(stored_samples(tmp_path / name), key=lambda s: s[0]["key"])]
        for name in ("PATCHES", "SET")
    )
    assert patches == images  # PNG of the same pixels: mixed with nothing else


def test_what_cannot_be_recovered_is_refused(packed, tmp_path, command, coreset, refused):
    patches = tmp_path / "PATCHES"
    assert coreset("distill", packed, patches, "--ipc", 1, "--size", 32).code == 0
    few = (*command(tmp_path / "SET"), "--patches", patches)
    fadrm = [word if word != "sre2l" else "fadrm" for word in few]
    assert "ipc must be at most the size of every class, got 2, but" in refused(tmp_path, *fadrm)
    assert "begins with no mosaics; leave out --patches" in refused(tmp_path, *few)
    assert "takes 2 to 8 --teachers, got 1" in refused(
        tmp_path, *(word if word != "fadrm" else "fadrm+" for word in fadrm)
    )
    for option, value, reason in (
        ("--size", 31, "size must be at least 32, got 31"),
        ("--iterations", 0, "iterations must be at least 1, got 0"),
        ("--batch-classes", 0, "batch_classes must be at least 1, got 0"),
        ("--lr", "nan", "lr must be at least 0, got nan"),
        ("--ipc", 0, "ipc must be at least 1, got 0"),
    ):
        assert reason in refused(tmp_path, *command(tmp_path / "SET"), option, value)


def test_a_teacher_without_batch_norm_is_refused(command, tmp_path, refused, monkeypatch):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    monkeypatch.setattr(
        "coreset.engine.models.teachers.load_teachers", lambda *_: (teacher_of(network),)
    )
    said = refused(tmp_path, *command(tmp_path / "SET"))
    assert "teacher small has no batch norm" in said
