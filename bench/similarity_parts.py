"""Parts of the benchmark of similarity: coverage, and precision, recall, density and coverage.

With ``OMP_WAIT_POLICY=PASSIVE``, as in every command. Features are normal, so that no result
hangs on ties.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Contender, Options, Role, Row, race
from coreset.kernels.manifold import precision_recall_density_coverage
from coreset.kernels.neighbours import nearest
from coreset.kernels.samplers import positions_by_class
from coreset.kernels.similarity import coverage_by_class, pooled_coverage

ROWS, CLASSES, WIDTH = 50_000, 1000, 512
POOLED_ROWS = 20_000
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CLASS_ROWS, K = 2000, 5
Numbers = Mapping[str, float]
Rows = list[NDArray[np.float32]]


def coverage_rows(options: Options) -> Iterator[Row]:
    """Race r1, d1, r2 and d2 of many small classes."""
    (chosen, labels), (real, real_labels) = (_sample(seed, ROWS, CLASSES) for seed in (0, 1))
    columns = chosen, labels, real, real_labels
    measure = partial(coverage_by_class, *columns, CLASSES)
    ours = _Timed("ours", lambda: {k: float(v.mean()) for k, v in measure().items()}, role="ours")
    sklearn = {"scikit-learn": version("scikit-learn")}
    peers = [
        _Timed("three searches a class (before)", partial(_by_searches, *columns)),
        _Timed("scikit-learn, class by class", partial(_by_sklearn, *columns), versions=sklearn),
    ]
    for name, clock in CLOCKS.items():  # of all threads, whose waiting is no work
        for row in _race(options, ours, peers, tolerance=1e-6, clock=clock):
            yield row | {"clock": name}


def pooled_rows(options: Options) -> Iterator[Row]:
    """Race r2 over all classes pooled, which scikit-learn takes from a matrix of all pairs."""
    (chosen, _), (real, _) = (_sample(seed, POOLED_ROWS, 1) for seed in (0, 1))
    ours = _Timed("ours", partial(pooled_coverage, chosen, real), role="ours")
    peers = [_Timed("scikit-learn, one matrix", partial(_pooled_by_sklearn, chosen, real))]
    yield from _race(options, ours, peers, tolerance=1e-6)


def prdc_rows(options: Options) -> Iterator[Row]:
    """Race precision, recall, density and coverage of one class with the package ``prdc``."""
    (chosen, labels), (real, _) = (_sample(seed, CLASS_ROWS, 1) for seed in (0, 1))
    measure = partial(precision_recall_density_coverage, chosen, labels, real, labels, 1, k=K)
    ours = _Timed("ours", lambda: {k: float(v[0]) for k, v in measure().items()}, role="ours")
    peers = [_Timed("prdc", partial(_by_package, chosen, real), versions={"prdc": version("prdc")})]
    # The package rounds distances to float32: a pair or two of millions may change sides.
    yield from _race(options, ours, peers, tolerance=2 / CLASS_ROWS)


@dataclass(slots=True)
class _Timed:
    """Contender that keeps what it measured last."""

    name: str
    measure: Callable[[], Numbers]
    role: Role = "peer"
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    last: Numbers = field(default_factory=dict[str, float])

    def run(self, _out: Path) -> None:
        self.last = self.measure()


def _race(
    options: Options,
    ours: _Timed,
    peers: list[_Timed],
    *,
    tolerance: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Let all take turns; each must measure what we did in the same round."""

    def check(entry: _Timed, _out: Path) -> str:
        apart = max(abs(entry.last[name] - ours.last[name]) for name in ours.last)
        return "" if apart <= tolerance else f"{apart:.1e} apart from ours"

    entries = [
        Contender(
            name=entry.name,
            run=entry.run,
            role=entry.role,
            check=partial(check, entry),
            versions=entry.versions,
        )
        for entry in (ours, *peers)
    ]
    return race(entries, repeats=options.repeats, work=options.work, clock=clock)


def _sample(seed: int, n: int, n_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    return rng.normal(size=(n, WIDTH)).astype(np.float32), labels


def _of_classes(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Rows:
    return [features[members] for members in positions_by_class(labels, CLASSES)]


def _means(by_class: list[tuple[float, float, float, float]]) -> Numbers:
    return dict(zip(("r1", "d1", "r2", "d2"), np.mean(by_class, axis=0).tolist(), strict=True))


def _by_searches(
    chosen: NDArray[np.float32],
    labels: NDArray[np.int64],
    real: NDArray[np.float32],
    real_labels: NDArray[np.int64],
) -> Numbers:
    """Measure as we did before: FAISS searches each class three times."""
    set_rows, real_rows = (
        _of_classes(_scaled(x), of) for x, of in ((chosen, labels), (real, real_labels))
    )
    return _means([_searched(s, v) for s, v in zip(set_rows, real_rows, strict=True)])


def _scaled(x: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    return np.ascontiguousarray(x / lengths[:, None], dtype=np.float32)


def _searched(s: NDArray[np.float32], v: NDArray[np.float32]) -> tuple[float, float, float, float]:
    r1, d1 = _cosines(s, v, 0).min(), 1 - _cosines(s, s, 1).max()
    n, total = len(s), s.sum(axis=0, dtype=np.float64)
    own = np.einsum("nd,nd->", s, s, dtype=np.float64)
    return r1, d1, _cosines(v, s, 0).mean(), 1 - (total @ total - own) / (n * (n - 1))


def _cosines(
    queries: NDArray[np.float32], base: NDArray[np.float32], rank: int
) -> NDArray[np.float64]:
    found = base[nearest(queries, base, rank + 1)[:, rank]]
    return np.clip(np.einsum("nd,nd->n", queries, found, dtype=np.float64), -1.0, 1.0)


def _by_sklearn(
    chosen: NDArray[np.float32],
    labels: NDArray[np.int64],
    real: NDArray[np.float32],
    real_labels: NDArray[np.int64],
) -> Numbers:
    """Measure by the calls of ManifoldGD's script, class by class, and the means likewise."""
    from sklearn.metrics.pairwise import cosine_similarity

    similarity: Any = cosine_similarity
    by_class: list[tuple[float, float, float, float]] = []
    pairs = zip(_of_classes(chosen, labels), _of_classes(real, real_labels), strict=True)
    for s, v in pairs:
        across, within = similarity(s, v), similarity(s)
        n = len(s)
        d2 = 1 - (within.sum(dtype=np.float64) - np.trace(within)) / (n * (n - 1))
        np.fill_diagonal(within, -np.inf)
        r2 = across.max(axis=0).mean(dtype=np.float64)
        by_class.append((across.max(axis=1).min(), 1 - within.max(), r2, d2))
    return _means(by_class)


def _pooled_by_sklearn(chosen: NDArray[np.float32], real: NDArray[np.float32]) -> Numbers:
    from sklearn.metrics.pairwise import cosine_similarity

    similarity: Any = cosine_similarity
    across = similarity(chosen, real)
    r1, r2 = across.max(axis=1).min(), across.max(axis=0).mean(dtype=np.float64)
    del across
    within, n = similarity(chosen), len(chosen)
    d2 = 1 - (within.sum(dtype=np.float64) - np.trace(within)) / (n * (n - 1))
    np.fill_diagonal(within, -np.inf)
    return {"r1": float(r1), "d1": 1 - float(within.max()), "r2": float(r2), "d2": float(d2)}


def _by_package(chosen: NDArray[np.float32], real: NDArray[np.float32]) -> Numbers:
    import prdc

    package: Any = prdc
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # it prints sizes
        return package.compute_prdc(real_features=real, fake_features=chosen, nearest_k=K)
