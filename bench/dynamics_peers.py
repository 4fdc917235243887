"""Accumulation of the AUM and of all scores beside the package ``aum``, on the same logits."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.bench.dynamics_timing import COMPILED, EAGER, Batch, Setting, Update, all_batches
from coreset.bench.harness import Absent, Contender, Row, rows_of_all
from coreset.engine.runtime.device import generator_for, resolve_device
from coreset.kernels.dynamics import SUMS, Dynamics

AUM, AUM_COMPILED, PEER = "AUM alone, eager", "AUM alone, compiled", "aum"
LARGEST = "largest logit only"
GOALS = {COMPILED: 8.0, AUM: 20.0}
"""Times the speed of the peer."""
UPDATES_PER_TURN = 1000


class AumAlone:
    """Smallest accumulator of the AUM of logits: a margin, a sum and a count."""

    def __init__(self, n_samples: int, *, compiled: bool) -> None:
        """Start with nothing seen."""
        self.sums, self.counts = torch.zeros(n_samples), torch.zeros(n_samples)
        self._add = torch.compile(add_margins, fullgraph=True) if compiled else add_margins

    def update(self, logits: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Count one batch."""
        self._add(self.sums, self.counts, logits, labels, ids)


def add_margins(sums: Tensor, counts: Tensor, logits: Tensor, labels: Tensor, ids: Tensor) -> None:
    """Add the margins of a batch to the rows of its ids."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    batch = logits.gather(1, labels[:, None])[:, 0] - others
    sums.index_add_(0, ids, batch)
    counts.index_add_(0, ids, torch.ones_like(batch))


def peers(setting: Setting) -> Iterator[Row]:
    """Time every accumulator on the same float32 logits; check the AUM against NumPy's."""
    resolve_device("cpu")
    batches = setting.batches(torch.float32, UPDATES_PER_TURN)
    shown = np.concatenate([ids.numpy() for _, _, ids in batches])
    expected = np.concatenate([_margins(logits, labels) for logits, labels, _ in batches])

    def check(aum_of: Callable[[], NDArray[Any]], _out: Path) -> str:
        return aum_error(aum_of(), expected)

    entries: list[Contender | Absent] = [
        Contender(
            name=name,
            run=partial(all_batches, update, batches),
            check=partial(check, aum_of),
            role="ours",
        )
        for name, update, aum_of in _accumulators(setting.samples, shown)
    ]
    one_pass = partial(all_batches, _largest, batches)
    entries.append(Contender(name=LARGEST, run=one_pass, role="limit"))
    with tempfile.TemporaryDirectory(dir=setting.work) as work:
        ids = torch.randperm(setting.samples, generator=generator_for(1)).tolist()
        rows = rows_of_all(
            [*entries, aum_package(Path(work), batches, ids, check)],
            repeats=setting.repeats,
            work=Path(work),
            images=len(shown),
            source_bytes=len(shown) * batches[0][0][0].nbytes,
        )
    for row in rows:
        yield setting.facts() | row | {"goal": GOALS.get(row["contender"])}


def _largest(logits: Tensor, _labels: Tensor, _ids: Tensor) -> None:
    logits.amax(dim=1)


def _accumulators(
    n: int, shown: NDArray[np.int64]
) -> Iterator[tuple[str, Update, Callable[[], NDArray[Any]]]]:
    def aum_of_all(dynamics: Dynamics) -> NDArray[Any]:
        sums = dynamics.state()["sums"].numpy()[shown]
        return sums[:, SUMS.index("logit_margin")] / sums[:, SUMS.index("visits")]

    def aum_of_one(alone: AumAlone) -> NDArray[Any]:
        return (alone.sums / alone.counts).numpy()[shown]

    for name in (EAGER, COMPILED):
        dynamics = Dynamics(n, "cpu", compiled=name == COMPILED)
        yield name, dynamics.update, partial(aum_of_all, dynamics)
    for name in (AUM, AUM_COMPILED):
        alone = AumAlone(n, compiled=name == AUM_COMPILED)
        yield name, alone.update, partial(aum_of_one, alone)


def _margins(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Compute margins by their definition."""
    values, rows = logits.double().numpy().copy(), np.arange(len(labels))
    own = values[rows, labels.numpy()].copy()
    values[rows, labels.numpy()] = -np.inf
    return own - values.max(axis=1)


def aum_error(aum: NDArray[Any], expected: NDArray[np.float64]) -> str:
    """Return the error of the AUM of the samples that were shown; empty if it is right."""
    # A running float32 sum of equal margins is off by half a unit in the last place per addition.
    far = np.flatnonzero(~np.isclose(aum, expected, rtol=1e-5, atol=1e-5))
    if not far.size:
        return ""
    return f"AUM of {far.size} samples differs, one is {aum[far[0]]}, not {expected[far[0]]}"


def aum_package(
    work: Path,
    batches: Sequence[Batch],
    ids: Sequence[int],
    check: Callable[[Callable[[], NDArray[Any]], Path], str],
) -> Contender | Absent:
    """Return the calculator of the AUM paper's package; lists of ids are made before the clock.

    Args:
        work: Where it may write.
        batches: In the order of every turn.
        ids: Of all samples, in the order of a first epoch.
        check: Checks the AUM of the samples in ``batches``.
    """
    try:
        package, version = import_module(PEER), metadata.version(PEER)
    except ImportError as error:
        return Absent(name=PEER, reason=f"{type(error).__name__}: {error}")
    calculator = package.AUMCalculator(str(work), compressed=True)
    calculator.counts.update(dict.fromkeys(ids, 0))
    calculator.sums.update(dict.fromkeys(ids, 0.0))
    listed = [(logits, labels, ids.tolist()) for logits, labels, ids in batches]

    def aum_of() -> NDArray[Any]:
        shown = [sample for _, _, ids in listed for sample in ids]
        sums, counts = calculator.sums, calculator.counts
        return np.array([sums[sample] / counts[sample] for sample in shown])

    return Contender(
        name=PEER,
        run=partial(all_batches, calculator.update, listed),
        check=partial(check, aum_of),
        versions={PEER: version},
        note="its dicts hold all samples, as they do from the second epoch on",
    )
