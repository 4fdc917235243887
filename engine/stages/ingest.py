"""``coreset ingest``: a list of samples that others chose becomes a coreset."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import SetInfo, write_coreset
from coreset.engine.condensed.importers.registry import importer_of
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.stages.options import Result, SetPath
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

DIGEST_CHARACTERS = 12
_METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
ListPath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Make a coreset of the samples that a list names.

    LIST is a .npy array of sample ids, a table (.csv, .tsv, .json, .parquet), or a text file of one
    sample a line. A sample is named by id, sample key, source path, a longer path that ends in one,
    or a file name that only one has; in a table, by the column path, key or id, or the only one
    that names samples.
    """

    listed: ListPath
    """The list; ids are those of --data and of no other packing of the same images."""
    condensed: SetPath
    """Directory to make: the ids and how they came about, as `coreset select` makes it."""
    data: Path
    """Packed data set that the list is of."""
    method: str = "listed"
    """Name in tables."""
    seed: int = 0
    """Seed that the list was drawn with, for the tables."""
    allow_short: bool = False
    """Take a list with more samples of some classes than of others; its IPC is the largest."""

    def __post_init__(self) -> None:
        require_at_least("seed", self.seed, 0)
        if not _METHOD.fullmatch(self.method):
            raise UsageError(
                f"method must be letters, digits and . + _ -, got {self.method!a}; name it shortly"
            )

    def run(self) -> Result:
        """Find the samples, check the counts of the classes, publish the ids."""
        dataset = Dataset.open(self.data)
        ids = importer_of(self.listed).read(self.listed, dataset)
        per_class = np.bincount(dataset.labels[ids], minlength=len(dataset.classes))
        equal = per_class.min() == per_class.max()
        if not (equal or self.allow_short):
            raise _unequal(self.listed, dataset, per_class)
        recorded = Provenance.read(self.data).as_input("data", self.data, self.condensed)
        provenance = Provenance(
            kind="set",
            stage="ingest",
            # The ids and not the name of the list: the same samples make the same set.
            config={"method": self.method, "seed": self.seed, "ids": _digest(ids)},
            inputs=(recorded,),
        )
        with create_artifact(self.condensed, provenance, inputs=[self.data]) as work:
            if not work.done:
                parameters = {"ipc": int(per_class.max()), "ids": _digest(ids)}
                parameters |= {} if equal else {"allow_short": True}
                write_coreset(
                    work, dataset, ids, method=self.method, parameters=parameters, seed=self.seed
                )
                work.meter.images = ids.size
        return self._result(dataset, done=work.done)

    def _result(self, dataset: Dataset, *, done: bool) -> Result:
        info = SetInfo.read(self.condensed)
        n_images, fewest = sum(info.per_class), min(info.per_class)
        how = "are there already" if done else "taken"
        each = str(info.ipc) if fewest == info.ipc else f"{fewest} to {info.ipc}"
        made = f"{n_images:,} of {len(dataset):,} images ({info.method}, {each} a class)"
        lines = (
            f"{made} {how}: {self.condensed}",
            f"next: coreset train {self.condensed} VAL RESULTS",
        )
        return Result(lines, {"set": str(self.condensed), "images": n_images})


def _digest(ids: NDArray[np.int64]) -> str:
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:DIGEST_CHARACTERS]


def _unequal(listed: Path, dataset: Dataset, per_class: NDArray[np.int64]) -> UsageError:
    few, many = int(per_class.argmin()), int(per_class.argmax())
    return UsageError(
        f"every class must have as many samples in {listed}, got {per_class[few]} of class "
        f"{dataset.classes[few]} and {per_class[many]} of {dataset.classes[many]}; mend the list "
        "or use --allow-short"
    )
