"""Speed and memory of the concept layer, beside torch's own tools on stored similarities.

    OMP_WAIT_POLICY=PASSIVE python -m coreset.bench.concepts [--part epoch step memory]

- ``epoch``: epochs of training that also take the margins of every image, as ``aum`` needs. The
  peer reads stored, standardised similarities by a ``DataLoader``, in the same order.
- ``step``: one step of the layer at the size of ImageNet, in three forms.
- ``memory``: what an epoch of the folded layer takes above the features.

Writes ``bench/results/concepts.jsonl``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.bench.docs import Block, Table, contender, machine, ratio
from coreset.bench.harness import Contender, Options, Role, Row, race, records_of
from coreset.bench.processes import pool_of
from coreset.engine.data.order import BatchOrder
from coreset.engine.models.feature_rows import UnitRows
from coreset.engine.runtime.device import give_back_memory
from coreset.engine.scoring.feature_proxies import concept_proxy
from coreset.engine.scoring.proxy import Proxy
from coreset.engine.training.trainer import Trainer, adam
from coreset.kernels.concepts import ConceptLayer
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.logits import per_sample_stats
from coreset.kernels.measures import spearman

Part: TypeAlias = Literal["epoch", "step", "memory"]
PARTS: tuple[Part, ...] = get_args(Part)
CPU = torch.device("cpu")
WIDTH, CLASSES, CONCEPTS, BATCH, LR, SEED = 512, 100, 500, 512, 1e-3, 0
EPOCHS = 2
PEER, DIRECT, FOLDED, ALL = (
    "DataLoader, nn.Linear, Adam", "direct", "folded", "direct, all scores of a scoring"
)  # fmt: skip
GOALS = {DIRECT: 3.0, FOLDED: 1.8}
"""Times the speed of the peer."""
LOSS_TOLERANCE, LEAST_SPEARMAN = 1e-3, 0.9999
IMAGENET = 1_281_167, 1000, 5000
"""Images, classes, concepts."""
STEPS = 3

Trained: TypeAlias = tuple[NDArray[np.floating], float]
"""Margin of every image, mean over the epochs, and the last loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptBench(Options):
    """Measure the concept layer."""

    part: tuple[Part, ...] = PARTS
    """Parts to measure."""
    samples: int = 100_000
    """Images of the parts epoch and memory."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        torch.set_num_threads(self.threads)
        parts = {"epoch": self._epoch, "step": self._step, "memory": self._memory}
        self.record_parts("concepts", {part: parts[part] for part in self.part})

    def _epoch(self) -> Iterator[Row]:
        features, labels, concepts = planted(self.samples, CONCEPTS)
        direct, folded = (
            made_proxy(features, labels, concepts, folded=folded) for folded in (False, True)
        )
        similarities = torch.cat([inputs for inputs, _, _ in direct.originals()])
        peer = partial(train_by_loader, similarities, torch.from_numpy(labels))
        n, expected = len(labels), list[Trained]()
        entries = [
            self._contender(PEER, peer, expected, role="peer"),
            self._contender(DIRECT, partial(train, direct, n), expected),
            self._contender(FOLDED, partial(train, folded, n), expected),
            self._contender(ALL, partial(train_with_all_scores, direct, n), expected),
        ]
        shape = {"samples": n, "width": WIDTH, "classes": CLASSES, "concepts": CONCEPTS}
        rows = race(entries, repeats=self.repeats, work=self.work, images=EPOCHS * n)
        yield from (shape | {"epochs": EPOCHS, "goal": GOALS.get(r["contender"])} | r for r in rows)

    @staticmethod
    def _contender(
        name: str, run: Callable[[], Trained], expected: list[Trained], role: Role = "ours"
    ) -> Contender:
        """Race from the same start; who comes first is what the others must agree with."""
        found = list[Trained]()

        def check(_out: Path) -> str:
            if name == PEER:
                expected[:] = found
            (aum, loss), (peers_aum, peers_loss) = found[0], expected[0]
            agreement = spearman(aum, peers_aum)
            if abs(loss / peers_loss - 1) > LOSS_TOLERANCE or agreement < LEAST_SPEARMAN:
                return f"last loss {loss:.5f}, peer's {peers_loss:.5f}; Spearman {agreement:.6f}"
            return ""

        return Contender(name=name, run=lambda _: found.__setitem__(slice(None), [run()]),
                         role=role, check=check)  # fmt: skip

    def _step(self) -> Iterator[Row]:
        _, n_classes, n_concepts = IMAGENET
        rng = np.random.default_rng(SEED)
        concepts = _unit(rng.normal(size=(n_concepts, WIDTH)))
        rows = torch.from_numpy(_unit(rng.normal(size=(BATCH, WIDTH))))
        labels = torch.from_numpy(rng.integers(n_classes, size=BATCH))
        mean, scale = np.zeros(n_concepts), np.full(n_concepts, 20.0)
        direct, folded = (
            ConceptLayer(n_classes, concepts, mean, scale, folded=folded)
            for folded in (False, True)
        )
        stored = direct.standardised(rows)
        ways: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
            "folded": (folded, lambda: rows),
            "direct, similarities stored": (direct, lambda: stored),
            "direct, similarities made": (direct, lambda: direct.standardised(rows)),
        }
        entries = [
            Contender(name=name, run=partial(steps, *way, labels), role="ours")
            for name, way in ways.items()
        ]
        found = race(entries, repeats=self.repeats, work=self.work)
        yield from (row | arithmetic(row["contender"]) for row in found)

    def _memory(self) -> Iterator[Row]:
        """Train in a process of its own, of which the kernel knows the largest memory."""
        with pool_of() as pool:
            for n_concepts in (CONCEPTS, 2 * CONCEPTS):
                yield pool.submit(peak_above_features, self.samples, n_concepts).result()


def planted(n: int, n_concepts: int) -> tuple[Any, NDArray[np.int64], NDArray[np.float32]]:
    """Draw features around the centres of classes, float16, labels, and concepts at random."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(CLASSES, size=n)
    centres = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32) / 4
    features = rng.standard_normal((n, WIDTH), np.float32)
    features += centres[labels]
    return features.astype(np.float16), labels, _unit(rng.normal(size=(n_concepts, WIDTH)))


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made_proxy(features: Any, labels: Any, concepts: Any, *, folded: bool) -> Proxy:  # noqa: ANN401 - arrays
    """Build the proxy of `coreset score`."""
    return concept_proxy(
        UnitRows(features, CPU), labels, CLASSES, embeddings=concepts, scaled=True, batch=BATCH,
        seed=SEED, device=CPU, folded=folded,
    )  # fmt: skip


