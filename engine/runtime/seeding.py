"""Seeds of torch: one generator per place (epoch, repeat), so that no generator state is stored."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from coreset.kernels.seeds import derived_seed


def generator_for(seed: int, *path: int) -> torch.Generator:
    """CPU generator of a place under a run's seed: the same draws whatever the device."""
    return torch.Generator().manual_seed(derived_seed(seed, *path) % 2**63)


@contextmanager
def seeded_initialisation(seed: int) -> Generator[None]:
    """Seed torch's CPU generator, which module constructors use, and restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
