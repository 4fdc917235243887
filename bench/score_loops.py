"""``coreset score`` beside the usual loop: images/s, and whether both find the same images hard."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from torch.nn.functional import cross_entropy

from coreset.bench.contenders import Contender, interleave, measurements
from coreset.bench.score_parts import Row, Setting, coreset
from coreset.bench.score_usual import Remote, Usual, opened
from coreset.engine.runtime.device import resolve_device
from coreset.engine.scoring.proxy import convolutional_proxy, training_images
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.rank_correlation import spearman
from coreset.shards.format.dataset import Dataset

USUAL, OURS, FROM_MEMORY = "usual loop", "ours, decoding included", "ours, decoded before"
SPEED_GOAL = 2.5
SPEED_SIZE, SCORE_SIZE = 128, 64
SCORE_BATCH = 64
SEEDS = (0, 1)
"""What says which images are hard: by margin of logits, which is what the package aum averages."""
SCORE = "aum_logit"


def usual_loop(setting: Setting) -> Iterator[Row]:
    """Rates at 128 px side by side; then rank correlations of short trainings at 64 px."""
    with tempfile.TemporaryDirectory(prefix="usual-", dir=setting.work) as folder:
        yield from _speeds(setting, Path(folder))
    with tempfile.TemporaryDirectory(prefix="usual-", dir=setting.work) as folder:
        yield _agreement(setting, Path(folder))


def balanced_copy(source: Path, target: Path, per_class: int) -> int:
    """Copy the first images of every class folder; how many there are.

    Raises:
        ValueError: A class has fewer.
    """
    for classed in sorted(one for one in source.iterdir() if one.is_dir()):
        images = sorted(classed.iterdir())
        if len(images) < per_class:
            raise ValueError(
                f"{classed} has {len(images)} images, wanted {per_class}; ask for less"
            )
        (target / classed.name).mkdir(parents=True)
        for image in images[:per_class]:
            shutil.copyfile(image, target / classed.name / image.name)
    return sum(1 for _ in target.glob("*/*"))


def _speeds(setting: Setting, work: Path) -> Iterator[Row]:
    folder, recipe = work / "images", RECIPES["full"]
    images = balanced_copy(setting.data / "imagenette" / "train", folder, setting.loop_images)
    coreset("pack", folder, work / "data")
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
    with opened(task, setting.threads) as usual:
        ours = Ours(work / "data")
        contenders = [
            Contender(name=USUAL, run=lambda _: usual.epoch()),
            Contender(name=OURS, run=lambda _: ours.epoch(decode=True), role="ours"),
            Contender(name=FROM_MEMORY, run=lambda _: ours.epoch(decode=False), role="ours"),
        ]
        turns = work / "turns"
        turns.mkdir()
        measured = interleave(contenders, repeats=setting.repeats, work=turns)
    source_bytes = int(Dataset.open(work / "data").ints("bytes").sum())
    facts = {"size": SPEED_SIZE, "batch": recipe.batch, "threads": setting.threads}
    for row in measurements(measured, images=images, source_bytes=source_bytes):
        yield {"what": "speed", **facts, **row, "goal": SPEED_GOAL}


class Ours:
    """The full recipe on a packed data set, epoch by epoch, without its commits."""

    def __init__(self, data: Path) -> None:
        self._dataset = Dataset.open(data)
        self._device = resolve_device("cpu")
        self._recipe = RECIPES["full"].changed({"size": SPEED_SIZE})
        self._dynamics = Dynamics(len(self._dataset), self._device)
        self._epoch = 0
        self._load()

    def epoch(self, *, decode: bool) -> None:
        """Train on every image once and accumulate all scores; ``decode``: the files first.

        A new network comes with the decoding, which costs milliseconds.
        """
        if decode:
            self._load()
        self._dynamics.begin_epoch(self._epoch)
        for inputs, labels, ids in self._proxy.examples(self._epoch):
            logits = self._trainer.step(inputs, lambda logits, to=labels: cross_entropy(logits, to))
            self._dynamics.update(logits, labels, ids)
        self._dynamics.end_epoch(self._epoch)
        self._epoch += 1

    def _load(self) -> None:
        recipe = self._recipe
        pixels = training_images(
            self._dataset, recipe.size, self._device, decoder="auto", exact=False, workers=0
        )
        self._proxy = convolutional_proxy(
            pixels,
            len(self._dataset.classes),
            size=recipe.size,
            crop_scale=recipe.crop_scale,
            batch=recipe.batch,
            seed=0,
            device=self._device,
        )
        network = self._proxy.network
        optimiser = sgd(network, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self._trainer = Trainer(network, optimiser, lambda _: recipe.lr, self._device)


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
    facts = {"size": SCORE_SIZE, "epochs": setting.score_epochs, "batch": SCORE_BATCH, "lr": lr}
    return {"what": "agreement", "score": SCORE, "images": images, **facts, **agreement_of(scores)}


def agreement_of(scores: Mapping[tuple[str, int], Mapping[str, float]]) -> Row:
    """Spearman of every pair of (loop, seed), and whether two loops agree like two seeds.

    The goal is met if the mean over pairs of different loops is at least the smaller of the two
    correlations between the seeds of one loop.
    """
    pairs: list[Row] = []
    for one, other in combinations(scores, 2):
        names = sorted(scores[one])
        a, b = (np.array([scores[which][name] for name in names]) for which in (one, other))
        kind = "between loops" if one[0] != other[0] else f"seeds of {one[0]}"
        pairs.append({"kind": kind, "one": one, "other": other, "spearman": spearman(a, b)})
    means = {
        kind: float(np.mean([one["spearman"] for one in pairs if one["kind"] == kind]))
        for kind in dict.fromkeys(one["kind"] for one in pairs)
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
