"""How well scores by visual prototypes find wrong labels, beside a linear head and no training.

    python -m coreset.bench.concept_flips [--part flips encoders] [--images 100 --dry]

ImageNette with fastai's noisy labels: visual prototypes of each given class, three seeds of
clusters and trainings, and beside them the linear proxy and the scores without training. Areas are
those under the ROC of the hard end for flipped labels; accuracy is that of the trained proxy's
predictions for the true labels. The backbone was trained on the true labels of most of these
photographs. The part ``encoders`` has a row for every frozen encoder whose weights are given
(``--clip FILE``: OpenAI's ViT-B/32, and with it the bank of texts).

Keeps artifacts in the folder of the work, times nothing, and writes
``bench/results/concept_flips.jsonl``.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.bench.docs import Block, machine, markdown
from coreset.bench.harness import ROOT, Options, Row, records_of
from coreset.bench.processes import run_coreset
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.measures import spearman
from coreset.kernels.scores import easiness
from coreset.shards.format.dataset import Dataset
from coreset.shards.packing.plan import read_labels
from coreset.shards.sources.detect import find_packed

BACKBONE, PERCENTS, SEEDS, KS = "tf_efficientnet_lite0", (5, 25, 50), (0, 1, 2), (5, 10, 20)
SCORES = ("aum", "el2n", "loss_final")
FLOOR = ("mean_margin", "knn_disagreement")
GOALS: Mapping[int, float] = {5: 0.99, 25: 0.98, 50: 0.95}
"""Least area of aum by prototypes, 5 a class, by percent of flips."""
GOAL_K, GOAL_PERCENT, GOAL_ACCURACY = 5, 25, 0.9
CLIP_BACKBONE, NO_CLIP = "clip:ViT-B-32-quickgelu", "not run: no weights of OpenAI's ViT-B/32 here"
MOBILENET, MOBILENET_FILE = "mobilenetv2_100_same", "mobilenetv2_100_same_in1k.safetensors"
Part: TypeAlias = Literal["flips", "encoders"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptFlipsBench(Options):
    """Find flipped labels by scores of visual prototypes."""

    work: Path = ROOT / "runs" / "misratio"
    """Folder of the artifacts, which are kept; the misratio benchmark makes the same packs."""
    part: tuple[Part, ...] = ("flips", "encoders")
    """Parts to measure."""
    clip: Path | None = None
    """File of OpenAI's weights of ViT-B/32 (safetensors), for the part encoders."""
    images: int = 0
    """Images of each class, the first by name, for a trial; 0 is all."""

    def run(self) -> None:
        """Score by every proxy and seed, print and record the results."""
        os.environ["CORESET_CACHE"] = str(self.work.resolve() / "cache")
        parts = {"flips": self._flips, "encoders": self._encoders}
        self.record_parts("concept_flips", {part: parts[part] for part in self.part})

    def _encoders(self) -> Iterator[Row]:
        """Score by prototypes, and without training, of each encoder; and by texts of CLIP."""
        data, texts = self._packed(GOAL_PERCENT), "GPT-3 descriptors"
        truth = self._truth(data)
        mobilenet = self.data.resolve() / "weights" / MOBILENET_FILE
        encoders: dict[str, Path | None] = {BACKBONE: None, MOBILENET: mobilenet}
        for name, weights in (encoders | {CLIP_BACKBONE: self.clip}).items():
            about = {"encoder": name, "percent": GOAL_PERCENT, "images": len(truth)}
            if weights is None and name == CLIP_BACKBONE:
                yield about | {"bank": texts, "absent": NO_CLIP}
                continue
            given = ("--weights", weights.resolve()) if weights else ()
            banks: dict[str, tuple[object, ...]] = {
                f"{GOAL_K} prototypes a class": ("visual", data)
            }
            if name == CLIP_BACKBONE:
                file = self.data.resolve() / "concepts" / "gpt3_descriptors_imagenet.json"
                banks[texts] = "import", file, data
            short = name.replace(":", "-")
            floor = ("neighbours", "--backbone", name, *given)
            untrained = self._scored(data, f"no training {short}", floor, SEEDS[0])
            row = about | measured(untrained, truth, None)
            for number, (bank, words) in enumerate(banks.items()):
                path = data.with_name(f"{data.name}-bank-{short}-{number}")
                run_coreset("concepts", *words, path, "--backbone", name, *given)
                proxy = ("concept", "--concepts", path, *given)
                scored = self._scored(data, f"{short} {number}", proxy, SEEDS[0])
                yield row | measured(scored, truth, None) | {"bank": bank}

    def _flips(self) -> Iterator[Row]:
        for percent in PERCENTS:
            data = self._packed(percent)
            truth = self._truth(data)
            ways: dict[str, Callable[[int], tuple[object, ...]]] = {
                f"prototypes, {k} a class": partial(self._by_prototypes, data, k) for k in KS
            }
            ways["linear head on all features"] = lambda _: ("linear", "--backbone", BACKBONE)
            ways["no training"] = lambda _: ("neighbours", "--backbone", BACKBONE)
            linear: dict[int, NDArray[np.float32]] = {}
            for way, proxy_of in reversed(ways.items()):
                seeds = SEEDS[:1] if way == "no training" else SEEDS
                tables = {seed: self._scored(data, way, proxy_of(seed), seed) for seed in seeds}
                if way.startswith("linear"):
                    linear = {seed: table.values("aum") for seed, table in tables.items()}
                found = [measured(table, truth, linear.get(seed)) for seed, table in tables.items()]
                about = {"percent": percent, "images": len(truth), "way": way, "seeds": len(seeds)}
                yield about | {name: [row[name] for row in found] for name in found[0]}

    def _by_prototypes(self, data: Path, k: int, seed: int) -> tuple[object, ...]:
        bank = data.with_name(f"{data.name}-bank-{k}-{seed}")
        words = ("--backbone", BACKBONE, "--k", k, "--seed", seed)
        run_coreset("concepts", "visual", data, bank, *words)
        return "concept", "--concepts", bank

    @staticmethod
    def _scored(data: Path, way: str, proxy: tuple[object, ...], seed: int) -> ScoreTable:
        name = way.replace(", ", "-").replace(" ", "-")
        scores = data.with_name(f"{data.name}-by-{name}-{seed}")
        seeds = () if proxy[0] == "neighbours" else ("--seed", seed)
        run_coreset("score", data, scores, "--proxy", *proxy, *seeds, "--device", "cpu")
        return ScoreTable.open(scores)

    def _packed(self, percent: int) -> Path:
        folder = self.work.resolve() / f"images-{self.images or 'all'}"
        source, part = self.data.resolve() / "imagenette" / "train", folder / "train"
        if self.images and not part.exists():
            shutil.copytree(source, part, ignore=lambda _, names: sorted(names)[self.images :])
        labels = ("--labels", self._labels, "--column", f"noisy_labels_{percent}")
        data = folder / f"noisy-{percent}"
        run_coreset("pack", part if self.images else source, data, *labels)
        return data

    @property
    def _labels(self) -> Path:
        return self.data.resolve() / "labels" / "noisy_imagenette.csv"

    def _truth(self, data: Path) -> NDArray[np.int64]:
        """Read the true label of each sample, by id."""
        source, dataset = find_packed(data), Dataset.open(data)
        by_key = dict(zip(source.keys, read_labels(self._labels, "noisy_labels_0", source),
                          strict=True))  # fmt: skip
        return np.array([by_key[key] for key in dataset.keys])


