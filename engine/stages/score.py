"""``coreset score``: train a proxy and gather every training-dynamics score in the same pass."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.artifact import Work, making
from engine.config import (
    DataPath,
    Outcome,
    ScoresPath,
    require_at_least,
    require_between,
    shaping_fields,
)
from engine.generations import Generations
from engine.ledger import stopwatch
from engine.progress import progress
from engine.provenance import Provenance
from engine.store import SCORES_NAME, write_columns
from shards.atomic import json_bytes, write_atomically
from shards.dataset import Dataset
from shards.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch

    from engine.features import FeatureSpec
    from engine.proxy import Proxy
    from engine.training import Trainer
    from kernels.dynamics import Dynamics

COMMIT_EVERY_SECONDS = 30.0
DYNAMICS_NAME, STATE_NAME = "dynamics.safetensors", "state.json"
NOT_SHAPING = ("device", "decoder", "workers", "compile")
LEARNING_RATES = {"resnet18": 0.1, "linear": 0.01}
# From crops of 16 pixels a strided 3 x 3 convolution of ResNet-18 gets a single pixel; oneDNN's
# bfloat16 gradient of that reads memory nobody wrote: garbage, or NaN in one run of three.
SMALLEST_SIZE = {"resnet18": 17, "linear": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Train a proxy on the data set and score every image in the same pass.

    Writes aum (mean probability margin), aum_logit, el2n, forgetting, correctness and visits, one
    row per sample id. Commits at epoch ends, at most every 30 s; after an interruption the same
    command continues from the last commit and ends in the same bytes.
    """

    data: DataPath
    """Packed data set."""
    scores: ScoresPath
    """Directory to make."""
    proxy: Literal["resnet18", "linear"] = "resnet18"
    """resnet18 from scratch (the study's), or a linear classifier on frozen features (faster)."""
    epochs: int = 60
    """Passes over the data; every one counts in the scores."""
    batch: int = 256
    """Images per step."""
    size: int = 224
    """Side in pixels of the training crops (resnet18, at least 17) or of the images that the
    backbone sees (linear)."""
    crop_scale: float = 0.08
    """Smallest share of the area that a random crop keeps (resnet18)."""
    lr: float | None = None
    """Learning rate at the start, falling by a cosine; default 0.1 (resnet18), 0.01 (linear)."""
    min_lr: float = 1e-4
    """Learning rate at the end."""
    weight_decay: float = 1e-4
    """On all parameters."""
    el2n_epochs: int = 10
    """el2n is the mean over this many first epochs."""
    seed: int = 0
    """Start weights, order and crops."""
    backbone: str = "resnet18"
    """Frozen backbone of --proxy linear, as in `coreset embed`."""
    weights: Path | None = None
    """Weights of that backbone, if not on this machine."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: auto is on for a GPU; on a CPU only for trainings of over about 15 minutes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    decoder: Literal["auto", "dali", "turbo"] = "auto"
    """auto: DALI on a GPU, libjpeg-turbo threads on a CPU."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "el2n_epochs"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least(f"size of --proxy {self.proxy}", self.size, SMALLEST_SIZE[self.proxy])
        if not 0.01 <= self.crop_scale <= 1:
            raise UsageError(f"crop_scale must be in [0.01, 1], got {self.crop_scale}")
        require_between("weight_decay", self.weight_decay, 0, math.inf)
        require_between("lr", self.start_lr, 0, math.inf)
        if not 0 <= self.min_lr <= self.start_lr:
            raise UsageError(f"min_lr must be in [0, {self.start_lr}] (lr), got {self.min_lr}")

    @property
    def start_lr(self) -> float:
        """Learning rate at step 0."""
        return LEARNING_RATES[self.proxy] if self.lr is None else self.lr

    def run(self) -> Outcome:
        """Open the data set, train the proxy from the last commit on, publish the scores."""
        from engine.device import resolve_device, runtime_of

        dataset = Dataset.open(self.data)
        if len(dataset.classes) < 2:
            raise UsageError(
                f"{self.data} has one class, and scores compare classes; pack at least two"
            )
        device = resolve_device(self.device)
        config = shaping_fields(self, without=NOT_SHAPING) | {"lr": self.start_lr}
        inputs = [self.data, *self._feature_inputs(dataset)]
        roles = ("data", "features")
        provenance = Provenance(
            kind="scores",
            stage="score",
            config=config,
            runtime=runtime_of(device) | {"decoder": self.decoder, "compile": self.compile},
            binds={"identity": dataset.manifest.identity, "n_samples": len(dataset)},
            inputs=tuple(
                Provenance.read(path).as_input(role, path, self.scores)
                for role, path in zip(roles, inputs, strict=False)
            ),
        )
        with making(
            self.scores, provenance, inputs=inputs, device=str(device), resumable=True
        ) as work:
            if not work.done:
                work.meter.bytes_read = int(dataset.ints("bytes").sum())
                try:
                    work.meter.notes["note"] = self._train(work, dataset, device)
                except UsageError:  # the remedy is another configuration: nothing to continue
                    shutil.rmtree(work.scratch)
                    raise
        return self._outcome(work, dataset)

    def _train(self, work: Work, dataset: Dataset, device: "torch.device") -> str:
        from engine.training import Sgd, Trainer, compile_where_it_pays, cosine_schedule
        from kernels.dynamics import Dynamics

        proxy = self._proxy(dataset, device)
        steps = self.epochs * -(-len(dataset) // self.batch)
        sgd = Sgd(lr=self.start_lr, weight_decay=self.weight_decay)
        schedule = cosine_schedule(self.start_lr, self.min_lr, steps)
        trainer = Trainer(proxy.network, sgd.build(proxy.network), schedule, device)
        dynamics = Dynamics(len(dataset), device, self.el2n_epochs)
        first_epoch = _resume(Generations(work.scratch), trainer, dynamics)
        passes = self.epochs * len(dataset) if self.proxy == "resnet18" else 0
        note = compile_where_it_pays(
            proxy.network, self.compile, device, image_passes=passes, size=self.size
        )
        self._epochs(work, first_epoch, proxy, trainer, dynamics)
        Generations(work.scratch).finish()
        return note

    def _epochs(
        self,
        work: Work,
        first_epoch: int,
        proxy: "Proxy",
        trainer: "Trainer",
        dynamics: "Dynamics",
    ) -> None:
        """Train and accumulate; commit at epoch ends."""
        from torch.nn.functional import cross_entropy

        n = dynamics.n_samples
        since_commit = stopwatch()
        with progress("score", self.epochs * n) as bar:
            bar.resume(first_epoch * n)
            for epoch in range(first_epoch, self.epochs):
                for inputs, labels, ids in proxy.examples(epoch):
                    logits = trainer.step(
                        inputs, lambda logits, labels=labels: cross_entropy(logits, labels)
                    )
                    dynamics.update(logits, labels, ids, epoch)
                    bar.advance(len(ids), epoch=f"{epoch + 1} of {self.epochs}")
                work.meter.images += n
                last = epoch + 1 == self.epochs
                if last or since_commit.seconds >= COMMIT_EVERY_SECONDS:
                    _commit(work, epoch + 1, trainer, dynamics)
                    since_commit = stopwatch()

    def _proxy(self, dataset: Dataset, device: "torch.device") -> "Proxy":
        from engine.proxy import convolutional_proxy, linear_proxy, stored_side

        if self.proxy == "linear":
            from engine.features import features_for

            features = features_for(dataset, self._features())
            return linear_proxy(
                features,
                dataset.labels,
                len(dataset.classes),
                batch=self.batch,
                seed=self.seed,
                device=device,
            )
        from engine.decode.geometry import Geometry
        from engine.decode.pixels import epochs_source
        from engine.decode.source import Source

        side = stored_side(self.size)
        source = Source(
            dataset,
            Geometry(side, side),
            decoder=self.decoder,
            device=device.type,
            workers=self.workers,
        )
        pixels = epochs_source(source)
        if pixels is not source:
            source.close()
        return convolutional_proxy(
            pixels,
            len(dataset.classes),
            size=self.size,
            crop_scale=self.crop_scale,
            batch=self.batch,
            seed=self.seed,
            device=device,
        )

    def _features(self) -> "FeatureSpec":
        from engine.features import FeatureSpec

        return FeatureSpec(
            backbone=self.backbone,
            weights=self.weights,
            size=self.size,
            device=self.device,
            decoder=self.decoder,
            workers=self.workers,
        )

    def _feature_inputs(self, dataset: Dataset) -> list[Path]:
        if self.proxy != "linear":
            return []
        from engine.features import cached_features

        return [cached_features(dataset, self._features())]

    def _outcome(self, work: Work, dataset: Dataset) -> Outcome:
        from kernels.scores import SCORES

        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        return Outcome(
            (
                *filter(None, [str(work.meter.notes.get("note", ""))]),
                f"scores ({', '.join(SCORES)}) of {len(dataset):,} images {how}: {self.scores}",
                f"next: coreset select {self.scores} SET --ipc 10",
            ),
            {"scores": str(self.scores), "images": len(dataset), "epochs": self.epochs},
        )


def _commit(work: Work, epoch: int, trainer: "Trainer", dynamics: "Dynamics") -> None:
    """Commit weights, momentum, raw accumulators and the scores as of ``epoch`` finished epochs.

    Raises:
        DataError: A score is not finite: the training diverged.
    """
    from safetensors.torch import save_file

    scores = dynamics.scores()
    for name, values in scores.items():
        if not np.isfinite(values).all():
            sample = int(np.flatnonzero(~np.isfinite(values))[0])
            # What was committed leads here again, and the remedy is another configuration.
            shutil.rmtree(work.scratch)
            raise DataError(
                f"score {name} of sample {sample} is {values[sample]} after epoch {epoch}: the "
                "training diverged; use a smaller --lr"
            )
    missed = int((scores["visits"] != epoch).sum())
    if missed:
        raise DataError(f"{missed} images were not seen once per epoch; run `coreset verify` first")

    def write(directory: Path) -> None:
        trainer.save(directory)
        save_file({"rows": dynamics.rows.cpu()}, directory / DYNAMICS_NAME)
        write_columns(directory / SCORES_NAME, scores, {"epochs": epoch, **work.provenance.binds})
        state = {"epoch": epoch, "steps": trainer.steps}
        write_atomically(directory / STATE_NAME, json_bytes(state))

    Generations(work.scratch).commit(epoch, write)
    work.meter.checkpoint(work.scratch)


def _resume(generations: Generations, trainer: "Trainer", dynamics: "Dynamics") -> int:
    """Load the last commit, if any; returns the number of finished epochs."""
    from safetensors.torch import load_file

    newest = generations.latest()
    if newest is None:
        return 0
    epoch, directory = newest
    trainer.load(directory, json.loads((directory / STATE_NAME).read_bytes())["steps"])
    dynamics.load_rows(load_file(directory / DYNAMICS_NAME)["rows"])
    return epoch
