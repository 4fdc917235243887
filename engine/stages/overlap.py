"""``coreset overlap``: how many images coresets of one data set share, class by class."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from coreset.engine.artifacts.writer import output_folder
from coreset.engine.condensed.condensed_set import CondensedSet, ids_within, open_set
from coreset.engine.runtime.text import aligned, short
from coreset.engine.stages.options import MovedData, Result
from coreset.kernels.measures import jaccard_by_class
from coreset.shards.errors import UsageError
from coreset.shards.format.files import write_atomically
from coreset.shards.tables.formats import csv_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Compare coresets pair by pair: images that both hold over images that either holds (Jaccard).

    Shown are the mean over classes, the smallest and the largest class, and what two random draws
    of the same sizes would share. For example: coreset overlap AUM RANDOM EL2N --csv overlap.csv.
    """

    sets: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SET SET ...")]
    """Coresets of one data set."""
    csv: Path | None = None
    """File to write: a row for each pair and class."""
    data: MovedData = None

    def __post_init__(self) -> None:
        if len(self.sets) < 2:
            raise UsageError(f"overlap compares two sets or more, got {len(self.sets)}")

    def run(self) -> Result:
        """Open the sets, compare every pair, write the table."""
        first = open_set(self.sets[0], data=self.data)
        ids = {path: ids_within(path, first.dataset) for path in self.sets}
        rows = list(_rows(first, ids))
        if self.csv is not None:
            with output_folder(self.csv):
                write_atomically(self.csv, csv_table(list(rows[0]), map(dict.values, rows)))
        pairs = [_summary(rows, *pair) for pair in combinations(map(str, self.sets), 2)]
        header = ("first", "second", "mean", "least", "most", "by chance")
        numbers = ("mean", "least", "most", "chance")
        shown = [
            (pair["first"], pair["second"], *(short(pair[name], ".3f") for name in numbers))
            for pair in pairs
        ]
        written = () if self.csv is None else (f"{len(rows):,} rows: {self.csv}",)
        return Result((*aligned(header, shown), *written), {"pairs": pairs})


def _rows(first: CondensedSet, ids: dict[Path, Any]) -> Iterator[dict[str, Any]]:
    classes, labels = first.dataset.classes, first.dataset.labels
    for one, other in combinations(ids, 2):
        shared, chance = jaccard_by_class(ids[one], ids[other], labels, len(classes))
        for name, jaccard, expected in zip(classes, shared.tolist(), chance.tolist(), strict=True):
            yield {
                "first": str(one), "second": str(other), "class": name,
                "jaccard": jaccard, "chance": expected,
            }  # fmt: skip


def _summary(rows: list[dict[str, Any]], first: str, second: str) -> dict[str, Any]:
    own = [row for row in rows if (row["first"], row["second"]) == (first, second)]
    values = np.array([row["jaccard"] for row in own])
    chances = [row["chance"] for row in own if not math.isnan(row["chance"])]
    known = values[~np.isnan(values)]
    return {
        "first": first, "second": second, "mean": float(known.mean()), "least": float(known.min()),
        "most": float(known.max()), "chance": float(np.mean(chances)),
    }  # fmt: skip
