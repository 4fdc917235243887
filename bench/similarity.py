"""Speed of measures between two sets of features, beside published code on the same input.

    OMP_WAIT_POLICY=PASSIVE python -m coreset.bench.similarity [--part coverage pooled prdc frechet]

with waiting threads asleep, as in every command. Published code is called where it is a package,
else restated with the calls that it makes. Writes ``bench/results/similarity.jsonl``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from coreset.bench.docs import (
    SPREAD,
    Block,
    Cell,
    Table,
    contender,
    if_present,
    machine,
    ratio,
)
from coreset.bench.harness import Contender, Options, Role, Row, absent, race, records_of
from coreset.bench.similarity_parts import coverage_rows, pooled_rows, prdc_rows
from coreset.kernels.frechet import Moments, frechet_distance, frechet_of_few

Part = Literal["coverage", "pooled", "prdc", "frechet"]
Features = NDArray[np.float32]
SQRTM, FIDELITY = "scipy sqrtm", "torch-fidelity"
TOLERANCE = 1e-6  # relative, of a distance


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityBench(Options):
    """Measure similarity."""

    part: tuple[Part, ...] = ("coverage", "pooled", "prdc", "frechet")
    """Parts to measure."""
    width: int = 2048
    """Features of an image."""
    images: int = 5000
    """Images of either set of the part frechet."""
    class_images: tuple[int, int] = (50, 1300)
    """Images of a class in a condensed set and in its reference."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        torch.set_num_threads(self.threads)
        parts = {
            "coverage": partial(coverage_rows, self),
            "pooled": partial(pooled_rows, self),
            "prdc": partial(prdc_rows, self),
            "frechet": self._frechet,
        }
        self.record_parts("similarity", {part: parts[part] for part in self.part})

    def _frechet(self) -> Iterator[Row]:
        a, b = _sets(self.images, self.images, self.width)
        values: dict[str, float] = {}
        add = partial(_contender, values, SQRTM)
        entries: list[Contender | Row] = [
            add(SQRTM, lambda: _by_sqrtm(a, b)),
            add(FIDELITY, lambda: _by_fidelity(a, b))
            if find_spec("torch_fidelity")
            else absent(FIDELITY, "not installed"),
            add("ours", lambda: frechet_distance(Moments.of(a), Moments.of(b)), role="ours"),
        ]
        yield from self._race(entries, a, b)
        few, many = _sets(*self.class_images, self.width)
        entries = [
            add(SQRTM, lambda: _by_sqrtm(few, many)),
            add("ours", lambda: frechet_of_few(few, many), role="ours"),
        ]
        yield from self._race(entries, few, many)

    def _race(self, entries: list[Contender | Row], a: Features, b: Features) -> Iterator[Row]:
        sets = {"sets": f"{len(a):,} and {len(b):,}"}
        for row in race(entries, repeats=self.repeats, work=self.work):
            yield row | sets


def _contender(
    values: dict[str, Any],
    reference: str,
    name: str,
    run: Callable[[], float],
    *,
    role: Role = "peer",
) -> Contender:
    """Return a contender whose value must be that of ``reference``, which runs before it."""

    def check(_out: Path) -> str:
        found, expected = values[name], values[reference]
        near = bool(np.allclose(found, expected, rtol=TOLERANCE, atol=0))
        return "" if near else f"expected {expected}, found {found}"

    def keep(_out: Path) -> None:
        values[name] = run()

    return Contender(name=name, run=keep, role=role, check=check)


def _sets(m: int, n: int, width: int) -> tuple[Features, Features]:
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.normal(size=(m + n, width)), -0.5).astype(np.float32)
    return rows[:m] + np.float32(0.1), rows[m:]


def _by_sqrtm(a: Features, b: Features) -> float:
    """Compute the distance by the calls of ``calculate_frechet_distance`` of the TTUR code."""
    from scipy.linalg import sqrtm

    apart = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root: Any = sqrtm(first @ second)
    return float(apart @ apart + first.trace() + second.trace() - 2 * root.trace().real)


def _by_fidelity(a: Features, b: Features) -> float:
    from torch_fidelity import metric_fid

    # Of float64, because it takes the mean of float32 in float32.
    first, second = (
        metric_fid.fid_features_to_statistics(torch.from_numpy(rows.astype(np.float64)))
        for rows in (a, b)
    )
    result: Any = metric_fid.fid_statistics_to_metric(first, second, verbose=False)
    return result[metric_fid.KEY_METRIC_FID]


def _speed_over(row: Row) -> str:
    rivals: Mapping[str, float] = row.get("speed_over", {})
    told = [f"{ratio(rivals[name])} ({name})" for name in (SQRTM, FIDELITY) if name in rivals]
    return ", ".join(told) if row["role"] == "ours" else ""


def _ours_over(row: Row) -> str:
    told = [f"{ratio(value)} ({name})" for name, value in row.get("speed_over", {}).items()]
    return ", ".join(told) if row["role"] == "ours" else ""


_WAYS: Mapping[str, Cell] = {
    "way": contender,
    "s": if_present("{median_seconds:.3f} ({min_seconds:.3f}-{max_seconds:.3f})", reason=True),
    "times the speed of": _ours_over,
}
_SECONDS: Mapping[str, Cell] = {
    "images": "{sets}",
    "way": contender,
    "s": if_present(SPREAD, reason=True),
    "times the speed of": _speed_over,
}

BLOCKS: Mapping[str, Block] = {
    "similarity_machine": lambda: machine(records_of("similarity.frechet")[0]),
    "similarity_coverage": Table("similarity.coverage", {"clock": "{clock}", **_WAYS}),
    "similarity_pooled": Table("similarity.pooled", _WAYS),
    "similarity_prdc": Table("similarity.prdc", _WAYS),
    "similarity_frechet": Table("similarity.frechet", _SECONDS),
}

if __name__ == "__main__":
    tyro.cli(SimilarityBench).run()
