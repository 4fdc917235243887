"""Training steps and schedules against torch's own, saving against none."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from coreset.engine.models.networks import placed
from coreset.engine.runtime.device import (
    generator_for,
    half_precision,
    has_fast_bfloat16,
    precision_note,
    resolve_device,
    runtime_of,
)
from coreset.engine.training.compilation import compile_where_it_pays
from coreset.engine.training.trainer import (
    MOMENTS_NAME,
    WEIGHTS_NAME,
    Accuracy,
    Trainer,
    cosine_schedule,
    evaluate,
    moments_of,
    save_tensors,
    sgd,
    step_schedule,
)
from coreset.shards.errors import MachineError, StoreError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NO_IDS = torch.empty(0)


class Scaled(nn.Module):
    """Logits = inputs * weight + bias, column by column: autocast leaves it in float32."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, n_classes))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, inputs_bc):
        return inputs_bc * self.weight + self.bias


def small_network(layout=torch.contiguous_format) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        network = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 7, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4),
        )  # fmt: skip
    return placed(network, CPU, layout)


def small_trainer(layout=torch.contiguous_format, *, nesterov=False) -> Any:
    network = small_network(layout)
    optimiser = sgd(network, lr=0.1, weight_decay=1e-2, nesterov=nesterov)
    return Trainer(network, optimiser, cosine_schedule(0.1, 1e-3, 10), CPU)


def train(trainer, steps):
    """Steps on batches that depend on the step's number alone."""
    for step in steps:
        draws = generator_for(1, step)
        images = torch.randn((6, 3, 9, 9), generator=draws)
        labels = torch.randint(4, (6,), generator=draws)
        trainer.step(images, lambda logits, labels=labels: cross_entropy(logits, labels))


def state_of(trainer):
    momentum = moments_of(trainer.optimiser).values()
    return [*trainer.network.state_dict().values(), *momentum]


# one step


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_torchs_optimiser_at_the_rates_of_the_schedule(nesterov):
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(4, 5, 3))).float()
    labels = torch.from_numpy(rng.integers(3, size=(4, 5)))
    ours, theirs = Scaled(), Scaled()
    optimiser = sgd(ours, lr=0.3, weight_decay=0.01, momentum=0.8, nesterov=nesterov)
    trainer = Trainer(ours, optimiser, step_schedule(0.3, [2, 3], 0.5), CPU)
    expected = torch.optim.SGD(
        theirs.parameters(), lr=1, momentum=0.8, weight_decay=0.01, nesterov=nesterov
    )
    for x, y, rate in zip(inputs, labels, [0.3, 0.3, 0.15, 0.075], strict=True):
        trainer.step(x, lambda logits, y=y: cross_entropy(logits, y))
        expected.param_groups[0]["lr"] = rate
        expected.zero_grad()
        cross_entropy(theirs(x), y).backward()
        expected.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_the_logits_of_a_step_are_those_before_it_and_carry_no_graph():
    network = Scaled()
    trainer = Trainer(network, sgd(network, lr=1.0, weight_decay=0.0), lambda _: 1.0, CPU)
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    dtypes = []

    def loss_of(logits):
        dtypes.append(logits.dtype)
        return cross_entropy(logits, torch.tensor([0]))

    logits = trainer.step(inputs, loss_of)
    assert dtypes == [torch.float32], "the loss is in single precision"
    torch.testing.assert_close(logits, torch.tensor([[-1.0, 0.0, 3.0]]))
    assert not logits.requires_grad
    assert not torch.equal(network(inputs), logits)
    assert trainer.steps == 1


