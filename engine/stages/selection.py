"""``coreset select``: choose a coreset, class by class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import tyro

from coreset.engine.artifacts.checkpoints import COMMIT_NAME
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, read_features
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import SetInfo, write_set
from coreset.engine.condensed.selection import SAMPLERS, Candidates, Sampler, Values, draw_coreset
from coreset.engine.runtime.fields import choice_of, own_parameters, parameters_of, require_at_least
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.stages.options import MovedData, Result, ScoreName, SetPath
from coreset.kernels.scores import SCORES
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import digest_of, missing

SourcePath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCORES|DATA")]
USUAL_BY_SCORES, USUAL = "ccs", "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Choose exactly --ipc images of every class.

    Images that the scoring could not decode are left out.
    """

    source: SourcePath
    """Scores (ccs, random) or a packed data set (random)."""
    condensed: SetPath
    """Directory to make: a list of sample ids and how it came about."""
    ipc: int
    """Images per class."""
    method: Annotated[
        str | None,
        choice_of(SAMPLERS, default="ccs for scores, random for a data set", optional=True),
    ] = None
    score: ScoreName = "aum"
    """Score to stratify on (ccs); `coreset score --list` explains them."""
    seed: int = 0
    """Seed of the draw; every class has its own stream."""
    data: MovedData = None
    parameters: Annotated[Any, parameters_of(SAMPLERS)] = None

    def __post_init__(self) -> None:
        require_at_least("ipc", self.ipc, 1)
        for sampler in SAMPLERS.values():
            own_parameters(sampler, self.parameters)
        if self.score not in SCORES:
            raise UsageError(f"score must be one of {', '.join(SCORES)}, got {self.score}")

    def run(self) -> Result:
        """Find labels and scores, draw, publish the ids with their provenance."""
        dataset, table = self._opened()
        method = self.method or (USUAL_BY_SCORES if table else USUAL)
        sampler = SAMPLERS[method]
        if sampler.needs == "scores" and table is None:
            raise UsageError(
                f"method {method} needs scores, {self.source} is a data set; run `coreset score "
                f"{self.source} SCORES` first, or use --method {USUAL}"
            )
        ids = np.arange(len(dataset)) if table is None else table.ids
        candidates = Candidates(dataset=dataset, ids=ids, score=self.score)
        parameters, assumption = own_parameters(sampler, self.parameters), ""
        if sampler.complete:
            parameters, assumption = sampler.complete(parameters, candidates, self.ipc)
        score = {"score": self.score} if sampler.needs == "scores" else {}
        columns = [column.name for column in fields(sampler.parameters)]
        shaping = {name: getattr(parameters, name) for name in columns if name != "features"}
        recorded = {"ipc": self.ipc, **score, **shaping}
        inputs = {"scores": self.source} if score else {"data": dataset.path}
        if sampler.needs == "features":
            inputs |= {"features": _features_of(parameters)}
        provenance = self._provenance(method, recorded, inputs, table)
        with create_artifact(self.condensed, provenance, inputs=list(inputs.values())) as work:
            if not work.done:
                values = self._values(sampler, candidates, table, parameters)
                options = {"ipc": self.ipc, "seed": self.seed, "parameters": parameters}
                chosen, lowered = draw_coreset(method, candidates, values, **options)
                name = f"{method}-{self.score}" if score else method
                write_set(work, dataset, chosen, method=name, parameters=recorded, seed=self.seed)
                work.meter.images = len(dataset)
                work.meter.notes["lowered_misratio_classes"] = len(lowered)
        return self._result(method, len(dataset), assumption, done=work.done)

    def _opened(self) -> tuple[Dataset, ScoreTable | None]:
        """Open the data set whose images are chosen, and the scores if ``source`` holds some."""
        if (self.source / MANIFEST_NAME).is_file():
            return Dataset.open(self.source), None
        if not (self.source / COMMIT_NAME).is_file():
            remedy = "make one with `coreset score` or `coreset pack`"
            fault = "is neither scores nor a packed data set"
            raise missing(self.source, remedy, otherwise=fault)
        table = ScoreTable.open(self.source, self.data)
        return table.dataset, table

    def _provenance(
        self,
        method: str,
        recorded: Mapping[str, Any],
        inputs: Mapping[str, Path],
        table: ScoreTable | None,
    ) -> Provenance:
        config = {"method": method, "seed": self.seed, **recorded}
        if table is not None and table.undecodable and "scores" not in inputs:
            # The scores that tell them are no input of this set.
            config |= {"undecodable": digest_of({"ids": sorted(table.undecodable)})}
        origins = (Provenance.read(p).as_input(r, p, self.condensed) for r, p in inputs.items())
        return Provenance(kind="set", stage="select", config=config, inputs=tuple(origins))

    def _values(
        self, sampler: Sampler, candidates: Candidates, table: ScoreTable | None, parameters: object
    ) -> Values:
        if sampler.needs == "scores" and table is not None:
            return table.easiness(self.score, candidates.ids)
        if sampler.needs == "features":
            path, dataset = _features_of(parameters), candidates.dataset
            if Provenance.read(path).binding("content") != dataset.manifest.content:
                raise UsageError(
                    f"{path} holds features of other images than {dataset.path}; make them with "
                    f"`coreset embed {dataset.path} FEATURES`"
                )
            return read_features(path / FEATURES_NAME)[candidates.ids]
        return None

    def _result(self, method: str, n: int, assumption: str, *, done: bool) -> Result:
        info = SetInfo.read(self.condensed)
        n_images, assumed = sum(info.per_class), [assumption] if assumption else []
        used = json.dumps(dict(info.parameters), sort_keys=True)
        how = "are there already" if done else "chosen"
        lines = (
            *assumed,
            f"{n_images:,} of {n:,} images ({info.method}, {used}) {how}: {self.condensed}",
            f"next: coreset train {self.condensed} VAL RESULTS",
        )
        data = {"set": str(self.condensed), "images": n_images, "method": method}
        return Result(lines, {**data, "assumed": assumed})


def _features_of(parameters: object) -> Path:
    path = getattr(parameters, "features", None)
    if path is None:
        raise UsageError("this method needs --features; make them with `coreset embed`")
    return path
