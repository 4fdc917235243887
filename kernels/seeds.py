"""Seeded random numbers as a pure function of integers: the same on every machine and version.

NumPy may change the streams of ``Generator.permutation`` between versions (NEP 19). Results on disk
(pack order, epoch order, selections) are therefore drawn by sorting splitmix64 keys.
splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
the constants are those of Vigna's reference implementation (prng.di.unimi.it/splitmix64.c).
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


# Streams of random numbers: steps of `derived_seed`. Their numbers decide what is drawn, so they
# never change, and each is unique among all that are derived from one seed.
class SelectionStream(IntEnum):
    """Samplers under the seed of a selection: two of them share no draws."""

    RANDOM = 0
    CCS = 1


class ScoringStream(IntEnum):
    """Draws of a scoring other than those of its epochs 0, 1, ..."""

    FOLDS = -1


class OrderStream(IntEnum):
    """Parts of a block shuffle under the seed of an epoch."""

    BLOCKS = 0
    SAMPLES = 1


class SyntheticStream(IntEnum):
    """Parts of a synthetic data set."""

    TRUE_LABEL = 0
    FLIP = 1
    OTHER_LABEL = 2
    DIFFICULTY = 3
    TEXTURE = 4
    CLASS = 5
    IMAGE = 6


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