def measured(
    table: ScoreTable, truth: NDArray[np.int64], linear: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Measure what a scoring tells of the true labels, and how its aum ranks beside another."""
    from sklearn.metrics import roc_auc_score

    flipped = truth != table.dataset.labels
    row: dict[str, Any] = {
        name: round(float(roc_auc_score(flipped, -easiness(name, table.values(name)))), 5)
        for name in (*SCORES, *FLOOR)
        if name in table.names
    }
    if table.predicted is not None:
        row["right"] = round(float((table.predicted == truth).mean()), 5)
    if linear is not None:
        row["spearman"] = round(spearman(table.values("aum"), linear), 4)
    return row


def _areas() -> str:
    rows = records_of("concept_flips.flips")
    ways = list(dict.fromkeys(row["way"] for row in reversed(rows)))
    by_place = {(row["way"], row["percent"]): row for row in rows}

    def cells(way: str, score: str) -> list[str]:
        return [f"{fmean(by_place[way, percent][score]):.4f}" for percent in PERCENTS]

    lines = [
        [way, f"`{score}`", *cells(way, score)]
        for way in ways
        for score in (*SCORES, *FLOOR)
        if score in by_place[way, PERCENTS[0]]
    ]
    return markdown(["way", "score", *(f"{percent} % flipped" for percent in PERCENTS)], lines)


def _others() -> str:
    rows = [row for row in reversed(records_of("concept_flips.flips")) if "right" in row]
    lines = [
        [
            f"{row['percent']} %",
            row["way"],
            f"{fmean(row['right']):.1%}",
            f"{fmean(row['spearman']):.2f}" if "spearman" in row else "",
        ]
        for row in sorted(rows, key=lambda row: row["percent"])
    ]
    return markdown(
        ["flipped", "way", "true labels predicted", "Spearman with the linear head's `aum`"], lines
    )


def _encoder_table() -> str:
    names = ("aum", "el2n", "loss_final", *FLOOR)
    lines = [
        [
            f"`{row['encoder']}`",
            row["bank"],
            *([row["absent"]] if "absent" in row else [f"{row[name]:.4f}" for name in names]),
        ]
        for row in records_of("concept_flips.encoders")
    ]
    widest = len(names) + 2
    header = ["encoder", "bank", *(f"`{name}`" for name in names)]
    return markdown(header, ([*line, *[""] * (widest - len(line))] for line in lines))


def _verdict() -> str:
    rows = {row["percent"]: row for row in records_of("concept_flips.flips")
            if row["way"].startswith(f"prototypes, {GOAL_K} ")}  # fmt: skip
    met = all(fmean(rows[percent]["aum"]) >= goal for percent, goal in GOALS.items())
    goals = ", ".join(f"{goal} at {percent} %" for percent, goal in GOALS.items())
    right = fmean(rows[GOAL_PERCENT]["right"])
    return (
        f"Goal of `aum` by {GOAL_K} prototypes a class: an area of at least {goals}: "
        f"{'met' if met else 'missed'}. At {GOAL_PERCENT} % flips the layer predicts {right:.1%} "
        f"of the true labels (goal {GOAL_ACCURACY:.0%})."
    )


def _machine() -> str:
    row = records_of("concept_flips.flips")[0]
    return f"{row['images']:,} images, {BACKBONE}; means of {len(SEEDS)} seeds; {machine(row)}."


BLOCKS: Mapping[str, Block] = {
    "concept_areas": _areas,
    "concept_others": _others,
    "concept_encoders": _encoder_table,
    "concept_verdict": _verdict,
    "concept_flips_machine": _machine,
}

if __name__ == "__main__":
    tyro.cli(ConceptFlipsBench).run()
