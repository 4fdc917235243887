"""Read scores as columns, and choose a coreset without writing one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import IDS_NAME
from coreset.engine.condensed.samplers import CcsParameters
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.stages.selection import Select

if TYPE_CHECKING:
    from pandas import DataFrame


class Scores(Mapping[str, NDArray[Any]]):
    """Columns of a scores artifact by name, each of shape (n,) in the order of sample ids.

    Scores (``aum``, ``el2n`` ...) are float32, NaN where a sample was never scored. ``table`` has
    the data set, the samples that could not be decoded, and scores turned so that low is hard.
    """

    def __init__(self, table: ScoreTable) -> None:
        self.table = table

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.table.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.columns)

    def __len__(self) -> int:
        return len(self.table.columns)

    def to_pandas(self) -> "DataFrame":
        """Return a data frame with one row per sample, indexed by sample id.

        The columns ``key`` (class folder and file stem) and ``label`` come first.
        """
        from pandas import DataFrame, RangeIndex

        dataset = self.table.dataset
        columns = {"key": list(dataset.keys), "label": dataset.labels, **self.table.columns}
        return DataFrame(columns, index=RangeIndex(len(dataset), name="id"))


def scores(path: str | Path, *, data: str | Path | None = None) -> Scores:
    """Read the scores that `coreset score` made.

    Args:
        path: Directory of the scores.
        data: Where the scored data set lies now, if it was moved.

    Raises:
        UsageError: ``path`` is no scores artifact, or its data set is not where it was.
        StoreError: The scores are damaged.
    """
    return Scores(ScoreTable.open(Path(path), None if data is None else Path(data)))


def select(
    source: str | Path,
    ipc: int,
    *,
    method: Literal["ccs", "random"] | None = None,
    score: str = "aum",
    misratio: float | None = None,
    bins: int = 50,
    seed: int = 0,
    data: str | Path | None = None,
    reveal: bool = False,
) -> NDArray[np.int64]:
    """Choose the images that `coreset select` chooses with the same options.

    Args:
        source: Directory of scores (for both methods) or of a packed data set (for ``random``).
        ipc: Images per class.
        method: None means ``ccs`` for scores and ``random`` for a data set.
        score: Score to stratify on (``ccs``).
        misratio: Share of the hardest images of a class to cut (``ccs``); None: the verb's default.
        bins: Equal-width bins over the range of a class's scores (``ccs``).
        seed: Seed of the draw.
        data: Where the scored data set lies now, if it was moved.
        reveal: Choose by scores with pseudo-labels, ``ipc`` of each of their groups.

    Returns:
        Sample ids of the data set, int64 of shape (n,), ascending: ``ipc`` of every class.

    Raises:
        UsageError: An option is out of range, or ``source`` is neither scores nor a data set.
        StoreError: The scores are damaged.
    """
    with TemporaryDirectory(prefix="coreset-select-") as folder:
        condensed = Path(folder) / "SET"
        Select(
            source=Path(source),
            condensed=condensed,
            ipc=ipc,
            method=method,
            score=score,
            seed=seed,
            reveal=reveal,
            parameters=CcsParameters(misratio=misratio, bins=bins),
            data=None if data is None else Path(data),
        ).run()
        return np.load(condensed / IDS_NAME)
