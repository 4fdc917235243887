"""Scores as finders of labels that were flipped on purpose, and the worth of cheaper recipes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Row
from coreset.bench.score_training import Setting, coreset
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.comparison import cost_of
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.scoring.score_table import ScoreTable, flipped_labels
from coreset.kernels.scores import easiness

AUM_GOALS = {5: 0.99, 25: 0.95, 50: 0.84}
"""Least area under the ROC of the linear proxy's AUM, median of the seeds, by percent of noise."""
BACKBONE = "tf_efficientnet_lite0"
SEEDS = (0, 1, 2)
RECIPES_AT = 25
"""Percent of noise at which recipes are compared."""
CONVOLUTIONAL = ("--size", 64, "--epochs", 6)
FAST_BATCH = 256


@dataclass(frozen=True, slots=True)
class Noisy:
    """ImageNette with fastai's noisy labels, and its scores, each made once."""

    setting: Setting

    @property
    def truth(self) -> Path:
        """Table with a column per percent of noise."""
        return self.setting.data / "labels" / "noisy_imagenette.csv"

    def data(self, percent: int) -> Path:
        """Pack the data set unless it exists."""
        path = self.setting.work / f"noisy-{percent}"
        column = f"noisy_labels_{percent}"
        train = self.setting.data / "imagenette" / "train"
        coreset("pack", train, path, "--labels", self.truth, "--column", column)
        return path

    def scores(self, percent: int, name: str, *options: object, seed: int = 0) -> Path:
        """Score the data set unless the scores exist."""
        path = self.setting.work / f"noisy-{percent}-{name}-{seed}"
        data = self.data(percent)
        coreset("score", data, path, *options, "--seed", seed, "--device", "cpu")
        return path

    def linear(self, percent: int, seed: int) -> Path:
        """Score with the linear proxy by its recipe."""
        options = ("--proxy", "linear", "--backbone", BACKBONE)
        return self.scores(percent, "linear", *options, seed=seed)

    def convolutional(self, percent: int, seed: int = 0) -> Path:
        """Score by the full recipe, shortened."""
        return self.scores(percent, "convolutional", *CONVOLUTIONAL, seed=seed)

    def areas(self, path: Path) -> dict[str, float]:
        """Return the area under the ROC of each score's hard end for flipped labels."""
        scored = ScoreTable.open(path)
        flipped = flipped_labels(scored.dataset, self.truth, "noisy_labels_0")
        columns = {name: scored.values(name) for name in scored.names}
        return areas_of(columns, flipped, scored.ids)


def areas_of(
    columns: dict[str, NDArray[np.float32]], flipped: NDArray[np.bool_], ids: NDArray[np.int64]
) -> dict[str, float]:
    """Return the area under the ROC of each score's hard end, over the samples ``ids`` alone."""
    from sklearn.metrics import roc_auc_score

    return {
        name: float(roc_auc_score(flipped[ids], -easiness(name, values[ids])))
        for name, values in columns.items()
    }


def noise(setting: Setting) -> Iterator[Row]:
    """Yield areas of every score by noise and proxy; of the linear proxy by seed and as median."""
    noisy = Noisy(setting)
    for percent, goal in AUM_GOALS.items():
        runs = [_area_row(noisy, percent, noisy.linear(percent, seed), seed) for seed in SEEDS]
        yield from runs
        yield medians(percent, runs, goal)
        yield _area_row(noisy, percent, noisy.convolutional(percent), 0)


def _area_row(noisy: Noisy, percent: int, path: Path, seed: int) -> Row:
    config, scored = Provenance.read(path).config, ScoreTable.open(path)
    cost = cost_of(scored)
    return {
        "percent": percent,
        "seed": seed,
        "images": len(scored.dataset),
        **{name: config[name] for name in ("recipe", "proxy", "epochs", "size", "lr", "batch")},
        "wall_seconds": cost.wall_seconds,
        "areas": noisy.areas(path),
    }


def medians(percent: int, runs: Sequence[Row], goal: float) -> Row:
    """Return the median over seeds of every score's area, beside AUM's goal."""
    areas = {name: median(run["areas"][name] for run in runs) for name in runs[0]["areas"]}
    about = {name: runs[0][name] for name in ("recipe", "proxy", "epochs", "size", "images")}
    seeds = [run["seed"] for run in runs]
    met = areas["aum"] >= goal
    return {"percent": percent, "seeds": seeds, **about, "areas": areas, "goal": goal, "met": met}


def recipes(setting: Setting) -> Iterator[Row]:
    """Compare full scores with those of another seed, the fast recipe and the linear proxy."""
    noisy = Noisy(setting)
    full = noisy.convolutional(RECIPES_AT)
    fast = RECIPES["fast"]
    lr = fast.lr * FAST_BATCH / fast.batch  # 9,469 images are only nine batches of 1024
    shortened = ("--recipe", "fast", *CONVOLUTIONAL, "--start-size", 48)
    scaled = ("--batch", FAST_BATCH, "--lr", lr)
    others = {
        "full, another seed": noisy.convolutional(RECIPES_AT, seed=1),
        "fast": noisy.scores(RECIPES_AT, "fast", *shortened, *scaled),
        "linear": noisy.linear(RECIPES_AT, 0),
    }
    truth = ("--truth", noisy.truth, "--column", "noisy_labels_0")
    for name, other in others.items():
        compared = coreset("scores", "compare", full, other, *truth)
        yield {"name": name, "percent": RECIPES_AT, **without_paths(compared)}


def without_paths(compared: dict[str, Any]) -> Row:
    """Return the data of ``coreset scores compare`` without the paths of the scores."""
    kept = {name: compared[name] for name in ("images", "flipped", "agreement", "coresets")}
    costs = [
        {name: value for name, value in cost.items() if name != "path"}
        for cost in compared["costs"]
    ]
    return kept | {"costs": costs}