def _restarted(proxy: Proxy) -> Trainer:
    layer: Any = proxy.network
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return Trainer(layer, adam(layer, lr=LR, weight_decay=0), lambda _: LR, CPU)


def train(proxy: Proxy, n: int) -> Trained:
    """Train as `coreset score` does, and keep the margins alone."""
    trainer, margins, loss = _restarted(proxy), torch.zeros(n), torch.zeros(())
    for epoch in range(EPOCHS):
        for inputs, labels, ids in proxy.examples(epoch, 0):
            logits = trainer.step(inputs, lambda out, labels=labels: cross_entropy(out, labels))
            stats = per_sample_stats(logits, labels)
            margins[ids] += stats.probability_margin
            loss = stats.loss.mean()
    return margins.numpy() / EPOCHS, float(loss)


def train_with_all_scores(proxy: Proxy, n: int) -> Trained:
    """Train as `coreset score` does, with everything that it keeps."""
    trainer, loss = _restarted(proxy), torch.zeros(())
    scores = Dynamics(n, CPU, el2n_epochs=EPOCHS, window=EPOCHS)
    for epoch in range(EPOCHS):
        scores.begin_epoch(epoch)
        for inputs, labels, ids in proxy.examples(epoch, 0):
            logits = trainer.step(inputs, lambda out, labels=labels: cross_entropy(out, labels))
            loss = scores.update(logits, labels, ids).loss.mean()
        scores.end_epoch(epoch)
    return scores.scores()["aum"], float(loss)


