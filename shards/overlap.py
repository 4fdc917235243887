"""Images that occur twice: within a data set, and between a training and a validation set.

Bytes as found are compared (``source_hash``), so that a resized packing matches an original one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.csv_cells import csv_table
from shards.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples with equal bytes: ``first`` of one data set and ``second`` of another, or the same.

    Both are int64 sample ids of shape (pairs,), in ascending order of ``second``.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]

    def __len__(self) -> int:
        return self.second.size


def copies(dataset: Dataset) -> Pairs:
    """Every sample whose bytes an earlier sample has, with the earliest of those."""
    hashes = _hashes(dataset)
    _, earliest, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = earliest[group.ravel()]
    second = np.flatnonzero(first != np.arange(len(hashes)))
    return Pairs(first[second], second)


def shared(dataset: Dataset, other: Dataset) -> Pairs:
    """Every sample of ``other`` whose bytes a sample of ``dataset`` has."""
    here, there = _hashes(dataset), _hashes(other)
    order = np.argsort(here, kind="stable")
    place = np.minimum(np.searchsorted(here, there, sorter=order), len(here) - 1)
    first = order[place]
    second = np.flatnonzero(here[first] == there)
    return Pairs(first[second], second)


def under_another_label(pairs: Pairs, dataset: Dataset, other: Dataset) -> NDArray[np.bool_]:
    """Which pairs belong to two classes, bool of shape (pairs,)."""
    names, other_names = np.array(dataset.classes), np.array(other.classes)
    return names[dataset.labels[pairs.first]] != other_names[other.labels[pairs.second]]


def write_pairs(path: Path, pairs: Pairs, dataset: Dataset, other: Dataset) -> None:
    """List the pairs as CSV: id, key and class of both."""
    keys, other_keys = dataset.keys, other.keys

    def described(first: int, second: int) -> tuple[object, ...]:
        here = (first, keys[first], dataset.classes[dataset.labels[first]])
        return (*here, second, other_keys[second], other.classes[other.labels[second]])

    header = ("id", "key", "class", "other_id", "other_key", "other_class")
    both = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    write_atomically(path, csv_table(header, (described(*one) for one in both)))


def _hashes(dataset: Dataset) -> NDArray[np.bytes_]:
    """xxh3_128 of every sample as found, in a form that NumPy sorts: 16 bytes in a row."""
    column = dataset.table(["source_hash"])["source_hash"].combine_chunks()
    # Fixed-width bytes drop trailing zeros; as numbers nothing is dropped.
    words = np.frombuffer(column.buffers()[1], np.uint8)[: 16 * len(column)]
    return words.reshape(-1, 16).view([("high", "u8"), ("low", "u8")]).ravel()
