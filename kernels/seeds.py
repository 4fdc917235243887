"""Seeded random numbers as a pure function of integers: the same on every machine and version.

NumPy may change the streams of ``Generator.permutation`` between versions (NEP 19), so what lies on
disk (pack order, epoch order, selections) is drawn by sorting keys of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014; constants of prng.di.unimi.it/splitmix64.c).
"""

import numpy as np
from numpy.typing import NDArray


class Stream:
    """Streams of random numbers: steps of `derived_seed`, each unique among those under one seed.

    Their numbers decide what is drawn, so they never change.
    """

    RANDOM, CCS = 0, 1  # under the seed of a selection
    FOLDS = -1  # under the seed of a scoring, beside its epochs 0, 1, ...
    BLOCKS, SAMPLES = 0, 1  # of a block shuffle, under the seed of an epoch
    TRUE_LABEL, FLIP, OTHER_LABEL, DIFFICULTY, TEXTURE, CLASS, IMAGE = range(7)  # synthetic data


GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of splitmix64 for each state."""
    mixed = states + GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def derived_seed(seed: int, *path: int) -> int:
    """Derive an independent 64-bit seed for a path (stream, class, epoch ...) under a seed."""
    state = np.array([seed % 2**64], dtype=np.uint64)
    for step in path:
        state = splitmix64(splitmix64(state) ^ np.array([step % 2**64], dtype=np.uint64))
    return int(state[0])


def random_keys(n: int, seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random uint64 for each position 0 .. n-1, whatever n is."""
    start = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    return splitmix64(start + np.arange(n, dtype=np.uint64) * GOLDEN_GAMMA)


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """Draw a uniform permutation of 0 .. n-1: positions sorted by random key, ties by position."""
    return np.argsort(random_keys(n, seed), kind="stable").astype(np.int64)
