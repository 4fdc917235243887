"""Training step of a network, with learning-rate schedules, evaluation and saving.

No batch waits for the device. Rates follow from the step number and draws from seeds by place, so
the state to save is weights, moments and step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import cos, pi
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from coreset.engine.runtime.device import half_precision
from coreset.engine.training.compilation import WholeBatches
from coreset.shards.errors import DataError, StoreError

Examples: TypeAlias = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Batches of (network inputs, labels, ids)."""

WEIGHTS_NAME, MOMENTS_NAME = "model.safetensors", "optimiser.safetensors"
_MOMENTUM = "momentum_buffer"


class DivergedError(DataError):
    """A training that diverged: the same configuration would diverge again."""


def cosine_schedule(
    lr: float, min_lr: float, total_steps: int, warmup_steps: int = 0
) -> Callable[[int], float]:
    """Return CCS's cosine per step from ``lr`` to ``min_lr``, after a linear rise from nothing."""

    def rate(step: int) -> float:
        if step < warmup_steps:
            return lr * (step + 1) / warmup_steps
        share = (step - warmup_steps) / (total_steps - warmup_steps)
        return min_lr + (lr - min_lr) * (1 + cos(pi * share)) / 2

    return rate


def step_schedule(lr: float, drops: Iterable[int], factor: float) -> Callable[[int], float]:
    """Multiply ``lr`` by ``factor`` for every drop (in steps) already passed."""
    ordered = tuple(drops)
    return lambda step: lr * factor ** sum(step >= drop for drop in ordered)


def sgd(
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """Return the optimiser of all parameters of ``network``, in one group."""
    return torch.optim.SGD(
        network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def adam(network: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Return Adam (Kingma and Ba 2015) of all parameters of ``network``, in one group."""
    return torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def adamw(network: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019), which decays no biases and scales of norms.

    Those are tensors of one dimension, and make the second group.
    """
    matrices = [one for one in network.parameters() if one.ndim > 1]
    vectors = [one for one in network.parameters() if one.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return list(chain.from_iterable(group["params"] for group in optimiser.param_groups))


def moments_of(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments of each parameter, without those never updated.

    By the number of the parameter; others than SGD's momentum also by their name: ``0.exp_avg``.
    """
    moments = dict[str, Tensor]()
    for at, parameter in enumerate(_parameters(optimiser)):
        for name, tensor in optimiser.state.get(parameter, {}).items():
            if tensor is not None:
                moments[str(at) if name == _MOMENTUM else f"{at}.{name}"] = tensor
    return moments


def load_moments(optimiser: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Continue from ``moments_of`` an optimiser, on the device of the parameters."""
    optimiser.state.clear()
    parameters = {str(at): one for at, one in enumerate(_parameters(optimiser))}
    for key, tensor in moments.items():
        at, _, name = key.partition(".")
        if (parameter := parameters.get(at)) is not None:
            # Adam counts its steps on the CPU; fused kernels take moments in a parameter's layout.
            own = tensor if name == "step" else torch.empty_like(parameter).copy_(tensor)
            optimiser.state[parameter][name or _MOMENTUM] = own


@dataclass(slots=True)
class Trainer:
    """One network in training."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Callable[[int], float]
    device: torch.device
    steps: int = 0
    replica: nn.Module | None = None
    """The network as it runs here where several processes train it together."""
    whole_batches: WholeBatches = field(default_factory=WholeBatches)
    half: bool | None = None
    """Forward and backward passes in bfloat16; None: where the device is fast at it."""
    last_loss: Tensor = field(default_factory=lambda: torch.tensor(torch.nan))

    def step(self, inputs: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Update once; return the detached logits of the forward pass before it.

        ``last_loss`` is the loss of that pass, on the device.
        """
        self.network.train()
        with half_precision(self.device, wanted=self.half), self.whole_batches.of(inputs):
            logits = (self.replica or self.network)(inputs)
        loss = loss_of(logits.float())
        self.last_loss = loss.detach()
        self.optimiser.zero_grad()
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule(self.steps)
        self.optimiser.step()
        self.steps += 1
        return logits.detach()

    def save_weights(self, directory: Path) -> None:
        """Write the weights as safetensors."""
        save_tensors(self.network.state_dict(), directory / WEIGHTS_NAME)

    def save(self, directory: Path) -> None:
        """Write weights and moments as safetensors."""
        self.save_weights(directory)
        save_tensors(moments_of(self.optimiser), directory / MOMENTS_NAME)

    def load(self, directory: Path, steps: int) -> None:
        """Continue from what ``save`` wrote after ``steps`` updates, or refuse it."""
        try:
            self.network.load_state_dict(load_file(directory / WEIGHTS_NAME))
            load_moments(self.optimiser, load_file(directory / MOMENTS_NAME))
        except (RuntimeError, OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"{directory} does not fit the network ({reason}); remove it and train again"
            ) from error
        self.steps = steps


def replica_of(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network that several processes train: they share gradients, and the main's buffers."""
    from torch.nn.parallel import DistributedDataParallel

    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, from the CPU and in the usual layout.

    safetensors' own writer hides the error of a full disk in one of its own.
    """
    usual = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(usual))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of correctly classified images, in percent."""

    top1: float
    top5: float
    by_class: tuple[tuple[int, int], ...] = ()
    """Images of each class: right ones, and all."""


@torch.inference_mode()
def evaluate(
    network: nn.Module, examples: Examples, device: torch.device, *, half: bool | None = None
) -> Accuracy:
    """Measure top-1 and top-5 accuracy (of fewer than five classes: all), with one host sync.

    ``half`` is that of `Trainer`.
    """
    network.eval()
    counts = torch.zeros((3, 0), dtype=torch.int64, device=device)
    whole_batches = WholeBatches()
    for inputs, labels, _ in examples:
        with half_precision(device, wanted=half), whole_batches.of(inputs):
            logits = network(inputs)
        ranked = logits.float().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        found = torch.stack((ranked[:, 0], ranked.any(dim=1), torch.ones_like(ranked[:, 0])))
        if counts.numel() == 0:
            counts = counts.new_zeros((3, logits.shape[1]))
        counts.index_add_(1, labels, found.long())
    right, near, seen = counts.tolist()
    top1, top5 = (100.0 * sum(count) / max(sum(seen), 1) for count in (right, near))
    return Accuracy(top1, top5, tuple(zip(right, seen, strict=True)))