def train_by_loader(similarities: Tensor, labels: Tensor) -> Trained:
    """Train by torch's loader, layer and optimiser as their manuals do."""
    from torch.utils.data import DataLoader, TensorDataset

    n = len(labels)
    layer, margins, loss = (
        nn.Linear(similarities.shape[1], CLASSES),
        torch.zeros(n),
        torch.zeros(()),
    )
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimiser = torch.optim.Adam(layer.parameters(), lr=LR)
    dataset = TensorDataset(similarities, labels, torch.arange(n))
    for epoch in range(EPOCHS):
        order = BatchOrder(batch=n, epoch=epoch, seed=SEED, shuffle=True)
        (ids,) = order.batches(n)
        for inputs, labels_b, ids_b in DataLoader(dataset, batch_size=BATCH, sampler=ids.tolist()):
            logits = layer(inputs)
            loss = cross_entropy(logits, labels_b)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            margins[ids_b] += _margins(logits.detach(), labels_b)
    return margins.numpy() / EPOCHS, loss.item()


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    shares, rows = logits.softmax(dim=1), torch.arange(len(labels))
    own = shares[rows, labels]
    shares[rows, labels] = 0
    return own - shares.amax(dim=1)


def steps(layer: nn.Module, inputs: Callable[[], Tensor], labels: Tensor, _out: Path) -> None:
    """Run some steps without the optimiser, which is the same for all."""
    for _ in range(STEPS):
        cross_entropy(layer(inputs()), labels).backward()
        layer.zero_grad()


def arithmetic(way: str) -> Row:
    """Count multiplications and additions of a step, and bytes of what is stored for ImageNet."""
    n, c, k = IMAGENET
    stored = 4 * n * (k if "stored" in way else WIDTH)
    count = 4 * c * WIDTH * (k + BATCH) if way == FOLDED else 4 * BATCH * k * c
    count += 2 * BATCH * k * WIDTH if "made" in way else 0
    return {"gflop": round(count / 1e9, 1), "stored_gb": round(stored / 1e9, 1), "steps": STEPS}


def peak_above_features(n: int, n_concepts: int) -> Row:
    """Train an epoch of the folded layer; return the largest memory above that with features."""
    torch.set_num_threads(1)
    features, labels, concepts = planted(n, n_concepts)
    train(made_proxy(features[:BATCH], labels[:BATCH], concepts, folded=True), BATCH)  # imports
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    before = _status("VmRSS")
    train(made_proxy(features, labels, concepts, folded=True), n)
    peak, resident = _status("VmHWM") - before, 4 * n * WIDTH
    return {
        "contender": FOLDED, "samples": n, "concepts": n_concepts,
        "features_mb": round(resident / 1e6), "above_mb": round((peak - resident) / 1e6),
    }  # fmt: skip


def _status(name: str) -> int:
    """Read bytes from what the kernel tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def _over_peer(row: Row) -> str:
    goal = "" if row["goal"] is None else f" (goal {row['goal']:g})"
    return ratio(row["speed_over"].get(PEER)) + goal


def _first(part: str) -> Row:
    return records_of(part)[0]


BLOCKS: Mapping[str, Block] = {
    "concepts_machine": lambda: machine(_first("concepts.epoch")),
    "concepts_epoch": Table(
        "concepts.epoch",
        {
            "way": contender,
            "s an epoch": lambda row: f"{row['median_seconds'] / row['epochs']:.2f}",
            "fastest to slowest": lambda row: (
                f"{row['min_seconds'] / row['epochs']:.2f} to "
                f"{row['max_seconds'] / row['epochs']:.2f}"
            ),
            "speed over the peer": _over_peer,
        },
    ),
    "concepts_step": Table(
        "concepts.step",
        {
            "form": contender,
            "ms a step": lambda row: f"{1000 * row['median_seconds'] / row['steps']:.0f}",
            "GFLOP a step": "{gflop}",
            "stored, GB": "{stored_gb}",
        },
    ),
    "concepts_memory": Table(
        "concepts.memory",
        {
            "images": lambda row: f"{row['samples']:,}",
            "concepts": "{concepts:,}",
            "features, MB": "{features_mb}",
            "above them, MB": "{above_mb}",
        },
    ),
}

if __name__ == "__main__":
    tyro.cli(ConceptBench).run()
