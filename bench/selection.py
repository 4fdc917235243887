"""Speed of the samplers, beside earlier and published code on the same input.

    OMP_WAIT_POLICY=PASSIVE python -m coreset.bench.selection [--part ccs class scale start]

with waiting threads asleep, as in every command. Published code is restated with the calls that it
makes. Writes ``bench/results/selection.jsonl``.
"""

import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from coreset.bench.docs import Block, Cell, Table, contender, machine, ratio
from coreset.bench.harness import Contender, Options, Row, race, records_of
from coreset.bench.processes import environment_of, pool_of
from coreset.kernels import feature_samplers
from coreset.kernels.neighbours import unit_rows
from coreset.kernels.samplers import ccs_coreset, n_hardest, positions_by_class
from coreset.kernels.seeds import derived_seed, random_keys

Part = Literal["ccs", "class", "scale", "start"]
IPC, MISRATIO, BINS, SEED = 50, 0.5, 50, 0
CCS = "ours"
CLASS_ROWS, CLASS_WIDTH = 1300, 512
LARGEST = 100_000_000, 10_000
"""Scores and classes of the part ``scale``."""
GAMMA = feature_samplers.GAMMA


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionBench(Options):
    """Measure selection."""

    part: tuple[Part, ...] = ("ccs", "class", "scale", "start")
    """Parts to measure."""
    samples: int = 1_281_167
    """Scores of the part ccs."""
    classes: int = 1000
    """Classes of the part ccs."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        torch.set_num_threads(self.threads)
        parts = {"ccs": self._ccs, "class": self._of_class, "scale": _scale, "start": _start}
        self.record_parts("selection", {part: parts[part] for part in self.part})

    def _ccs(self) -> Iterator[Row]:
        scores, labels = _scored(self.samples, self.classes)
        budgets = np.full(self.classes, IPC)
        ours = partial(_ours, scores, labels, budgets)
        earlier = partial(_earlier, scores, labels, self.classes)
        published = partial(_published, torch.from_numpy(scores), labels, self.classes)
        entries = [
            _contender(CCS, ours, role="ours", expected=earlier),
            _contender("class by class in NumPy (before)", earlier),
            _contender("published sampler, class by class", published),
        ]
        yield from race(entries, repeats=self.repeats, work=self.work)

    def _of_class(self) -> Iterator[Row]:
        rows = np.random.default_rng(SEED).normal(size=(CLASS_ROWS, CLASS_WIDTH))
        features = np.maximum(rows, -0.5).astype(np.float32)
        easiness = np.random.default_rng(1).normal(size=CLASS_ROWS)
        facility = partial(feature_samplers.facility_location, features, IPC)
        d2 = partial(feature_samplers.d2, features, easiness, IPC)
        entries = [
            _contender(
                "facility-location", facility, role="ours", expected=lambda: _lazy(features)
            ),
            _contender("facility-location, apricot (lazy)", lambda: _lazy(features)),
            _contender("d2", d2, role="ours", expected=lambda: _d2(features, easiness)),
            _contender("d2, published", lambda: _d2(features, easiness)),
            _contender("k-center", lambda: feature_samplers.k_center(features, IPC), role="ours"),
            _contender("herding", lambda: feature_samplers.herding(features, IPC), role="ours"),
            _contender("one Gram matrix", lambda: features @ features.T, role="limit"),
        ]
        yield from race(entries, repeats=self.repeats, work=self.work)


def _contender(
    name: str,
    run: Callable[[], Any],
    *,
    role: Literal["ours", "peer", "limit"] = "peer",
    expected: Callable[[], Any] | None = None,
) -> Contender:
    last: list[Any] = []

    def check(_out: Path) -> str:
        if expected is None or np.array_equal(last[0], expected()):
            return ""
        return "other samples"

    return Contender(
        name=name, run=lambda _out: last.__setitem__(slice(None), [run()]), role=role, check=check
    )


def _scored(n: int, n_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(SEED)
    labels = rng.permutation(np.arange(n) % n_classes)
    return rng.normal(size=n).astype(np.float32), labels


def _ours(
    scores: NDArray[np.float32], labels: NDArray[np.int64], budgets: NDArray[np.int64]
) -> NDArray[np.int64]:
    drawn = ccs_coreset(scores, labels, budgets, SEED, misratio=MISRATIO, n_bins=BINS)
    return drawn.positions


def _earlier(
    scores: NDArray[np.float32], labels: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Draw as `ccs_coreset` does, by NumPy's sorts, one class after the other."""
    chosen: list[NDArray[np.int64]] = []
    for c, members in enumerate(positions_by_class(labels, n_classes)):
        values, n = scores[members], members.size
        n_cut = min(n_hardest(n, MISRATIO), n - IPC)
        kept = np.sort(np.argsort(values, kind="stable")[n_cut:])
        wide = values[kept].astype(np.float64)
        fractions = (wide - wide.min()) / (wide.max() - wide.min())
        bins = np.minimum((fractions * BINS).astype(np.int64), BINS - 1)
        sizes = np.bincount(bins, minlength=BINS)
        order = np.lexsort((random_keys(n, derived_seed(SEED, c))[kept], bins))
        ranks = np.arange(kept.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        drawn = order[ranks < np.repeat(_shares(sizes), sizes)]
        chosen.append(members[kept[drawn]])
    return np.sort(np.concatenate(chosen))


def _shares(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    counts, left = [0] * sizes.size, IPC
    for rank, stratum in enumerate(np.argsort(sizes, kind="stable").tolist()):
        counts[stratum] = min(int(sizes[stratum]), left // (sizes.size - rank))
        left -= counts[stratum]
    return np.array(counts)


def _published(scores: torch.Tensor, labels: NDArray[np.int64], n_classes: int) -> int:
    """Draw by the calls of ``stratified_sampling`` of the authors' code, class by class."""
    n_drawn = 0
    for members in positions_by_class(labels, n_classes):
        values = scores[torch.from_numpy(members)]
        kept = values[values.argsort()[n_hardest(members.size, MISRATIO) :]]
        low, high = torch.min(kept), torch.max(kept) * 1.0001
        step = (high - low) / BINS
        masks = [
            torch.logical_and(kept >= low + k * step, kept < low + (k + 1) * step)
            for k in range(BINS)
        ]
        sizes = torch.tensor([int(mask.sum()) for mask in masks])
        counts, left = torch.zeros(BINS, dtype=torch.int), IPC
        for rank, k in enumerate(torch.argsort(sizes).tolist()):
            counts[k] = min(int(sizes[k]), left // (BINS - rank))
            left -= int(counts[k])
        for mask, count in zip(masks, counts.tolist(), strict=True):
            pool = torch.nonzero(mask).flatten()
            n_drawn += pool[torch.randperm(pool.shape[0])[:count]].numel()
    return n_drawn


def _lazy(features: NDArray[np.float32]) -> NDArray[np.int64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from apricot import FacilityLocationSelection

    unit = unit_rows(features).astype(np.float64)
    cosines = np.maximum(unit @ unit.T, 0)
    peer = FacilityLocationSelection(IPC, metric="precomputed", optimizer="lazy")
    return np.asarray(peer.fit(cosines).ranking)


def _d2(features: NDArray[np.float32], easiness: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw by the calls of ``GraphDensitySampler`` of D2 pruning, of a difficulty in [0, 1]."""
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import kneighbors_graph

    n, difficulty = len(features), (easiness.max() - easiness) / np.ptp(easiness)
    apart = pairwise_distances(features, features)
    graph = np.asarray(kneighbors_graph(features, feature_samplers.N_NEIGHBOURS, p=2).todense())
    for i, j in zip(*graph.nonzero(), strict=True):
        near = np.exp(-apart[i, j])
        graph[i, j] = near * max(difficulty[j].item(), 1e-7)
        graph[j, i] = near * max(difficulty[i].item(), 1e-7)
    density = np.array([graph[i, :].sum() + difficulty[i].item() for i in range(n)])
    chosen: list[int] = []
    while len(chosen) < IPC:
        best = int(np.argmax(density))
        near = (graph[best, :] > 0).nonzero()[0]
        density[near] -= np.exp(-apart[best, near] * GAMMA) * density[best]
        chosen.append(best)
        density[chosen] = min(density) - 1
    return np.array(chosen)


def _scale() -> Iterator[Row]:
    """Draw from many scores in a process of its own, which tells the memory it took at most."""
    with pool_of() as pool:
        yield {"contender": CCS, "role": "ours"} | pool.submit(_drawn_at_scale, *LARGEST).result()


def _drawn_at_scale(n: int, n_classes: int) -> Row:
    labels = np.arange(n) % n_classes
    scores = np.random.default_rng(SEED).random(n, np.float32)
    budgets, started = np.full(n_classes, IPC), time.perf_counter()
    drawn = _ours(scores, labels, budgets)
    return {
        "samples": n,
        "classes": n_classes,
        "chosen": drawn.size,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


_FIRST_DRAW = """
import time
import numpy as np
started = time.perf_counter()
from coreset.kernels.samplers import random_coreset
random_coreset(np.arange(1000) % 10, np.full(10, 5), 0)
print(time.perf_counter() - started)
"""


def _start() -> Iterator[Row]:
    """Time the first draw of a process that compiles, and of those that find the code."""
    with TemporaryDirectory() as cache:
        for when in ("compiling", *["with the code on disk"] * 5):
            with environment_of({"CORESET_CACHE": cache}):
                done = subprocess.run(
                    [sys.executable, "-c", _FIRST_DRAW], check=True, capture_output=True, text=True
                )
            yield {"when": when, "seconds": round(float(done.stdout), 3)}


def _speed_over(row: Row) -> str:
    rivals: Mapping[str, float] = row.get("speed_over", {})
    rival = {CCS: "class by class in NumPy (before)"}.get(row["contender"], "one Gram matrix")
    rival = next((name for name in rivals if name.startswith(f"{row['contender']},")), rival)
    return f"{ratio(rivals[rival])} ({rival})" if rival in rivals else ""


def _milliseconds(row: Row) -> str:
    times = (1e3 * row[f"{name}_seconds"] for name in ("median", "min", "max"))
    return "{:.1f} ({:.1f}-{:.1f})".format(*times)


_MS: Mapping[str, Cell] = {
    "way": contender,
    "ms": _milliseconds,
    "times the speed of": _speed_over,
}


def _first_results() -> str:
    (scale,), start = records_of("selection.scale"), records_of("selection.start")
    first, *later = (row["seconds"] for row in start)
    return (
        f"{scale['samples']:,} scores of {scale['classes']:,} classes: {scale['seconds']} s, at "
        f"most {scale['peak_gb']} GB with scores and labels. The first draw of a version compiles: "
        f"{first:.1f} s; later processes draw after {median(later):.2f} s, imports included."
    )


BLOCKS: Mapping[str, Block] = {
    "selection_machine": lambda: machine(records_of("selection.ccs")[0]),
    "selection_ccs": Table("selection.ccs", _MS),
    "selection_class": Table("selection.class", _MS),
    "selection_scale": _first_results,
}

if __name__ == "__main__":
    tyro.cli(SelectionBench).run()
