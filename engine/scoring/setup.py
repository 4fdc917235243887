"""Setup of a scoring: the proxy, its trainer and the accumulators, as a recipe says."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.data.images import device_bytes
from coreset.engine.models.feature_rows import feature_rows
from coreset.engine.models.features import FeatureSpec, cached_features, feature_store
from coreset.engine.runtime.distributed import Distributed
from coreset.engine.runtime.progress import say
from coreset.engine.scoring.accumulators import TrainingContext, accumulators_for
from coreset.engine.scoring.proxy import (
    Proxy,
    cached_images,
    convolutional_proxy,
    linear_proxy,
    training_images,
)
from coreset.engine.scoring.recipes import Recipe
from coreset.engine.scoring.run import ScoringRun
from coreset.engine.training.trainer import (
    CompileMode,
    Trainer,
    compile_where_it_pays,
    cosine_schedule,
    replica_of,
    sgd,
)
from coreset.kernels.dynamics import WINDOW_EPOCHS, Dynamics
from coreset.kernels.tdds import WINDOW_EPOCHS as TDDS_WINDOW
from coreset.kernels.tdds import state_bytes
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.data.images import DecodedImages
    from coreset.engine.data.stream import ImageStream

FEWEST_TDDS_EPOCHS = 3
"""Two epochs have one change, which is its own mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Parameters of a scoring, the same on every process."""

    dataset: Dataset
    recipe: Recipe
    pixels: Path | None
    """Output of ``coreset decode``, read instead of decoding."""
    features: FeatureSpec
    """Options of decoding, and the frozen backbone of the linear proxy."""
    el2n_epochs: int
    tdds: bool
    record_margins: bool
    folds: int | None
    """Number of classifiers of the linear proxy that each leave a part of the samples out."""
    compile: CompileMode
    seed: int
    device: torch.device
    ranks: Distributed

    def check(self) -> None:
        """Refuse a scoring that this data set or this machine does not allow.

        Raises:
            UsageError: The data set has one class, or a class with fewer images than folds, or
                several processes are to keep what only one can.
            MachineError: There is no room for TDDS.
        """
        n_classes = len(self.dataset.classes)
        if n_classes < 2:
            raise UsageError(
                f"{self.dataset.path} has one class, and scores compare classes; pack at least two"
            )
        if self.folds is not None:
            self._require_images_for(self.folds)
        if (self.tdds or self.record_margins) and self.ranks.world > 1:
            raise UsageError(
                f"tdds and record_margins are kept by one process, these are {self.ranks.world}; "
                "leave them out or start without torchrun"
            )
        if self.tdds:
            self._require_room_for_tdds(n_classes)

    def _require_room_for_tdds(self, n_classes: int) -> None:
        """Report the memory that TDDS takes, or refuse."""
        epochs, device = self.recipe.epochs, self.device
        if epochs < FEWEST_TDDS_EPOCHS:
            raise UsageError(
                f"epochs must be at least {FEWEST_TDDS_EPOCHS} with --tdds, got {epochs}"
            )
        needed = state_bytes(len(self.dataset), n_classes, min(TDDS_WINDOW, epochs))
        available = device_bytes(device)
        size = f"tdds keeps {needed / 1e9:.2f} GB on {device}"
        if needed > available:
            raise MachineError(
                f"{size}, which has {available / 1e9:.2f} GB available; leave out --tdds"
            )
        say(f"{size}, and writes them at every commit")

    def _require_images_for(self, folds: int) -> None:
        """Refuse a class with images, but too few for one in every fold."""
        dataset = self.dataset
        sizes = np.bincount(dataset.labels, minlength=len(dataset.classes))
        small = np.flatnonzero((sizes > 0) & (sizes < folds))
        if small.size:
            raise UsageError(
                f"folds must be at most the size of every class, got {folds}, but class "
                f"{dataset.classes[small[0]]} has {sizes[small[0]]} images; lower --folds or leave "
                "it out"
            )

    def inputs(self) -> dict[str, Path]:
        """Return the artifacts that the scores depend on, beside the data set, by role."""
        if self.pixels is not None:
            return {"pixels": self.pixels}
        if self.recipe.proxy == "resnet18":
            return {}
        return {"features": cached_features(self.dataset, self.features)}

    def bytes_read(self) -> int:
        """Return the size of the input in bytes."""
        from coreset.engine.data.image_cache import PIXELS_NAME

        if self.pixels is not None:
            return (self.pixels / PIXELS_NAME).stat().st_size
        return int(self.dataset.ints("bytes").sum())

    def begin(self, scratch: Path, meter: Meter) -> ScoringRun:
        """Make the run that continues from its last checkpoint in ``scratch``, or starts.

        Raises:
            UsageError: The data set and the recipe do not go together.
            MachineError: There is no room, or another rank failed.
        """
        proxy = self.ranks.run_main_first(lambda: self._proxy(scratch))
        if proxy.streamed:
            meter.notes["streamed"] = True
        run = ScoringRun(
            proxy=proxy,
            trainer=self._trainer(proxy, meter),
            dynamics=self._dynamics(),
            accumulators=accumulators_for(self._context(proxy, scratch, meter)),
            epochs=self.recipe.epochs,
            batch=self.recipe.batch,
            n_classes=len(self.dataset.classes),
            scratch=scratch,
            meter=meter,
            ranks=self.ranks,
        )
        run.resume()
        return run

    def _proxy(self, scratch: Path) -> Proxy:
        recipe, n_classes = self.recipe, len(self.dataset.classes)
        if recipe.proxy == "linear":
            store = feature_store(self.dataset, self.features)
            return linear_proxy(
                feature_rows(store, self.device, scratch=scratch),
                self.dataset.labels,
                n_classes,
                batch=recipe.batch,
                seed=self.seed,
                device=self.device,
                n_folds=self.folds or 0,
                ranks=self.ranks,
            )
        return convolutional_proxy(
            self._images(),
            n_classes,
            size=recipe.size,
            start_size=recipe.start_size,
            epochs=recipe.epochs,
            crop_scale=recipe.crop_scale,
            batch=recipe.batch,
            seed=self.seed,
            device=self.device,
            ranks=self.ranks,
        )

    def _images(self) -> "ImageStream | DecodedImages":
        if self.pixels is not None:
            return cached_images(self.pixels, self.dataset, self.recipe.size, self.device)
        decoding = self.features
        return training_images(
            self.dataset,
            self.recipe.size,
            self.device,
            decoder=decoding.decoder,
            exact=decoding.exact,
            workers=decoding.workers,
        )

    def _trainer(self, proxy: Proxy, meter: Meter) -> Trainer:
        recipe, n = self.recipe, len(self.dataset)
        per_epoch = -(-n // (recipe.batch * self.ranks.world))
        schedule = cosine_schedule(
            recipe.lr, recipe.min_lr, recipe.epochs * per_epoch, round(recipe.warmup * per_epoch)
        )
        optimiser = sgd(proxy.network, lr=recipe.lr, weight_decay=recipe.weight_decay)
        meter.notes["note"] = compile_where_it_pays(
            proxy.network,
            self.compile,
            self.device,
            image_passes=recipe.epochs * n if recipe.proxy == "resnet18" else 0,
            size=recipe.size,
            sizes_vary=recipe.start_size > 0,
        )
        replica = replica_of(proxy.network, self.device) if self.ranks.world > 1 else None
        return Trainer(proxy.network, optimiser, schedule, self.device, replica=replica)

    def _dynamics(self) -> Dynamics:
        epochs = self.recipe.epochs
        return Dynamics(
            len(self.dataset),
            self.device,
            el2n_epochs=min(self.el2n_epochs, epochs),
            window=min(WINDOW_EPOCHS, epochs),
            compiled=self._compiles,
            all_reduce=self.ranks.all_reduce,
            is_main=self.ranks.is_main,
        )

    @property
    def _compiles(self) -> bool:
        return self.device.type == "cuda" and self.compile != "off"

    def _context(self, proxy: Proxy, scratch: Path, meter: Meter) -> TrainingContext:
        return TrainingContext(
            dataset=self.dataset,
            proxy=proxy,
            epochs=self.recipe.epochs,
            device=self.device,
            compiled=self._compiles,
            tdds=self.tdds,
            record_margins=self.record_margins,
            scratch=scratch,
            meter=meter,
            ranks=self.ranks,
        )
