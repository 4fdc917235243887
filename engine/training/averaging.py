"""Moving averages of weights."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of the parameters of a network; buffers are not averaged."""

    def __init__(self, network: nn.Module, kept: float) -> None:
        """Start from the weights as they are; ``kept`` is the share of the average at an update."""
        self.kept = kept
        self.weights = {name: one.detach().clone() for name, one in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the weights of the network, after each of its updates."""
        for average, one in zip(self.weights.values(), network.parameters(), strict=True):
            average.lerp_(one.detach(), 1 - self.kept)

    @contextmanager
    def in_place(self, network: nn.Module) -> Generator[None]:
        """Let the network have the averaged weights in the block, with its own buffers."""
        own = {name: one.detach().clone() for name, one in network.named_parameters()}
        _copy(self.weights, network)
        try:
            yield
        finally:
            _copy(own, network)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from weights that were averaged before."""
        for name, one in self.weights.items():
            one.copy_(weights[name])


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    for name, one in network.named_parameters():
        one.copy_(weights[name])
