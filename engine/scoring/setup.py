"""What a scoring is made of: the proxy, its trainer and the accumulators, as a recipe says."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.models.feature_rows import feature_rows
from coreset.engine.models.features import FeatureSpec, cached_features, feature_store
from coreset.engine.runtime.distributed import Distributed
from coreset.engine.scoring.accumulators import MarginRecord, TddsScore, require_room_for_tdds
from coreset.engine.scoring.out_of_fold import OutOfFold
from coreset.engine.scoring.proxy import (
    Proxy,
    cached_images,
    convolutional_proxy,
    linear_proxy,
    training_images,
)
from coreset.engine.scoring.recipes import Recipe
from coreset.engine.scoring.run import Extra, ScorePass
from coreset.engine.training.trainer import (
    CompileMode,
    Trainer,
    compile_where_it_pays,
    cosine_schedule,
    replica_of,
    sgd,
)
from coreset.kernels.dynamics import WINDOW_EPOCHS, Dynamics
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.data.images import DecodedImages
    from coreset.engine.data.stream import ImageStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a scoring needs to begin or go on, the same on every rank."""

    dataset: Dataset
    recipe: Recipe
    pixels: Path | None
    """What ``coreset decode`` made, read instead of decoding."""
    features: FeatureSpec
    """How images are decoded, and the frozen backbone of the linear proxy."""
    el2n_epochs: int
    tdds: bool
    record_margins: bool
    folds: int | None
    """Classifiers of the linear proxy that each leave a part of the samples out; None: none."""
    compile: CompileMode
    seed: int
    device: torch.device
    ranks: Distributed

    def check(self) -> None:
        """Refuse, before anything is made, what cannot be done with this data set on this machine.

        Raises:
            UsageError: It has one class, or one with fewer images than folds, or something is asked
                for that several ranks cannot keep.
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
            epochs = self.recipe.epochs
            require_room_for_tdds(len(self.dataset), n_classes, epochs, self.device)

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
        """Artifacts that the scores are made from, beside the data set, by role."""
        if self.pixels is not None:
            return {"pixels": self.pixels}
        if self.recipe.proxy == "resnet18":
            return {}
        return {"features": cached_features(self.dataset, self.features)}

    def bytes_read(self) -> int:
        """Bytes of what is read, once."""
        from coreset.engine.data.image_cache import PIXELS_NAME

        if self.pixels is not None:
            return (self.pixels / PIXELS_NAME).stat().st_size
        return int(self.dataset.ints("bytes").sum())

    def begin(self, scratch: Path, meter: Meter) -> ScorePass:
        """The scoring from its last commit in ``scratch`` on, or from the start.

        Raises:
            UsageError: The data set and the recipe do not go together.
            MachineError: There is no room, or another rank failed.
        """
        made: list[Proxy] = []

        def make() -> int:
            made.append(self._proxy(scratch))
            return 0

        # What the leading rank leaves in scratch, the others find there.
        for makes in (self.ranks.is_main, not self.ranks.is_main):
            self.ranks.run_on_all(make if makes else int)
        if made[0].streamed:
            meter.notes["streamed"] = True
        one = ScorePass(
            proxy=made[0],
            trainer=self._trainer(made[0], meter),
            dynamics=self._dynamics(),
            extras=self._extras(made[0], scratch, meter),
            epochs=self.recipe.epochs,
            batch=self.recipe.batch,
            n_classes=len(self.dataset.classes),
            scratch=scratch,
            meter=meter,
            ranks=self.ranks,
        )
        one.resume()
        return one

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
        )

    @property
    def _compiles(self) -> bool:
        return self.device.type == "cuda" and self.compile != "off"

    def _extras(self, proxy: Proxy, scratch: Path, meter: Meter) -> list[Extra]:
        n, n_classes, epochs = len(self.dataset), len(self.dataset.classes), self.recipe.epochs
        extras: list[Extra] = []
        if self.tdds:
            extras.append(TddsScore(n, n_classes, epochs, self.device, compiled=self._compiles))
        if self.record_margins:
            extras.append(MarginRecord(n, epochs, scratch, self.device))
        if proxy.folds is not None:
            labels = self.dataset.labels
            extras.append(OutOfFold(proxy, labels, n_classes, ranks=self.ranks, meter=meter))
        return extras
