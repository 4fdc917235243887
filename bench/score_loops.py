"""``coreset score`` beside the usual loop: images/s, and whether both find the same images hard."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from coreset.bench.harness import Contender, Row, rows_of_all
from coreset.bench.inputs import balanced_copy
from coreset.bench.score_training import Setting, Training, coreset, training
from coreset.bench.score_usual import Remote, Usual, opened
from coreset.engine.models.features import FeatureSpec
from coreset.engine.runtime.device import resolve_device
from coreset.engine.scoring.proxy import training_images
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.measures import spearman
from coreset.shards.format.dataset import Dataset

USUAL, OURS, FROM_MEMORY = "usual loop", "ours, decoding included", "ours, decoded before"
SPEED_GOAL = 2.5
SPEED_SIZE, SCORE_SIZE = 128, 64
SCORE_BATCH = 64
SEEDS = (0, 1)
"""What says which images are hard: by margin of logits, which is what the package aum averages."""
SCORE = "aum_logit"


def usual_loop(setting: Setting) -> Iterator[Row]:
    """Compare rates at 128 px, then rank correlations of short trainings at 64 px."""
    with tempfile.TemporaryDirectory(prefix="usual-", dir=setting.work) as folder:
        yield from _speeds(setting, Path(folder))
    with tempfile.TemporaryDirectory(prefix="usual-", dir=setting.work) as folder:
        yield _agreement(setting, Path(folder))


def _speeds(setting: Setting, work: Path) -> Iterator[Row]:
    folder, recipe = work / "images", RECIPES["full"]
    images = balanced_copy(setting.data / "imagenette" / "train", folder, setting.loop_images)
    coreset("pack", folder, work / "data")
    dataset = Dataset.open(work / "data")
    task = Usual(
        folder=folder,
        scratch=work,
        size=SPEED_SIZE,
        epochs=recipe.epochs,
        batch=recipe.batch,
        lr=recipe.lr,
        seed=0,
        workers=setting.threads,
    )
    decoded = ours(dataset)
    with opened(task, setting.threads) as usual:
        runs: dict[str, Callable[[Path], object]] = {
            USUAL: lambda _: usual.epoch(),
            OURS: lambda _: ours(dataset).epoch(),
            FROM_MEMORY: lambda _: decoded.epoch(),
        }
        turns = work / "turns"
        turns.mkdir()
        rows = rows_of_all(
            [
                Contender(name=name, run=run, role="peer" if name == USUAL else "ours")
                for name, run in runs.items()
            ],
            repeats=setting.repeats,
            work=turns,
            images=images,
            source_bytes=int(dataset.ints("bytes").sum()),
        )
    about = {"size": SPEED_SIZE, "batch": recipe.batch, "threads": setting.threads}
    yield from ({"what": "speed", **about, **row, "goal": SPEED_GOAL} for row in rows)


def ours(dataset: Dataset) -> Training:
    """Decode a packed data set and make a network, which takes milliseconds, to train on it."""
    images = training_images(dataset, SPEED_SIZE, resolve_device("cpu"), FeatureSpec(backbone=""))
    lr = RECIPES["full"].lr
    return training(images, len(dataset), len(dataset.classes), size=SPEED_SIZE, lr=lr)


def _agreement(setting: Setting, work: Path) -> Row:
    folder, recipe = work / "images", RECIPES["full"]
    images = balanced_copy(setting.data / "imagenette" / "train", folder, setting.score_images)
    coreset("pack", folder, work / "data")
    # The rate goes with the batch, which is small so that a short training has enough steps.
    lr = recipe.lr * SCORE_BATCH / recipe.batch
    scores: dict[tuple[str, int], Mapping[str, float]] = {}
    for seed in SEEDS:
        task = Usual(
            folder=folder,
            scratch=work,
            size=SCORE_SIZE,
            epochs=setting.score_epochs,
            batch=SCORE_BATCH,
            lr=lr,
            seed=seed,
            workers=setting.threads,
        )
        with opened(task, setting.threads) as usual:
            scores["usual loop", seed] = _trained(usual, setting.score_epochs)
        out = work / f"scores-{seed}"
        coreset(
            "score", work / "data", out, "--size", SCORE_SIZE, "--epochs", setting.score_epochs,
            "--batch", SCORE_BATCH, "--lr", lr, "--seed", seed, "--no-final", "--device", "cpu",
        )  # fmt: skip
        scores["ours", seed] = _ours_by_key(out)
    about = {"size": SCORE_SIZE, "epochs": setting.score_epochs, "batch": SCORE_BATCH, "lr": lr}
    return {"what": "agreement", "score": SCORE, "images": images, **about, **agreement_of(scores)}


def agreement_of(scores: Mapping[tuple[str, int], Mapping[str, float]]) -> Row:
    """Correlate every pair of (loop, seed); test whether two loops agree like two seeds.

    The goal is met if the mean over pairs of different loops is at least the smaller of the two
    correlations between the seeds of one loop.
    """
    pairs: list[Row] = []
    for first, second in combinations(scores, 2):
        names = sorted(scores[first])
        a, b = (np.array([scores[run][name] for name in names]) for run in (first, second))
        kind = "between loops" if first[0] != second[0] else f"seeds of {first[0]}"
        pairs.append({"kind": kind, "one": first, "other": second, "spearman": spearman(a, b)})
    means = {
        kind: float(np.mean([pair["spearman"] for pair in pairs if pair["kind"] == kind]))
        for kind in dict.fromkeys(pair["kind"] for pair in pairs)
    }
    within = [mean for kind, mean in means.items() if kind != "between loops"]
    return {"pairs": pairs, "means": means, "met": means["between loops"] >= min(within)}


def _trained(usual: Remote, epochs: int) -> dict[str, float]:
    for _ in range(epochs):
        usual.epoch()
    return usual.aum()


def _ours_by_key(path: Path) -> dict[str, float]:
    scored = ScoreTable.open(path)
    return dict(zip(scored.dataset.keys, scored.values(SCORE).tolist(), strict=True))
