"""Settings of one scoring: what shapes its scores, its inputs, and its checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.concept_bank import BANK_KIND, ConceptBank
from coreset.engine.models.features import FeatureSpec, cached_features
from coreset.engine.runtime.distributed import Distributed
from coreset.engine.runtime.fields import class_too_small, require_at_least
from coreset.engine.runtime.progress import say
from coreset.engine.scoring.recipes import Recipe
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    import torch

GIVEN = "given"
PROMPT = "a photo of a {}"
"""Sentence around the name of a class (zero-shot)."""
UNTRAINED_FIELDS = ("proxy", "recipe", "size", "backbone", "decoder_exact")
"""What shapes scores without training."""
FEWEST_TDDS_EPOCHS = 3  # two have one change, which is its own mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """Options of `coreset score` beside the recipe; the command line shows them as its own."""

    el2n_epochs: int = 10
    """el2n is the mean over this many first epochs, el2n_single that of the last of them."""
    final: bool = True
    """Evaluate every image once at the end: loss_final, entropy_final and the prediction."""
    tdds: bool = False
    """Also the score tdds, which needs the last epoch's softmax of every image: 2 bytes per image
    and class on the device (2.6 GB for ImageNet) and in every commit."""
    record_margins: bool = False
    """Also every margin of every epoch, in margins.zarr: 2 bytes per image and epoch."""
    folds: int | None = None
    """Train so many more classifiers, such as 5, each on all images but its fold's (linear). Scores
    confidence_oof and margin_oof find wrong labels best: `coreset scores suspects`."""
    labels: Literal["given", "zero-shot", "clusters"] = GIVEN
    """Labels to train on (linear, concept): those of the data set, or pseudo-labels of the images'
    features. zero-shot: the class whose name is nearest (a backbone clip:MODEL); clusters: k-means.
    `coreset select --reveal` chooses by such scores."""
    clusters: int | None = None
    """Number of clusters (--labels clusters). Default: as many as the data set has classes."""
    pixels: Path | None = None
    """Output of `coreset decode` for the data set, read instead of decoding (resnet18)."""
    concepts: Path | None = None
    """Output of `coreset concepts` for the classes of the data set (concept)."""
    seed: int = 0
    """Start weights, order and crops."""
    deterministic: bool = False
    """On a GPU use deterministic kernels alone, some slower; a CPU is always deterministic."""
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """torch.compile: auto is on for a GPU; on a CPU only for trainings of over about 15 minutes.
    graphs: with CUDA graphs, which a GPU has (`coreset doctor` times both)."""

    def __post_init__(self) -> None:
        require_at_least("el2n_epochs", self.el2n_epochs, 1)
        if self.folds is not None:
            require_at_least("folds", self.folds, 2)
        if self.clusters is not None:
            require_at_least("clusters", self.clusters, 2)
            if self.labels != "clusters":
                raise UsageError(f"clusters go with --labels clusters, got --labels {self.labels}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Settings of a scoring, the same on every process."""

    dataset: Dataset
    recipe: Recipe
    options: ScoringOptions
    features: FeatureSpec
    device: "torch.device"
    ranks: Distributed
    bank: ConceptBank | None = None
    assigned: NDArray[np.int64] | None = None
    """Pseudo-label of every sample, once they are made."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of every sample that the proxy is trained on."""
        if self.options.labels == GIVEN:
            return self.dataset.labels
        if self.assigned is None:
            raise RuntimeError("pseudo-labels are read before they are made")
        return self.assigned

    @property
    def n_classes(self) -> int:
        """Number of classes that the proxy tells apart."""
        return self.options.clusters or len(self.dataset.classes)

    @property
    def compiles_scores(self) -> bool:
        """Test whether the scores of a batch are compiled to one graph."""
        return self.device.type == "cuda" and self.options.compile != "off"

    def check(self) -> None:
        """Refuse a scoring that this data set or this machine does not allow."""
        if self.n_classes < 2:
            raise UsageError(
                f"{self.dataset.path} has one class, and scores compare classes; pack at least two"
                f"{', or give --clusters' if self.options.labels == 'clusters' else ''}"
            )
        if self.bank is not None:
            self.bank.require_classes(self.dataset)
            self.bank.require_encoder(self.features)
        if self.options.labels != GIVEN:
            self._check_pseudo_labels()
        if self.options.folds is not None:
            self._check_folds(self.options.folds)
        if (self.options.tdds or self.options.record_margins) and self.ranks.world > 1:
            raise UsageError(
                f"tdds and record_margins are kept by one process, these are {self.ranks.world}; "
                "leave them out or start without torchrun"
            )
        if self.options.tdds:
            self._require_room_for_tdds()

    def _check_folds(self, folds: int) -> None:
        classes = self.dataset.classes
        sizes = np.bincount(self.dataset.labels, minlength=len(classes))
        small = np.flatnonzero((sizes > 0) & (sizes < folds))
        if small.size:
            name, size = classes[small[0]], int(sizes[small[0]])
            remedy = "lower --folds or leave it out"
            raise class_too_small(name, size, "folds", folds, remedy=remedy)

    def _check_pseudo_labels(self) -> None:
        n, backbone, bank = len(self.dataset), self.features.backbone, self.bank
        if self.options.labels == "clusters":
            if self.n_classes > n:
                raise UsageError(f"clusters must be at most {n} (images), got {self.n_classes}")
        elif not backbone.startswith("clip:"):
            raise UsageError(
                "labels zero-shot need a backbone that embeds texts, clip:MODEL, got "
                f"{backbone}; use one, or --labels clusters"
            )
        if bank is not None and bank.is_of_labels:
            raise UsageError(
                f"bank {bank.path} was made with the labels of the data set, so that --labels "
                f"{self.options.labels} would not be free of them; make one by `coreset "
                "concepts visual --pooled`, or of texts without --keep or --images"
            )

    def _require_room_for_tdds(self) -> None:
        from coreset.engine.data.residency import device_bytes
        from coreset.kernels.tdds import WINDOW_EPOCHS, state_bytes

        epochs, device = self.recipe.epochs, self.device
        require_at_least("epochs of --tdds", epochs, FEWEST_TDDS_EPOCHS)
        needed = state_bytes(len(self.dataset), self.n_classes, min(WINDOW_EPOCHS, epochs))
        available = device_bytes(device)
        size = f"tdds keeps {needed / 1e9:.2f} GB on {device}"
        if needed > available:
            raise MachineError(
                f"{size}, which has {available / 1e9:.2f} GB available; leave out --tdds"
            )
        say(f"{size}, and writes them at every commit")

    def inputs(self) -> dict[str, Path]:
        """Return the artifacts that the scores depend on, by role; features are made if missing."""
        inputs = {"data": self.dataset.path}
        if self.options.pixels is not None:
            inputs["pixels"] = self.options.pixels
        elif self.recipe.proxy != "resnet18":
            inputs["features"] = cached_features(self.dataset, self.features)
        if self.bank is not None:
            inputs[BANK_KIND] = self.bank.path
        return inputs

    def provenance(self, out: Path, inputs: Mapping[str, Path]) -> Provenance:
        """Describe the scores ``out`` by what they are made from."""
        from coreset.engine.runtime.device import runtime_of

        options = asdict(self.options)
        how = {"decoder": self.features.decoder, "compile": options.pop("compile")}
        del options["pixels"], options["concepts"], options["clusters"]
        if self.options.folds is None:
            del options["folds"]
        of_labels = {"clusters": {"clusters": self.n_classes}, "zero-shot": {"prompt": PROMPT}}
        labels = options.pop("labels")
        options |= {} if labels == GIVEN else {"labels": labels, **of_labels[labels]}
        if self.ranks.world > 1 and self.recipe.proxy == "resnet18":
            how["order"] = "fixed shares"  # ranks once shared every epoch anew
        options |= {"decoder_exact": self.features.exact, "backbone": self.features.backbone}
        config = self.recipe.settings() | options | {"recipe": self.recipe.stamp}
        if self.recipe.proxy == "neighbours":
            config = {name: config[name] for name in UNTRAINED_FIELDS}
        return Provenance(
            kind="scores",
            stage="score",
            config=config,
            runtime=runtime_of(self.device) | {"ranks": self.ranks.world} | how,
            binds={"identity": self.dataset.manifest.identity, "n_samples": len(self.dataset)},
            inputs=Provenance.inputs_of(out, inputs),
        )

    def bytes_read(self) -> int:
        """Return the size of the input in bytes."""
        from coreset.engine.data.image_cache import PIXELS_NAME

        if self.options.pixels is not None:
            return (self.options.pixels / PIXELS_NAME).stat().st_size
        return int(self.dataset.ints("bytes").sum())
