"""Seeded randomness as a pure function of integers: the same on every machine and version.

NumPy does not promise the streams of ``Generator.permutation`` across versions (NEP 19), so what is
written to disk (pack order, epoch order, selections) is drawn by sorting splitmix64 keys instead.
splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
the constants are those of Vigna's reference implementation (prng.di.unimi.it/splitmix64.c).
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output of splitmix64 for each state: add gamma, then two xor-shift multiplications."""
    mixed = states + GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def derived_seed(seed: int, *path: int) -> int:
    """Independent 64-bit seed for a place (class, epoch, repeat ...) under a run's seed."""
    state = np.array([seed % 2**64], dtype=np.uint64)
    for step in path:
        state = splitmix64(splitmix64(state) ^ np.array([step % 2**64], dtype=np.uint64))
    return int(state[0])


def random_keys(n: int, seed: int) -> NDArray[np.uint64]:
    """One pseudo-random uint64 per position 0 .. n-1; each depends on ``seed`` and itself alone."""
    start = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    return splitmix64(start + np.arange(n, dtype=np.uint64) * GOLDEN_GAMMA)


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """Uniform permutation of 0 .. n-1: positions sorted by random key, equal keys by position."""
    return np.argsort(random_keys(n, seed), kind="stable").astype(np.int64)