# schedules


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        # CCS: stepped after every batch.
        (cosine_schedule(0.1, 1e-4, 57), partial(CosineAnnealingLR, T_max=57, eta_min=1e-4)),
        # MinimaxDiffusion, in steps: int(2 E / 3) and int(5 E / 6).
        (step_schedule(0.1, [39, 48], 0.2), partial(MultiStepLR, milestones=[39, 48], gamma=0.2)),
    ],
    ids=["cosine", "drops"],
)
def test_schedules_are_those_of_torch(schedule, theirs):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = theirs(optimiser)
    for step in range(58):
        assert schedule(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimiser.step()
        reference.step()


# saving


@pytest.mark.parametrize("saved_at", [0, 3])
@pytest.mark.parametrize(
    ("layout", "nesterov"), [(torch.contiguous_format, False), (torch.channels_last, True)]
)
def test_a_continued_training_has_the_bits_of_an_uninterrupted_one(
    tmp_path, layout, nesterov, saved_at
):
    whole, first, second = (small_trainer(layout, nesterov=nesterov) for _ in range(3))
    train(whole, range(7))
    train(first, range(saved_at))
    first.save(tmp_path)
    train(second, range(2))  # which loading undoes
    second.load(tmp_path, saved_at)
    assert second.steps == saved_at
    train(second, range(saved_at, 7))
    assert all(map(torch.equal, state_of(whole), state_of(second)))


@pytest.mark.parametrize("damage", ["other network", "no weights", "no momentum", "cut weights"])
def test_a_saved_training_that_does_not_fit_is_refused_in_one_line(tmp_path, damage):
    trainer = small_trainer()
    train(trainer, range(1))
    trainer.save(tmp_path)
    match damage:
        case "other network":
            trainer.network = Scaled()
        case "no weights":
            (tmp_path / WEIGHTS_NAME).unlink()
        case "no momentum":
            (tmp_path / MOMENTS_NAME).unlink()
        case _:
            (tmp_path / WEIGHTS_NAME).write_bytes((tmp_path / WEIGHTS_NAME).read_bytes()[:50])
    with pytest.raises(StoreError, match=r"does not fit the network \(.*\); remove it") as caught:
        trainer.load(tmp_path, 1)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_the_error_of_the_system_that_commands_report(tmp_path):
    save_tensors({"weight": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "t.safetensors")
    assert load_file(tmp_path / "t.safetensors")["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"weight": torch.zeros(3)}, Path("/dev/full"))


def test_momentum_is_stored_by_the_number_of_its_parameter(tmp_path):
    """What a checkpoint of any version holds: a resumed training must find it by these names."""
    network = small_network()
    network[3].requires_grad_(False)
    optimiser = sgd(network, lr=0.1, weight_decay=0.0)
    trainer = Trainer(network, optimiser, lambda _: 0.1, CPU)
    train(trainer, range(1))
    trainer.save(tmp_path)
    stored = load_file(tmp_path / MOMENTS_NAME)
    parameters = list(network.parameters())
    trained = [at for at, parameter in enumerate(parameters) if parameter.requires_grad]
    assert sorted(stored, key=int) == list(map(str, trained))
    for at in trained:
        assert torch.equal(stored[str(at)], parameters[at].grad)  # after one step


# evaluation


class Table(nn.Module):
    """Logits are the inputs; counts how often it is asked while in training mode."""

    trained = 0

    def forward(self, inputs):
        self.trained += self.training
        return inputs


@pytest.mark.parametrize("n_classes", [2, 5, 30])
def test_accuracy_equals_a_plain_loop(n_classes):
    rng = np.random.default_rng(n_classes)
    logits = rng.normal(size=(37, n_classes)).astype(np.float32)
    labels = rng.integers(n_classes, size=37)
    top1 = top5 = 0
    for row, label in zip(logits, labels, strict=True):
        better = sum(value > row[label] for value in row)
        top1 += better < 1
        top5 += better < 5
    batches = [
        (torch.from_numpy(logits[part]), torch.from_numpy(labels[part]), NO_IDS)
        for part in (slice(16), slice(16, 32), slice(32, 37))
    ]
    network = Table()
    got = evaluate(network, iter(batches), CPU)
    seen, right = [0] * n_classes, [0] * n_classes
    for row, label in zip(logits, labels, strict=True):
        seen[label] += 1
        right[label] += all(value <= row[label] for value in row)
    expected = Accuracy(100 * top1 / 37, 100 * top5 / 37, tuple(zip(right, seen, strict=True)))
    assert got == expected, "to the last bit: counts of images"
    assert network.trained == 0
    assert evaluate(network, iter(()), CPU) == Accuracy(0.0, 0.0)


def test_an_evaluation_changes_nothing_and_a_step_trains_after_it():
    trainer = small_trainer()
    before = [tensor.clone() for tensor in trainer.network.state_dict().values()]
    batch = (torch.randn((4, 3, 9, 9), generator=generator_for(0)), torch.zeros(4).long(), NO_IDS)
    evaluate(trainer.network, iter([batch]), CPU)
    assert all(map(torch.equal, before, trainer.network.state_dict().values()))
    mean = trainer.network[1].running_mean.clone()
    train(trainer, range(1))
    assert not torch.equal(trainer.network[1].running_mean, mean)


def test_a_gpu_without_bfloat16_trains_in_float32_and_that_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    for capability, has_it in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, of=capability: of)
        assert has_fast_bfloat16(torch.device("cuda")) is has_it
        note = precision_note(torch.device("cuda"))
        assert note.startswith("Tesla T4 has no bfloat16") is not has_it
    assert precision_note(CPU) == ""


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_the_environment_hides_are_named_as_hidden(monkeypatch, hidden):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(MachineError, match="no usable GPU here, CUDA_VISIBLE_DEVICES hides all; "):
        resolve_device("cuda")
    assert resolve_device("auto") == CPU


# compilation


@pytest.mark.parametrize(
    ("mode", "image_passes", "size", "compiled"),
    [
        ("off", 1e9, 224, False),
        ("on", 1, 32, True),
        ("auto", 480 * 900 - 1, 64, False),
        ("auto", 480 * 900 + 1, 64, True),
        ("auto", 480 * 900 // 3, 128, True),  # four times the work per image
    ],
)
def test_compilation_is_for_long_trainings_and_needs_a_compiler(
    monkeypatch, mode, image_passes, size, compiled
):
    monkeypatch.setattr("coreset.engine.training.compilation.which", lambda _: None)
    network, asked = nn.Linear(2, 2), []
    monkeypatch.setattr(network, "compile", lambda **options: asked.append(options))
    note = compile_where_it_pays(network, mode, CPU, image_passes=image_passes, size=size)
    assert note == ("no C++ compiler here: training runs uncompiled" if compiled else "")
    assert asked == []
    monkeypatch.setattr("coreset.engine.training.compilation.which", lambda name: name == "g++")
    note = compile_where_it_pays(network, mode, CPU, image_passes=image_passes, size=size)
    assert (note, len(asked)) == ("", compiled)


def test_cuda_graphs_are_asked_for_on_a_gpu_and_refused_on_a_cpu(monkeypatch):
    network, asked = nn.Linear(2, 2), []
    with pytest.raises(UsageError, match="CUDA graphs need a GPU, the device is cpu"):
        compile_where_it_pays(network, "graphs", CPU, image_passes=1, size=32)
    monkeypatch.setattr(network, "compile", lambda **options: asked.append(options))
    for mode in ("graphs", "auto"):
        compile_where_it_pays(network, mode, torch.device("cuda"), image_passes=1, size=32)
    assert [options["mode"] for options in asked] == ["reduce-overhead", "default"]


def test_there_is_one_whole_graph_per_side_and_none_for_short_batches_or_epochs(monkeypatch):
    trainer, alone, graphs = small_trainer(), small_trainer(), []
    compiled = nn.Module.compile

    def counted(graph, _example_inputs):
        graphs.append(graph)
        return graph.forward

    def with_counter(network, mode, dynamic):
        assert mode == "default"
        compiled(network, backend=counted, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", with_counter)
    monkeypatch.setattr("coreset.engine.training.compilation.which", lambda _: "c++")
    compile_where_it_pays(trainer.network, "on", CPU, image_passes=1, size=9, n_sizes=2)
    for epoch in range(3):
        for side in (9, 11):
            for rows in (6, 6, 2):
                draws = generator_for(epoch, side, rows)
                images = torch.randn((rows, 3, side, side), generator=draws)
                for trained in (trainer, alone):
                    trained.step(images, lambda logits: logits.square().mean())
        batches = [(torch.randn(n, 3, 9, 9), torch.zeros(n).long(), NO_IDS) for n in (6, 6, 1)]
        evaluate(trainer.network, iter(batches), CPU)
    assert len(graphs) == 3, "a side each, and the evaluation"
    assert all(map(torch.allclose, state_of(trainer), state_of(alone)))


# seeds and devices


def test_places_under_a_seed_have_streams_of_their_own():
    def first(*path):
        return torch.rand(4, generator=generator_for(*path)).tolist()

    assert first(0, 1) == first(0, 1)
    streams = [first(seed, epoch) for seed in (0, 1, -1) for epoch in range(4)]
    assert len({tuple(stream) for stream in streams}) == 12
    generator_for(2**64 - 1, 3)


def test_the_runtime_names_the_precision_that_is_used():
    with half_precision(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert str(product.dtype) == f"torch.{runtime_of(CPU)['precision']}"
    assert (product.dtype == torch.bfloat16) == has_fast_bfloat16(CPU)
