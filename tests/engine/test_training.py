"""The training step against arithmetic by hand, schedules against torch's, saving against none."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from coreset.engine.models.networks import placed
from coreset.engine.runtime.device import (
    generator_for,
    half_precision,
    has_fast_bfloat16,
    resolve_device,
    runtime_of,
    seeded_initialisation,
)
from coreset.engine.training.trainer import (
    MOMENTUM_NAME,
    WEIGHTS_NAME,
    Accuracy,
    Trainer,
    compile_where_it_pays,
    cosine_schedule,
    evaluate,
    load_momentum,
    momentum_of,
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
    with seeded_initialisation(5):
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
    momentum = momentum_of(trainer.optimiser).values()
    return [*trainer.network.state_dict().values(), *momentum]


def by_hand(inputs, labels, rates, *, weight_decay, momentum, nesterov):
    """SGD of Sutskever et al. in PyTorch's form (torch.optim.SGD's formula), in float64."""
    n_classes = inputs.shape[2]
    values = {"weight": np.linspace(-1, 1, n_classes), "bias": np.zeros(n_classes)}
    velocities: dict[str, np.ndarray] = {}
    for x, y, rate in zip(inputs, labels, rates, strict=True):
        logits = x * values["weight"] + values["bias"]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        errors = (p - np.eye(n_classes)[y]) / len(y)
        gradients = {"weight": (errors * x).sum(axis=0), "bias": errors.sum(axis=0)}
        for name, gradient in gradients.items():
            decayed = gradient + weight_decay * values[name]
            velocities[name] = (
                momentum * velocities[name] + decayed if name in velocities else decayed
            )
            step = decayed + momentum * velocities[name] if nesterov else velocities[name]
            values[name] = values[name] - rate * step
    return values


# one step


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_the_update_by_hand(nesterov):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(4, 5, 3)), rng.integers(3, size=(4, 5))
    network = Scaled()
    optimiser = sgd(network, lr=0.3, weight_decay=0.01, momentum=0.8, nesterov=nesterov)
    schedule = step_schedule(0.3, [2, 3], 0.5)
    trainer = Trainer(network, optimiser, schedule, CPU)
    for x, y in zip(inputs, labels, strict=True):
        labels_b = torch.from_numpy(y)
        trainer.step(
            torch.from_numpy(x).float(),
            lambda logits, labels_b=labels_b: cross_entropy(logits, labels_b),
        )
    expected = by_hand(
        inputs, labels, [0.3, 0.3, 0.15, 0.075], weight_decay=0.01, momentum=0.8, nesterov=nesterov
    )
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(network, name).detach().numpy(), values, rtol=1e-5, atol=1e-6
        )


def test_the_logits_of_a_step_are_those_before_it_and_carry_no_graph():
    network = Scaled()
    trainer = Trainer(network, sgd(network, lr=1.0, weight_decay=0.0), lambda _: 1.0, CPU)
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    logits = trainer.step(inputs, lambda logits: cross_entropy(logits, torch.tensor([0])))
    torch.testing.assert_close(logits, torch.tensor([[-1.0, 0.0, 3.0]]))
    assert not logits.requires_grad
    assert not torch.equal(network(inputs), logits)
    assert trainer.steps == 1


def test_a_step_trains_after_an_evaluation():
    trainer = small_trainer()
    evaluate(trainer.network, iter([(torch.zeros(2, 3, 9, 9), torch.zeros(2).long(), NO_IDS)]), CPU)
    before = trainer.network[1].running_mean.clone()
    train(trainer, range(1))
    assert not torch.equal(trainer.network[1].running_mean, before)


def test_the_loss_is_in_single_precision():
    dtypes = []

    def loss_of(logits):
        dtypes.append(logits.dtype)
        return logits.sum()

    small_trainer().step(torch.zeros(2, 3, 9, 9), loss_of)
    assert dtypes == [torch.float32]


# schedules


def test_the_cosine_is_that_of_torch_per_iteration():
    # CCS: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=1e-4), stepped
    # after every batch.
    total = 57
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total, eta_min=1e-4)
    schedule = cosine_schedule(0.1, 1e-4, total)
    for step in range(total + 1):
        assert schedule(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimiser.step()
        reference.step()


def test_the_cosine_starts_at_the_first_and_ends_at_the_last_rate():
    schedule = cosine_schedule(0.1, 1e-4, 1000)
    assert schedule(0) == 0.1
    assert schedule(500) == pytest.approx((0.1 + 1e-4) / 2)
    assert schedule(1000) == pytest.approx(1e-4)
    assert schedule(250) == pytest.approx(1e-4 + 0.0999 * (1 + math.sqrt(0.5)) / 2)


def test_the_drops_are_those_of_torch():
    # Minimax: MultiStepLR(optimizer, [int(2E/3), int(5E/6)], gamma=0.2), stepped after every epoch.
    epochs, steps_per_epoch = 20, 3
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimiser, [13, 16], gamma=0.2)
    schedule = step_schedule(0.01, (epoch * steps_per_epoch for epoch in (13, 16)), 0.2)
    for epoch in range(epochs):
        for step in range(steps_per_epoch):
            got = schedule(epoch * steps_per_epoch + step)
            assert got == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        reference.step()


def test_each_step_uses_the_rate_of_its_number(monkeypatch):
    trainer = small_trainer()
    rates: list[float] = []
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda optimiser: rates.append(optimiser.param_groups[0]["lr"])
    )
    train(trainer, range(3))
    assert rates == [trainer.schedule(step) for step in range(3)]


# saving


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_continued_training_has_the_bits_of_an_uninterrupted_one(tmp_path, layout, nesterov):
    whole, first, second = (small_trainer(layout, nesterov=nesterov) for _ in range(3))
    train(whole, range(7))
    train(first, range(3))
    first.save(tmp_path)
    second.load(tmp_path, 3)
    assert second.steps == 3
    train(second, range(3, 7))
    for one, other in zip(state_of(whole), state_of(second), strict=True):
        assert torch.equal(one, other)


def test_without_the_momentum_the_continued_training_would_differ(tmp_path):
    whole, first, second = (small_trainer() for _ in range(3))
    train(whole, range(4))
    train(first, range(3))
    first.save(tmp_path)
    second.load(tmp_path, 3)
    load_momentum(second.optimiser, {})
    train(second, [3])
    assert not torch.equal(whole.network[0].weight, second.network[0].weight)


def test_a_training_saved_before_its_first_step_is_its_start(tmp_path):
    first, second, whole = (small_trainer() for _ in range(3))
    first.save(tmp_path)
    train(second, range(2))
    second.load(tmp_path, 0)
    train(second, range(2))
    train(whole, range(2))
    for one, other in zip(state_of(whole), state_of(second), strict=True):
        assert torch.equal(one, other)


def test_the_same_training_is_saved_in_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trainer = small_trainer()
        train(trainer, range(2))
        trainer.save(tmp_path / name)
    for file in (WEIGHTS_NAME, MOMENTUM_NAME):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


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
            (tmp_path / MOMENTUM_NAME).unlink()
        case _:
            (tmp_path / WEIGHTS_NAME).write_bytes((tmp_path / WEIGHTS_NAME).read_bytes()[:50])
    with pytest.raises(StoreError, match=r"does not fit the network \(.*\); remove it") as caught:
        trainer.load(tmp_path, 1)
    assert "\n" not in str(caught.value)


def test_momentum_is_stored_by_the_number_of_its_parameter(tmp_path):
    """What a checkpoint of any version holds: a resumed training must find it by these names."""
    network = small_network()
    network[3].requires_grad_(False)
    optimiser = sgd(network, lr=0.1, weight_decay=0.0)
    trainer = Trainer(network, optimiser, lambda _: 0.1, CPU)
    train(trainer, range(1))
    trainer.save(tmp_path)
    stored = load_file(tmp_path / MOMENTUM_NAME)
    parameters = list(network.parameters())
    trained = [at for at, parameter in enumerate(parameters) if parameter.requires_grad]
    assert sorted(stored, key=int) == list(map(str, trained))
    for at in trained:
        assert torch.equal(stored[str(at)], parameters[at].grad)  # after one step


def test_the_momentum_of_another_network_is_refused():
    network, other = nn.Linear(5, 4), nn.Linear(5, 3)
    optimiser = sgd(network, lr=0.1, weight_decay=0.0)
    network(torch.ones(2, 5)).sum().backward()
    optimiser.step()
    with pytest.raises(ValueError, match=r"momentum 0 is \(4, 5\), not \(3, 5\)"):
        load_momentum(sgd(other, lr=0.1, weight_decay=0.0), momentum_of(optimiser))


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
    assert got == Accuracy(100 * top1 / 37, 100 * top5 / 37), "to the last bit: a count of images"
    assert network.trained == 0


def test_two_thirds_are_not_rounded_to_single_precision():
    logits = torch.eye(3)
    got = evaluate(Table(), iter([(logits, torch.tensor([0, 1, 0]), NO_IDS)]), CPU)
    assert got == Accuracy(200 / 3, 100.0)


def test_no_images_are_no_hits():
    assert evaluate(Table(), iter(()), CPU) == Accuracy(0.0, 0.0)


def test_an_evaluation_changes_nothing():
    network = small_network()
    before = [tensor.clone() for tensor in network.state_dict().values()]
    batch = (torch.randn((4, 3, 9, 9), generator=generator_for(0)), torch.zeros(4).long(), NO_IDS)
    evaluate(network, iter([batch]), CPU)
    for one, other in zip(before, network.state_dict().values(), strict=True):
        assert torch.equal(one, other)


# compilation


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler is found, which nobody calls before the network is run."""
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def is_compiled(network):
    return network._compiled_call_impl is not None


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("mode", "image_passes", "size", "compiled"),
    [
        ("off", 1e9, 224, False),
        ("on", 1, 32, True),
        ("auto", 480 * 900 - 1, 64, False),
        ("auto", 480 * 900 + 1, 64, True),
        ("auto", 480 * 900 // 3, 64, False),
        ("auto", 480 * 900 // 3, 128, True),  # four times the work per image
        ("auto", 0, 224, False),
    ],
)
def test_compilation_happens_on_request_and_for_long_trainings(mode, image_passes, size, compiled):
    network = nn.Linear(2, 2)
    note = compile_where_it_pays(network, mode, CPU, image_passes=image_passes, size=size)
    assert (note, is_compiled(network)) == ("", compiled)


def test_cuda_graphs_are_asked_for_on_a_gpu_and_refused_on_a_cpu(monkeypatch):
    network, asked = nn.Linear(2, 2), []
    with pytest.raises(UsageError, match="CUDA graphs need a GPU, the device is cpu"):
        compile_where_it_pays(network, "graphs", CPU, image_passes=1, size=32)
    monkeypatch.setattr(network, "compile", lambda **options: asked.append(options))
    for mode in ("graphs", "auto"):
        compile_where_it_pays(network, mode, torch.device("cuda"), image_passes=1, size=32)
    assert [options["mode"] for options in asked] == ["reduce-overhead", "default"]


def test_without_a_compiler_the_training_runs_uncompiled_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    network = nn.Linear(2, 2)
    note = compile_where_it_pays(network, "on", CPU, image_passes=1, size=32)
    assert note == "no C++ compiler here: training runs uncompiled"
    assert not is_compiled(network)
    assert network(torch.zeros(1, 2)).shape == (1, 2)


# seeds and devices


def test_places_under_a_seed_have_streams_of_their_own():
    def first(*path):
        return torch.rand(4, generator=generator_for(*path)).tolist()

    assert first(0, 1) == first(0, 1)
    streams = [first(seed, epoch) for seed in (0, 1, -1) for epoch in range(4)]
    assert len({tuple(stream) for stream in streams}) == 12
    generator_for(2**64 - 1, 3)


def test_a_seeded_initialisation_leaves_the_global_stream_alone():
    before = torch.random.get_rng_state()
    with seeded_initialisation(3):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with seeded_initialisation(3):
        assert torch.equal(torch.rand(3), first)


def test_a_missing_gpu_is_an_error_with_a_remedy():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(MachineError, match="no usable GPU here; use --device cpu"):
        resolve_device("cuda")


def test_the_runtime_names_the_precision_that_is_used():
    with half_precision(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert str(product.dtype) == f"torch.{runtime_of(CPU)['precision']}"
    assert (product.dtype == torch.bfloat16) == has_fast_bfloat16(CPU)
