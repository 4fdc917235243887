"""``coreset score``: train a proxy and take every score from its training."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import ClassVar, Literal

from coreset.engine.artifacts.writer import ArtifactWriter, require_output
from coreset.engine.models.concept_bank import ConceptBank
from coreset.engine.models.features import FeatureSpec
from coreset.engine.runtime.distributed import join
from coreset.engine.runtime.fields import require_at_least, require_between
from coreset.engine.scoring.recipes import FEATURE_PROXIES, RECIPES, SMALLEST_SIZE, Recipe
from coreset.engine.scoring.score_table import (
    UNDECODABLE_NAME,
    ScoreTable,
    listing,
    selection_hint,
)
from coreset.engine.scoring.setup import GIVEN, ScoringOptions, Setup
from coreset.engine.stages.options import Backbone, DataPath, Decoding, Flat, Result, ScoresPath
from coreset.kernels.scores import SCORES
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

_STREAMED = (
    "images did not fit into memory and were decoded every epoch; faster: `coreset decode` once, "
    "then --pixels"
)


@dataclass(frozen=True, slots=True)
class ScoreList:
    """List of all scores and what they mean."""

    def run(self) -> Result:
        """Make the table."""
        scores = {name: asdict(score) for name, score in SCORES.items()}
        return Result(listing(), {"scores": scores})


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Train a proxy on the data set and score every image in the same pass.

    Writes every score of `coreset score --list`, one row per sample id, and lists images that
    cannot be decoded in undecodable.json. Commits at ends of epochs (at most every 30 s), within an
    epoch every 5 min, and on SIGTERM or SIGUSR1. The same command continues from the last commit
    and ends in the same bytes. Under torchrun the processes train together.
    """

    data: DataPath
    """Packed data set."""
    scores: ScoresPath
    """Directory to make."""
    recipe: Literal["full", "fast"] = "full"
    """Training of resnet18. full: the study's way; fast: about a tenth of the arithmetic. The
    fields below that are not given come from the recipe."""
    proxy: Literal["resnet18", "linear", "concept", "neighbours"] = "resnet18"
    """resnet18 from scratch (the study's); linear: a linear classifier on features of --backbone
    (seconds); concept: one on the similarities of images to a bank of --concepts (the study's
    second score); neighbours: scores of features without training, which a trained one has to
    beat."""
    epochs: int | None = None
    """Passes over the data; every one counts in the scores (60; fast 16; concept 100)."""
    batch: int | None = None
    """Images per step and process (256; fast 1024; concept 512)."""
    size: int | None = None
    """Side in pixels of the training crops (resnet18, at least 17) or of the images that the
    backbone sees (linear, neighbours) (224; fast 128; concept: as in the bank)."""
    start_size: int | None = None
    """Side of the crops in the first epoch, growing to --size by half of the epochs, in steps of 32
    (resnet18); 0 is off, as in the study (0; fast 96)."""
    crop_scale: float | None = None
    """Smallest share of the area that a random crop keeps (resnet18) (0.08; fast 0.25)."""
    lr: float | None = None
    """Learning rate at the start, falling by a cosine (0.1; fast 0.4; linear 0.01; concept 1e-3,
    constant)."""
    min_lr: float | None = None
    """Learning rate at the end (1e-4; fast 0; concept 1e-3)."""
    warmup: float | None = None
    """Epochs in which the learning rate rises linearly from nothing (0; fast 2)."""
    weight_decay: float | None = None
    """On all parameters (1e-4; fast 5e-5; concept 0)."""
    optimiser: Literal["sgd", "adam"] | None = None
    """Optimiser of --proxy concept (adam); the others have SGD with momentum 0.9."""
    scaling: Literal["standardised", "none"] | None = None
    """Similarities of --proxy concept: standardised by concept, or as they are (standardised)."""
    list: bool = False
    """Show what every score is, where it is defined and which end of it is hard; nothing else."""
    listed: ClassVar[type] = ScoreList  # the stage of --list, which needs no paths
    options: Flat[ScoringOptions] = field(default_factory=ScoringOptions)
    frozen: Flat[Backbone] = field(default_factory=Backbone)
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        used = self.used
        self._require_what_concepts_need()
        if self.proxy == "neighbours":
            self._require_no_training_options()
            require_at_least("size of --proxy neighbours", used.size, SMALLEST_SIZE["neighbours"])
            return
        for name in ("epochs", "batch"):
            require_at_least(name, getattr(used, name), 1)
        least = SMALLEST_SIZE[self.proxy]
        require_at_least(f"size of --proxy {self.proxy}", used.size, least)
        self._require_what_the_proxy_reads()
        if used.start_size and not least <= used.start_size <= used.size:
            raise UsageError(
                f"start_size must be 0 or in [{least}, {used.size}] (size), got {used.start_size}"
            )
        if not 0.01 <= used.crop_scale <= 1:
            raise UsageError(f"crop_scale must be in [0.01, 1], got {used.crop_scale}")
        require_between("weight_decay", used.weight_decay, 0, math.inf)
        require_between("warmup", used.warmup, 0, used.epochs)
        require_between("lr", used.lr, 0, math.inf)
        if not 0 <= used.min_lr <= used.lr:
            raise UsageError(f"min_lr must be in [0, {used.lr}] (lr), got {used.min_lr}")

    def _require_no_training_options(self) -> None:
        given = ["recipe"] if self.recipe != "full" else []
        settings = self.used.settings().keys() - {"proxy", "size"}
        given += sorted(name for name in settings if getattr(self, name) is not None)
        for option in fields(self.options):
            if getattr(self.options, option.name) != option.default:
                given.append(option.name)
        if given:
            raise UsageError(
                f"{', '.join(given)} go with a proxy that trains, got --proxy neighbours, which "
                "reads --backbone, --weights and --size alone"
            )

    def _require_what_the_proxy_reads(self) -> None:
        pixels, got = self.options.pixels, f"got --proxy {self.proxy}"
        if self.proxy in FEATURE_PROXIES:
            if pixels is not None or self.used.start_size:
                raise UsageError(f"pixels and start_size go with --proxy resnet18, {got}")
            if self.recipe != "full":
                raise UsageError(f"recipe {self.recipe} goes with --proxy resnet18, {got}")
        if self.options.folds is not None and self.proxy != "linear":
            raise UsageError(f"folds go with --proxy linear, {got}")
        if (labels := self.options.labels) != GIVEN:
            if self.proxy not in FEATURE_PROXIES:
                raise UsageError(f"labels {labels} go with --proxy linear or concept, {got}")
            if self.options.folds is not None:
                raise UsageError(f"folds find wrong labels; they go with given ones, not {labels}")
        if pixels is not None and self.decoding.decoder_exact:
            raise UsageError("decoder_exact goes with decoding; give it to `coreset decode`")

    def _require_what_concepts_need(self) -> None:
        if self.proxy != "concept":
            given = {"concepts": self.options.concepts, "optimiser": self.optimiser}
            given |= {"scaling": self.scaling}
            if names := [f"--{name}" for name, value in given.items() if value]:
                raise UsageError(
                    f"{', '.join(names)} goes with --proxy concept, got --proxy {self.proxy}"
                )
        elif self.options.concepts is None:
            raise UsageError(
                "proxy concept needs --concepts BANK; make a bank with `coreset concepts`"
            )
        elif self.size is not None or self.frozen.backbone != "auto":
            raise UsageError(
                "size and backbone of --proxy concept are those of its bank; leave out --size and "
                "--backbone"
            )

    @property
    def used(self) -> Recipe:
        """Recipe with the values that were given."""
        recipe = RECIPES[self.recipe if self.proxy == "resnet18" else self.proxy]
        given = {name: getattr(self, name) for name in recipe.settings()}
        if self.proxy == "concept" and self.min_lr is None:
            given["min_lr"] = self.lr  # constant
        return recipe.changed(given)

    def run(self) -> Result:
        """Open the data set, train the proxy from the last commit on, publish the scores."""
        require_output(self.scores)
        dataset = Dataset.open(self.data)
        concepts = self.options.concepts
        bank = None if concepts is None else ConceptBank.open(concepts)

        from coreset.engine.runtime.device import deterministic_kernels
        from coreset.engine.scoring.job import make_scores

        with join() as ranks:
            setup = Setup(
                dataset=dataset,
                recipe=self.used,
                options=self.options,
                features=self._features(bank),
                device=self.decoding.resolved_device(),
                ranks=ranks,
                bank=bank,
            )
            setup.check()
            with deterministic_kernels(setup.device, wanted=self.options.deterministic):
                work = make_scores(setup, self.scores)
        if not ranks.is_main:
            return Result((f"rank {ranks.rank} of {ranks.world} is done with its part",))
        return self._outcome(work, setup)

    def _features(self, bank: ConceptBank | None) -> FeatureSpec:
        from coreset.engine.models.backbones import DEFAULT_BACKBONE

        frozen = self.frozen
        if bank is not None:
            frozen = replace(frozen, backbone=bank.encoder.backbone)
            return frozen.features(self.decoding, size=bank.encoder.size)
        if frozen.backbone == "auto" and self.proxy == "resnet18":
            # With --proxy resnet18, which reads no features, the default is recorded.
            frozen = replace(frozen, backbone=DEFAULT_BACKBONE)
        return frozen.features(self.decoding, size=self.used.size)

    def _outcome(self, work: ArtifactWriter, setup: Setup) -> Result:
        table = ScoreTable(path=self.scores, dataset=setup.dataset)
        n, n_lost = len(setup.dataset), len(table.undecodable)
        listed = self.scores / UNDECODABLE_NAME
        lost = f"{n_lost} of them could not be decoded: no score, or of fewer epochs, see {listed}"
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        decodes = self.proxy == "resnet18" and self.options.pixels is None
        lines = (
            *(self.decoding.notice() if decodes else ()),
            *(self.frozen.notice() if self.proxy in {"linear", "neighbours"} else ()),
            *filter(None, [str(work.meter.notes.get("note", ""))]),
            *([_STREAMED] if work.meter.notes.get("streamed") else []),
            f"scores of {n:,} images by {self.used.stamp} {how}: {self.scores}",
            *([lost] if n_lost else []),
            f"next: {selection_hint(table)}",
        )
        data = {"scores": str(self.scores), "images": n, "epochs": setup.recipe.epochs}
        return Result(lines, data | {"recipe": self.used.stamp, "undecodable": n_lost})
