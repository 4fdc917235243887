"""Stochastic gradient descent with momentum: torch's update without torch's optimiser objects.

Making one of those imports torch's compiler, which costs every process that trains uncompiled a
second and some 200 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd
from torch.profiler import record_function


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Settings."""

    lr: float
    momentum: float = 0.9
    weight_decay: float
    """On all parameters."""
    nesterov: bool = False

    def build(self, network: nn.Module) -> "Optimiser":
        """Optimiser over all parameters of ``network``."""
        parameters = list(network.parameters())
        return Optimiser(self, parameters, [None] * len(parameters))


@dataclass(slots=True)
class Optimiser:
    """Updates the parameters of one network; the same numbers as ``torch.optim.SGD``."""

    settings: Sgd
    parameters: list[nn.Parameter]
    momentum: list[Tensor | None]
    """Of each parameter, None before its first update."""

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all parameters that have a gradient, at a learning rate of ``lr``."""
        settings, gradients = self.settings, [one.grad for one in self.parameters]
        trained = [at for at, gradient in enumerate(gradients) if gradient is not None]
        momentum = [self.momentum[at] for at in trained]
        with record_function("Optimizer.step"):
            sgd(
                [self.parameters[at] for at in trained],
                [gradient for gradient in gradients if gradient is not None],
                momentum,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                lr=lr,
                dampening=0.0,
                nesterov=settings.nesterov,
                maximize=False,
            )
        for at, buffer in zip(trained, momentum, strict=True):
            self.momentum[at] = buffer

    def state(self) -> dict[str, Tensor]:
        """Momentum by the number of its parameter."""
        return {str(at): one for at, one in enumerate(self.momentum) if one is not None}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``, wherever it lies.

        Raises:
            ValueError: It is that of another network.
        """
        for at, parameter in enumerate(self.parameters):
            buffer = state.get(str(at))
            if buffer is not None and buffer.shape != parameter.shape:
                raise ValueError(
                    f"momentum {at} is {tuple(buffer.shape)}, not {tuple(parameter.shape)}"
                )
            self.momentum[at] = None if buffer is None else buffer.to(parameter.device)
