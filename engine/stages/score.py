"""``coreset score``: train a proxy and gather every training-dynamics score in the same pass."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.artifact import Work, making
from engine.config import (
    DataPath,
    DecoderChoice,
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
from engine.scoring import UNDECODABLE_NAME, commit, named, resume, undecodable_of
from shards.atomic import json_bytes, write_atomically
from shards.dataset import Dataset
from shards.errors import UsageError

if TYPE_CHECKING:
    import torch

    from engine.features import FeatureSpec
    from engine.proxy import Proxy
    from engine.training import Trainer
    from kernels.dynamics import Dynamics

COMMIT_EVERY_SECONDS = 30.0
# Pixels shape the scores as an input, by their digest.
NOT_SHAPING = ("device", "decoder", "workers", "compile", "pixels")
LEARNING_RATES = {"resnet18": 0.1, "linear": 0.01}
# From crops of 16 pixels a strided 3 x 3 convolution of ResNet-18 gets a single pixel; oneDNN's
# bfloat16 gradient of that reads memory nobody wrote: garbage, or NaN in one run of three.
SMALLEST_SIZE = {"resnet18": 17, "linear": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Train a proxy on the data set and score every image in the same pass.

    Writes aum (mean probability margin), aum_logit, el2n, forgetting, correctness and visits, one
    row per sample id; images that cannot be decoded are listed in undecodable.json. Commits at
    epoch ends, at most every 30 s; after an interruption the same command continues from the last
    commit and ends in the same bytes.
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
    start_size: int = 0
    """Side of the crops in the first epoch, growing to --size by half of the epochs, in steps of 32
    (resnet18); 0 is off, as in the study."""
    pixels: Path | None = None
    """What `coreset decode` made of the data set, read instead of decoding (resnet18)."""
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
    decoder: DecoderChoice = "auto"
    """auto: DALI on a GPU, libjpeg-turbo threads on a CPU."""
    decoder_exact: bool = False
    """Pixels equal to Pillow's, several times slower; others are at most 1 level off."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "el2n_epochs"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least(f"size of --proxy {self.proxy}", self.size, SMALLEST_SIZE[self.proxy])
        self._require_what_the_proxy_reads()
        if not 0.01 <= self.crop_scale <= 1:
            raise UsageError(f"crop_scale must be in [0.01, 1], got {self.crop_scale}")
        require_between("weight_decay", self.weight_decay, 0, math.inf)
        require_between("lr", self.start_lr, 0, math.inf)
        if not 0 <= self.min_lr <= self.start_lr:
            raise UsageError(f"min_lr must be in [0, {self.start_lr}] (lr), got {self.min_lr}")

    def _require_what_the_proxy_reads(self) -> None:
        reads_features = self.proxy == "linear"
        if reads_features and (self.pixels is not None or self.start_size):
            raise UsageError("pixels and start_size go with --proxy resnet18, got --proxy linear")
        if self.pixels is not None and self.decoder_exact:
            raise UsageError("decoder_exact goes with decoding; give it to `coreset decode`")
        least = SMALLEST_SIZE[self.proxy]
        if self.start_size and not least <= self.start_size <= self.size:
            raise UsageError(
                f"start_size must be 0 or in [{least}, {self.size}] (size), got {self.start_size}"
            )

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
        inputs = self._inputs(dataset)
        provenance = Provenance(
            kind="scores",
            stage="score",
            config=config,
            runtime=runtime_of(device) | {"decoder": self.decoder, "compile": self.compile},
            binds={"identity": dataset.manifest.identity, "n_samples": len(dataset)},
            inputs=tuple(
                Provenance.read(path).as_input(role, path, self.scores)
                for role, path in inputs.items()
            ),
        )
        with making(
            self.scores,
            provenance,
            inputs=list(inputs.values()),
            device=str(device),
            resumable=True,
        ) as work:
            if not work.done:
                work.meter.bytes_read = self._bytes_read(dataset)
                try:
                    work.meter.notes["note"] = self._train(work, dataset, device)
                except UsageError:  # the remedy is another configuration: nothing to continue
                    shutil.rmtree(work.scratch)
                    raise
        return self._outcome(work, dataset, device.type)

    def _train(self, work: Work, dataset: Dataset, device: "torch.device") -> str:
        from engine.training import Sgd, Trainer, compile_where_it_pays, cosine_schedule
        from kernels.dynamics import Dynamics

        proxy = self._proxy(dataset, device)
        steps = self.epochs * -(-len(dataset) // self.batch)
        sgd = Sgd(lr=self.start_lr, weight_decay=self.weight_decay)
        schedule = cosine_schedule(self.start_lr, self.min_lr, steps)
        trainer = Trainer(proxy.network, sgd.build(proxy.network), schedule, device)
        dynamics = Dynamics(len(dataset), device, self.el2n_epochs)
        first_epoch, earlier = resume(Generations(work.scratch), trainer, dynamics)
        proxy.undecodable.update(earlier)
        passes = self.epochs * len(dataset) if self.proxy == "resnet18" else 0
        note = compile_where_it_pays(
            proxy.network,
            self.compile,
            device,
            image_passes=passes,
            size=self.size,
            sizes_vary=self.start_size > 0,
        )
        self._epochs(work, first_epoch, proxy, trainer, dynamics)
        Generations(work.scratch).finish()
        if proxy.undecodable:
            work.meter.notes["undecodable"] = len(proxy.undecodable)
            listed = json_bytes(named(proxy.undecodable))
            write_atomically(work.scratch / UNDECODABLE_NAME, listed)
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
                work.meter.images += n - len(proxy.undecodable)
                last = epoch + 1 == self.epochs
                if last or since_commit.seconds >= COMMIT_EVERY_SECONDS:
                    commit(work, epoch + 1, trainer, dynamics, proxy.undecodable)
                    since_commit = stopwatch()

    def _proxy(self, dataset: Dataset, device: "torch.device") -> "Proxy":
        from engine.proxy import convolutional_proxy, linear_proxy, squares, stored_squares

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
        images = (
            stored_squares(self.pixels, dataset, self.size, device)
            if self.pixels is not None
            else squares(
                dataset,
                self.size,
                device,
                decoder=self.decoder,
                exact=self.decoder_exact,
                workers=self.workers,
            )
        )
        return convolutional_proxy(
            images,
            len(dataset.classes),
            size=self.size,
            start_size=self.start_size,
            epochs=self.epochs,
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
            exact=self.decoder_exact,
            workers=self.workers,
        )

    def _inputs(self, dataset: Dataset) -> dict[str, Path]:
        """What the scores are made from, by role."""
        if self.pixels is not None:
            return {"data": self.data, "pixels": self.pixels}
        if self.proxy == "resnet18":
            return {"data": self.data}
        from engine.features import cached_features

        return {"data": self.data, "features": cached_features(dataset, self._features())}

    def _bytes_read(self, dataset: Dataset) -> int:
        """Bytes of what is read, once."""
        from engine.decode.stored_pixels import PIXELS_NAME

        if self.pixels is not None:
            return (self.pixels / PIXELS_NAME).stat().st_size
        return int(dataset.ints("bytes").sum())

    def _outcome(self, work: Work, dataset: Dataset, device: str) -> Outcome:
        from engine.decode.decoder import told_choice
        from kernels.scores import SCORES

        listed, n_lost = self.scores / UNDECODABLE_NAME, len(undecodable_of(self.scores))
        lost = f"{n_lost} of them could not be decoded: no score, or of fewer epochs, see {listed}"
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        told = told_choice(self.decoder, device, exact=self.decoder_exact)
        return Outcome(
            (
                *(told if self.proxy == "resnet18" and self.pixels is None else ()),
                *filter(None, [str(work.meter.notes.get("note", ""))]),
                f"scores ({', '.join(SCORES)}) of {len(dataset):,} images {how}: {self.scores}",
                *([lost] if n_lost else []),
                f"next: coreset select {self.scores} SET --ipc 10",
            ),
            {
                "scores": str(self.scores),
                "images": len(dataset),
                "epochs": self.epochs,
                "undecodable": n_lost,
            },
        )
