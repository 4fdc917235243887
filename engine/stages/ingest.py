"""``coreset ingest``: make a coreset of a list of samples that others chose."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import SetInfo, write_set
from coreset.engine.condensed.importers import read_ids
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.stages.options import Result, SetPath
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

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
        ids = read_ids(self.listed, dataset)
        digest = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:12]
        parameters = self._checked_counts(dataset, dataset.labels[ids]) | {"ids": digest}
        # The ids and not the name of the list: the same samples make the same set.
        config = {"method": self.method, "seed": self.seed, "ids": digest}
        origin = Provenance.read(self.data).as_input("data", self.data, self.condensed)
        provenance = Provenance(kind="set", stage="ingest", config=config, inputs=(origin,))
        with create_artifact(self.condensed, provenance, inputs=[self.data]) as work:
            if not work.done:
                write_set(
                    work, dataset, ids, method=self.method, parameters=parameters, seed=self.seed
                )
                work.meter.images = ids.size
        info, how = SetInfo.read(self.condensed), "are there already" if work.done else "taken"
        fewest = min(info.per_class)
        each = str(info.ipc) if fewest == info.ipc else f"{fewest} to {info.ipc}"
        made = f"{ids.size:,} of {len(dataset):,} images ({info.method}, {each} a class)"
        next_line = f"next: coreset train {self.condensed} VAL RESULTS"
        data = {"set": str(self.condensed), "images": ids.size}
        return Result((f"{made} {how}: {self.condensed}", next_line), data)

    def _checked_counts(self, dataset: Dataset, labels: NDArray[np.int64]) -> dict[str, Any]:
        """Return the parameters that the counts of the classes make, or refuse unequal ones."""
        per_class = np.bincount(labels, minlength=len(dataset.classes))
        few, many = int(per_class.argmin()), int(per_class.argmax())
        parameters = {"ipc": int(per_class[many])}
        if per_class[few] == per_class[many]:
            return parameters
        if self.allow_short:
            return parameters | {"allow_short": True}
        raise UsageError(
            f"every class must have as many samples in {self.listed}, got {per_class[few]} of "
            f"class {dataset.classes[few]} and {per_class[many]} of {dataset.classes[many]}; mend "
            "the list or use --allow-short"
        )
