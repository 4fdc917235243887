"""Whether scores find labels that were flipped on purpose, and what cheaper recipes keep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.bench.score_parts import Row, Setting, coreset
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
    """ImageNette with fastai's noisy labels, and the scores of it that are made once."""

    setting: Setting

    @property
    def truth(self) -> Path:
        """Table with a column per share of noise."""
        return self.setting.data / "labels" / "noisy_imagenette.csv"

    def data(self, percent: int) -> Path:
        """The data set, packed unless it is there."""
        path = self.setting.work / f"noisy-{percent}"
        column = f"noisy_labels_{percent}"
        train = self.setting.data / "imagenette" / "train"
        coreset("pack", train, path, "--labels", self.truth, "--column", column)
        return path

    def scores(self, percent: int, name: str, *options: object, seed: int = 0) -> Path:
        """Scores of the data set, made unless they are there."""
        path = self.setting.work / f"noisy-{percent}-{name}-{seed}"
        data = self.data(percent)
        coreset("score", data, path, *options, "--seed", seed, "--device", "cpu")
        return path

    def linear(self, percent: int, seed: int) -> Path:
        """Scores by the linear proxy as its recipe says."""
        options = ("--proxy", "linear", "--backbone", BACKBONE)
        return self.scores(percent, "linear", *options, seed=seed)

    def convolutional(self, percent: int, seed: int = 0) -> Path:
        """Scores by the full recipe, shortened."""
        return self.scores(percent, "convolutional", *CONVOLUTIONAL, seed=seed)

    def areas(self, path: Path) -> dict[str, float]:
        """Area under the ROC of each score's hard end against "this label was flipped"."""
        scored = ScoreTable.open(path)
        flipped = flipped_labels(scored.dataset, self.truth, "noisy_labels_0")
        columns = {name: scored.values(name) for name in scored.names}
        return areas_of(columns, flipped, scored.ids)


def areas_of(
    columns: dict[str, NDArray[np.float32]], flipped: NDArray[np.bool_], ids: NDArray[np.int64]
) -> dict[str, float]:
    """Area under the ROC of each score's hard end, over the samples ``ids`` alone."""
    from sklearn.metrics import roc_auc_score

    return {
        name: float(roc_auc_score(flipped[ids], -easiness(name, values[ids])))
        for name, values in columns.items()
    }


def noise(setting: Setting) -> Iterator[Row]:
    """Areas of every score by noise and proxy; of the linear proxy by seed, and their medians."""
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
    """The median over the runs' seeds of every score's area, beside AUM's goal."""
    areas = {name: median(one["areas"][name] for one in runs) for name in runs[0]["areas"]}
    about = {name: runs[0][name] for name in ("recipe", "proxy", "epochs", "size", "images")}
    seeds = [one["seed"] for one in runs]
    met = areas["aum"] >= goal
    return {"percent": percent, "seeds": seeds, **about, "areas": areas, "goal": goal, "met": met}


def recipes(setting: Setting) -> Iterator[Row]:
    """Full scores beside those of another seed, of the fast recipe and of the linear proxy."""
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
        facts = coreset("scores", "compare", full, other, *truth)
        yield {"name": name, "percent": RECIPES_AT, **without_places(facts)}


def without_places(facts: dict[str, Any]) -> Row:
    """What ``coreset scores compare`` says, but for where the scores lie."""
    left = {name: facts[name] for name in ("images", "flipped", "agreement", "coresets")}
    costs = [
        {name: value for name, value in one.items() if name != "path"} for one in facts["costs"]
    ]
    return left | {"costs": costs}
