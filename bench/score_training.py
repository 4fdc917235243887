"""Training as ``coreset score`` does it, for benchmarks that run it epoch by epoch."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.bench.harness import ROOT
from coreset.bench.processes import CORESET
from coreset.engine.data.geometry import stored_side
from coreset.engine.data.images import DecodedImages
from coreset.engine.data.stream import ImageStream
from coreset.engine.runtime.device import generator_for, resolve_device
from coreset.engine.scoring.proxy import Proxy, convolutional_proxy
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.dynamics import Dynamics

Example: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Network inputs, labels, ids."""
CLASSES = 1000
RANDOM_LR = 0.01
"""A rate that random labels survive; it changes no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes and places."""

    data: Path = Path("../shared/data")
    """Folder of the images and labels."""
    work: Path = ROOT / "runs" / "score"
    """Where artifacts are made and kept."""
    repeats: int = 5
    """Timed rounds, after one that warms up."""
    steps: int = 4
    """Training steps of a turn of ``pipeline``."""
    sizes: tuple[int, ...] = (96, 128, 160)
    """Sides in pixels of the crops of ``pipeline``."""
    loop_images: int = 100
    """Images per class of a turn of ``usual-loop``, ``waiting`` and ``busy``."""
    score_images: int = 200
    """Images per class whose scores ``usual-loop`` compares."""
    score_epochs: int = 8
    """Epochs of those."""
    threads: int = 2
    """Cores, and workers of the usual loop."""


@dataclass(slots=True)
class Training:
    """ResNet-18 by the full recipe, with all scores accumulated."""

    proxy: Proxy
    trainer: Trainer
    dynamics: Dynamics
    epochs: int = 0

    def epoch(self) -> None:
        """Train on every image once."""
        self.dynamics.begin_epoch(self.epochs)
        self.train(self.proxy.examples(self.epochs))
        self.dynamics.end_epoch(self.epochs)
        self.epochs += 1

    def train(self, examples: Iterable[Example]) -> None:
        """Update and accumulate, as ``coreset.engine.scoring.run`` does per batch."""
        for inputs, labels, ids in examples:
            self.dynamics.update(self.step(inputs, labels), labels, ids)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Update the weights; return the logits before."""
        return self.trainer.step(inputs, partial(cross_entropy, target=labels))


def training(
    images: DecodedImages | ImageStream,
    n_images: int,
    n_classes: int,
    *,
    size: int,
    batch: int = 0,
    lr: float = RANDOM_LR,
) -> Training:
    """Make a training on images from which crops of ``size`` pixels are taken; batch 0: usual."""
    recipe, device = RECIPES["full"], resolve_device("cpu")
    proxy = convolutional_proxy(
        images,
        n_classes,
        size=size,
        crop_scale=recipe.crop_scale,
        batch=batch or recipe.batch,
        seed=0,
        device=device,
    )
    optimiser = sgd(proxy.network, lr=lr, weight_decay=recipe.weight_decay)
    trainer = Trainer(proxy.network, optimiser, lambda _: lr, device)
    return Training(proxy, trainer, Dynamics(n_images, device))


def random_images(n: int, size: int) -> DecodedImages:
    """Make squares of random pixels, from which crops of ``size`` pixels are taken."""
    side, draws = stored_side(size), generator_for(0)
    levels = torch.randint(256, (n, side, side, 3), dtype=torch.uint8, generator=draws)
    return DecodedImages(levels.permute(0, 3, 1, 2), np.arange(n) % CLASSES, np.arange(n))


def coreset(*words: object) -> dict[str, Any]:
    """Run a ``coreset`` command; return the data that it ends with."""
    print("$ coreset", *words, flush=True)
    command = [*CORESET, *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return last_json(done.stdout.splitlines())


def last_json(lines: Iterable[str]) -> dict[str, Any]:
    """Parse the last JSON line."""
    return json.loads([line for line in lines if line.startswith("{")][-1])
