"""Time of the accumulation: updates beside a training step, an epoch and its commit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.bench.harness import Contender, Measured, Row, interleave_in_scratch
from coreset.engine.artifacts.store import write_columns
from coreset.engine.models.networks import build_network, memory_format_for, placed
from coreset.engine.runtime.device import generator_for, resolve_device
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.dynamics import Dynamics
from coreset.shards.format.files import fsync_tree

Batch: TypeAlias = tuple[Tensor, Tensor, Any]
"""Logits of shape (b, classes), labels of shape (b,), ids of shape (b,) or as a list."""
Update: TypeAlias = Callable[[Tensor, Tensor, Any], object]

STEP, EAGER, COMPILED = "training step", "all scores, eager", "all scores, compiled"
SHARE_GOAL, BYTES_GOAL = 0.02, 100e6
STEPS_PER_TURN, UPDATES_PER_TURN = 4, 200
BUFFERS = 16
"""Different batches of logits, used in turn: those of ImageNet would fill 5 GB."""
LR = 0.01
REFERENCE_EPOCHS, REFERENCE_BYTES_PER_LOGIT = 60, 2
"""CCS keeps the logits of all epochs in files, as float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes, and where to work."""

    samples: int
    classes: int
    batch: int
    size: int
    repeats: int
    work: Path

    def facts(self) -> Row:
        """Return the sizes for a record."""
        sizes = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        return sizes | {"threads": torch.get_num_threads()}

    def batches(self, dtype: torch.dtype, at_most: int | None = None) -> list[Batch]:
        """Make batches of an epoch: random logits and labels, and each id once, shuffled."""
        draws = generator_for(0)
        shape = (self.batch, self.classes)
        logits = [(3 * torch.randn(shape, generator=draws)).to(dtype) for _ in range(BUFFERS)]
        labels = [torch.randint(self.classes, shape[:1], generator=draws) for _ in range(BUFFERS)]
        ids = torch.randperm(self.samples, generator=draws).split(self.batch)[:at_most]
        return [
            (logits[i % BUFFERS][: len(part)], labels[i % BUFFERS][: len(part)], part)
            for i, part in enumerate(ids)
        ]


@dataclass(frozen=True, slots=True)
class Training:
    """ResNet-18 on one batch of random images, trained as ``coreset score`` does it."""

    trainer: Trainer
    images: Tensor
    labels: Tensor

    def step(self) -> Tensor:
        """Update the weights; return the logits before."""
        return self.trainer.step(self.images, partial(cross_entropy, target=self.labels))


def training(network: nn.Module, device: torch.device, *, batch: int, size: int) -> Training:
    """Put a batch beside ``network`` on ``device``; on ``meta`` nothing is computed."""
    draws = generator_for(0)
    images = torch.randn((batch, 3, size, size), generator=draws).to(device)
    labels = torch.randint(2, (batch,), generator=draws).to(device)
    images = images.contiguous(memory_format=memory_format_for("batch", device))
    optimiser = sgd(network, lr=LR, weight_decay=1e-4)
    # Autocast knows no ``meta``; where it is the CPU's it leaves such tensors alone.
    runs_on = torch.device("cpu") if device.type == "meta" else device
    return Training(Trainer(network, optimiser, lambda _: LR, runs_on), images, labels)


def resnet18(setting: Setting, device: torch.device) -> nn.Module:
    """Build the proxy as ``coreset score`` does."""
    network = build_network("resnet18", setting.classes, norm="batch", seed=0)
    return placed(network, device, memory_format_for("batch", device))


def step_share(setting: Setting) -> Iterator[Row]:
    """Compare the time of accumulating a batch with that of the training step, on the CPU."""
    device = resolve_device("cpu")
    network = resnet18(setting, device)
    step = training(network, device, batch=setting.batch, size=setting.size).step
    dtype = step().dtype
    batches = setting.batches(dtype, UPDATES_PER_TURN)
    contenders = [Contender(name=STEP, run=partial(_often, step, STEPS_PER_TURN), role="limit")]
    for name in (EAGER, COMPILED):
        dynamics = Dynamics(setting.samples, device, compiled=name == COMPILED)
        run = partial(all_batches, dynamics.update, batches)
        contenders.append(Contender(name=name, run=run, role="ours"))
    train, *ours = interleave_in_scratch(contenders, repeats=setting.repeats, work=setting.work)
    per_step = [seconds / STEPS_PER_TURN for seconds in train.seconds]
    yield setting.facts() | {"name": STEP, "logits": str(dtype), **_milliseconds(per_step)}
    for timed in ours:
        each = [seconds / len(batches) for seconds in timed.seconds]
        shares = [update / whole for update, whole in zip(each, per_step, strict=True)]
        row = setting.facts() | {"name": timed.contender.name, "logits": str(dtype)}
        row |= _milliseconds(each) | {"share": median(shares), "shares": shares}
        yield row | {"goal": SHARE_GOAL, "updates_per_turn": len(batches)}


def _often(step: Callable[[], object], times: int, _out: Path) -> None:
    for _ in range(times):
        step()


def _milliseconds(seconds: Sequence[float]) -> Row:
    ms = [1e3 * each for each in seconds]
    return {"rounds": len(ms), "median_ms": median(ms), "min_ms": min(ms), "max_ms": max(ms)}


def all_batches(update: Update, batches: Sequence[Batch], _out: Path) -> None:
    """Update with each batch in turn."""
    for logits, labels, ids in batches:
        update(logits, labels, ids)


def epoch_costs(setting: Setting) -> Iterator[Row]:
    """Time one epoch's accumulation, its end, its commit and the writing of the scores."""
    device = resolve_device("cpu")
    few = training(resnet18(setting, device), device, batch=2, size=setting.size)
    batches = setting.batches(few.step().dtype)
    compiled, eager = (Dynamics(setting.samples, device, compiled=one) for one in (True, False))

    def end(_out: Path) -> None:
        compiled.end_epoch(compiled.epochs)

    def save(out: Path) -> None:
        from safetensors.torch import save_file

        save_file(compiled.state(), out / "dynamics.safetensors")
        fsync_tree(out)

    def store(out: Path) -> None:
        write_columns(out / "scores.zarr", compiled.scores(), {})
        fsync_tree(out)

    contenders = [
        Contender(name=EAGER, run=partial(all_batches, eager.update, batches)),
        Contender(name=COMPILED, run=partial(all_batches, compiled.update, batches)),
        Contender(name="end of the epoch", run=end, check=partial(_visits_error, compiled)),
        Contender(name="commit of the state", run=save, check=partial(_state_error, compiled)),
        Contender(name="scores and their store", run=store),
    ]
    measured = interleave_in_scratch(contenders, repeats=setting.repeats, work=setting.work)
    state_bytes = sum(rows.nbytes for rows in compiled.state().values())
    for timed in measured:
        yield setting.facts() | _epoch_row(timed, setting, len(batches), state_bytes)


def _epoch_row(timed: Measured, setting: Setting, n_batches: int, state_bytes: int) -> Row:
    n = setting.samples
    reference = n * setting.classes * REFERENCE_EPOCHS * REFERENCE_BYTES_PER_LOGIT
    return {
        "name": timed.contender.name,
        "batches": n_batches,
        "failed": timed.failed,
        "microseconds_per_sample": 1e6 * timed.median_seconds / n,
        **_milliseconds(timed.seconds),
        "state_bytes": state_bytes,
        "bytes_goal": BYTES_GOAL,
        "reference_bytes": reference,
    }


def _visits_error(dynamics: Dynamics, _out: Path) -> str:
    visits = dynamics.visits()
    odd = np.flatnonzero(visits != dynamics.epochs)
    return f"{odd.size} samples were not counted once per epoch" if odd.size else ""


def _state_error(dynamics: Dynamics, out: Path) -> str:
    from safetensors.torch import load_file

    stored = load_file(out / "dynamics.safetensors")
    with suppress(KeyError):
        if all(torch.equal(stored[name], rows) for name, rows in dynamics.state().items()):
            return ""
    return "what was stored is not the state"
