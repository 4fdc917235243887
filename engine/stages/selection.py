"""``coreset select``: choose a coreset, class by class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.artifacts.checkpoints import COMMIT_NAME, Checkpoints
from coreset.engine.artifacts.origin import open_source, require_same_data
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import SCORES_NAME, read_columns
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.condensed.condensed_set import SetInfo, write_coreset
from coreset.engine.condensed.misratio import Misratio, default_misratio
from coreset.engine.condensed.selection import CCS_STREAM
from coreset.engine.runtime.result import Result
from coreset.engine.scoring.checkpoint import undecodable_of
from coreset.engine.stages.options import ScoreName, SetPath, require_at_least, require_between
from coreset.kernels.scores import SCORES
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.classes import recognise
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of, missing
from coreset.shards.format.manifest import MANIFEST_NAME

# Independent draws: with one stream, the random and the CCS coreset of a seed would share images.
STREAMS = {"random": 0, "ccs": CCS_STREAM}
_NO_PARAMETERS = {"seed", "method", "undecodable"}
Source: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCORES|DATA")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Choose exactly --ipc images of every class.

    ccs: cut the misratio hardest of a class, lay equal-width bins over the other scores, share the
    budget over the bins (smallest first), draw at random within each. random: draw at random.
    Images that the scoring could not decode are left out by both.
    """

    source: Source
    """Scores (ccs, random) or a packed data set (random)."""
    condensed: SetPath
    """Directory to make: a list of sample ids and how it came about."""
    ipc: int
    """Images per class."""
    method: Literal["ccs", "random"] | None = None
    """Default: ccs for scores, random for a data set."""
    score: ScoreName = "aum"
    """Score to stratify on (ccs); `coreset score --list` explains them."""
    misratio: float | None = None
    """Share of the hardest images of each class to cut first (ccs). Default: the study's Table 6
    for aum on ImageNette, ImageNet-100 and ImageNet-1K at IPC 10 and 50; else by IPC over class
    size, a rule from that table: 0.9 where 1 of 128 images is chosen, 0.5 of 26, 0.3 of 10."""
    bins: int = 50
    """Equal-width bins over the range of a class's scores (ccs)."""
    seed: int = 0
    """Seed of the draw; every class has its own stream."""
    data: Path | None = None
    """Where the scored data set lies now, if it was moved."""

    def __post_init__(self) -> None:
        require_at_least("ipc", self.ipc, 1)
        require_at_least("bins", self.bins, 1)
        if self.score not in SCORES:
            raise UsageError(f"score must be one of {', '.join(SCORES)}, got {self.score}")
        if self.misratio is not None:
            require_between("misratio", self.misratio, 0, 1)

    def run(self) -> Result:
        """Find labels and scores, draw, publish the ids with their provenance."""
        dataset, scored = self._inputs()
        method = self.method or ("ccs" if scored else "random")
        if method == "ccs" and not scored:
            raise UsageError(
                f"method ccs needs scores, {self.source} is a data set; run `coreset score "
                f"{self.source} SCORES` first, or use --method random"
            )
        path = self.source if method == "ccs" else dataset.path
        lost = sorted(undecodable_of(self.source)) if scored else []
        candidates = np.setdiff1d(np.arange(len(dataset)), np.array(lost, np.int64))
        misratio = self._misratio(dataset, candidates.size) if method == "ccs" else Misratio(0.0)
        provenance = self._provenance(method, path, lost, misratio.value)
        with create_artifact(self.condensed, provenance, inputs=[path]) as work:
            if not work.done:
                chosen, lowered = self._choose(dataset, candidates, provenance.config)
                self._write(work, dataset, chosen)
                work.meter.images = len(dataset)
                work.meter.notes["lowered_misratio_classes"] = len(lowered)
        return self._outcome(dataset, work.done, method, misratio)

    def _inputs(self) -> tuple[Dataset, bool]:
        """The data set whose images are chosen, and whether ``source`` is a scores artifact."""
        if (self.source / MANIFEST_NAME).is_file():
            return Dataset.open(self.source), False
        if not (self.source / COMMIT_NAME).is_file():
            remedy = "make one with `coreset score` or `coreset pack`"
            if not self.source.exists():
                raise missing(self.source, remedy)
            raise UsageError(f"{self.source} is neither scores nor a packed data set; {remedy}")
        dataset = open_source(self.source, self.data)
        identity = str(Provenance.read(self.source).binding("identity"))
        require_same_data(dataset, identity, f"the scores {self.source}")
        return dataset, True

    def _misratio(self, dataset: Dataset, n_candidates: int) -> Misratio:
        """Return the misratio that is given, or else the default for this data set."""
        if self.misratio is not None:
            return Misratio(self.misratio)
        data, class_size = recognise(dataset.classes), n_candidates / len(dataset.classes)
        default = default_misratio(self.score, data, self.ipc, class_size)
        if default is None:
            raise UsageError(
                f"misratio has no default for score {self.score}; give --misratio (0.9 cuts most, "
                "0.3 suits large ipc)"
            )
        return default

    def _provenance(
        self, method: str, path: Path, lost: Sequence[int], misratio: float
    ) -> Provenance:
        config: dict[str, Any] = {"method": method, "ipc": self.ipc, "seed": self.seed}
        if method == "ccs":
            config |= {"score": self.score, "misratio": misratio, "bins": self.bins}
        elif lost:  # the scores that tell them are no input of a random set
            config |= {"undecodable": digest_of({"ids": list(lost)})}
        role = "scores" if method == "ccs" else "data"
        recorded = Provenance.read(path).as_input(role, path, self.condensed)
        return Provenance(kind="set", stage="select", config=config, inputs=(recorded,))

    def _choose(
        self, dataset: Dataset, candidates: NDArray[np.int64], config: Mapping[str, Any]
    ) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Draw among the candidates; returns ids, and the classes whose misratio was lowered."""
        from coreset.kernels.samplers import ClassTooSmallError, ccs_coreset, random_coreset
        from coreset.kernels.scores import easiness
        from coreset.kernels.seeds import derived_seed

        labels, n_classes = dataset.labels[candidates], len(dataset.classes)
        seed = derived_seed(self.seed, STREAMS[config["method"]])
        try:
            if config["method"] == "random":
                picked = random_coreset(labels, n_classes, self.ipc, seed)
            else:
                picked = ccs_coreset(
                    easiness(self.score, self._scores(dataset, candidates)),
                    labels,
                    n_classes,
                    self.ipc,
                    misratio=config["misratio"],
                    n_bins=self.bins,
                    seed=seed,
                )
        except ClassTooSmallError as error:
            raise UsageError(
                f"ipc must be at most the size of every class, got {self.ipc}, but class "
                f"{dataset.classes[error.class_index]} has {error.size} images; lower --ipc"
            ) from error
        return candidates[picked.ids], picked.lowered

    def _scores(self, dataset: Dataset, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        newest = Checkpoints(self.source).latest()
        if newest is None:
            raise UsageError(f"{self.source} holds no finished scores; run `coreset score` again")
        store = newest[1] / SCORES_NAME
        scores = read_columns(store, [self.score], rows=len(dataset))[self.score]
        odd = ids[~np.isfinite(scores[ids])]
        if odd.size:
            raise StoreError(
                f"{self.source} has {scores[odd[0]]} as {self.score} of {dataset.keys[odd[0]]} "
                f"({odd.size} are not finite); score this data set again"
            )
        return scores[ids]

    def _write(self, work: ArtifactWriter, dataset: Dataset, chosen: NDArray[np.int64]) -> None:
        config = work.provenance.config
        write_coreset(
            work,
            dataset,
            chosen,
            method="random" if config["method"] == "random" else f"ccs-{self.score}",
            parameters={name: config[name] for name in config if name not in _NO_PARAMETERS},
            seed=self.seed,
        )

    def _outcome(self, dataset: Dataset, done: bool, method: str, misratio: Misratio) -> Result:  # noqa: FBT001 - a fact
        info = SetInfo.read(self.condensed)
        how = "are there already" if done else "chosen"
        used = json.dumps(dict(info.parameters), sort_keys=True)
        made = f"{sum(info.per_class):,} of {len(dataset):,} images ({info.method}, {used})"
        assumed = [misratio.assumption] if misratio.assumption else []
        return Result(
            (
                *assumed,
                f"{made} {how}: {self.condensed}",
                f"next: coreset train {self.condensed} VAL RESULTS",
            ),
            {
                "set": str(self.condensed),
                "images": sum(info.per_class),
                "method": method,
                "assumed": assumed,
            },
        )
