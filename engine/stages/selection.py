"""``coreset select``: choose a coreset, class by class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import FEATURES_NAME
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import SetInfo, ids_within, write_selection, write_set
from coreset.engine.condensed.samplers import SAMPLERS, draw_coreset
from coreset.engine.condensed.selection import (
    Candidates,
    Sampler,
    open_choice,
    require_reveal,
)
from coreset.engine.models.features import FeatureSpec, cached_features
from coreset.engine.runtime.fields import choice_of, own_parameters, parameters_of, require_at_least
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.stages.options import (
    Decoding,
    Extractor,
    Flat,
    MovedData,
    Result,
    ScoreName,
    SetPath,
)
from coreset.kernels.samplers import n_hardest
from coreset.kernels.scores import SCORES
from coreset.shards.errors import UsageError
from coreset.shards.format.files import digest_of

SourcePath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCORES|DATA")]
USUAL_BY_SCORES, USUAL = "ccs", "random"
LOWERED = "lowered_misratio_classes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Choose exactly --ipc images of every class.

    Images that the scoring could not decode are left out. Methods that need features make them with
    --backbone once per data set, as `coreset embed` does. For example: coreset select SCORES SET
    --ipc 10; coreset select DATA SET --ipc 10 --method k-center.
    """

    source: SourcePath
    """Scores (all methods) or a packed data set (methods without scores)."""
    condensed: SetPath
    """Directory to make: a list of sample ids and how it came about."""
    ipc: int | None = None
    """Images per class."""
    ratio: float | None = None
    """Share of each class instead of --ipc, rounded down, at least an image."""
    method: Annotated[
        str | None,
        choice_of(SAMPLERS, default="ccs for scores, random for a data set", optional=True),
    ] = None
    score: ScoreName = "aum"
    """Score to choose by (methods that need scores); `coreset score --list` explains them."""
    reveal: bool = False
    """For scores of --labels zero-shot or clusters, whose groups stand for the classes: takes the
    true labels of the chosen images alone. --ipc is exact of every group, not of every class."""
    without: Path | None = None
    """Coreset of the same data set whose images are not chosen."""
    seed: int = 0
    """Seed of the draw; every class has its own stream."""
    data: MovedData = None
    parameters: Annotated[Any, parameters_of(SAMPLERS)] = None
    extractor: Flat[Extractor] = field(default_factory=Extractor)
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        if (self.ipc is None) == (self.ratio is None):
            raise UsageError(
                f"give one of --ipc and --ratio, got ipc {self.ipc} and ratio {self.ratio}"
            )
        if self.ipc is not None:
            require_at_least("ipc", self.ipc, 1)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(f"ratio must be above 0 and at most 1, got {self.ratio}")
        for sampler in SAMPLERS.values():
            own_parameters(sampler, self.parameters)
        if self.score not in SCORES:
            raise UsageError(f"score must be one of {', '.join(SCORES)}, got {self.score}")

    def run(self) -> Result:
        """Find labels and what the method needs, draw, publish the ids with their provenance."""
        dataset, table = open_choice(self.source, self.data)
        revealed = require_reveal(table, given=self.reveal)
        method = self.method or (USUAL_BY_SCORES if table else USUAL)
        sampler = SAMPLERS[method]
        if "scores" in sampler.needs and table is None:
            raise UsageError(
                f"method {method} needs scores, {self.source} is a data set; run `coreset score "
                f"{self.source} SCORES` first, or use --method {USUAL}"
            )
        ids = np.arange(len(dataset)) if table is None else table.ids
        if self.without is not None:
            ids = np.setdiff1d(ids, ids_within(self.without, dataset))
        score_name = table.name_of(self.score) if table else self.score
        candidates = Candidates(dataset=dataset, ids=ids, table=table, score=score_name)
        budgets = self._budgets(candidates)
        parameters, assumption = own_parameters(sampler, self.parameters), ""
        if sampler.complete:
            parameters, assumption = sampler.complete(parameters, candidates, budgets)
        scored = table if "scores" in sampler.needs else None
        spec = self.extractor.spec(self.decoding) if "features" in sampler.needs else None
        recorded = self._recorded(sampler, parameters, spec, revealed)
        inputs = {"scores": self.source} if scored or revealed else {"data": dataset.path}
        inputs |= {"features": cached_features(dataset, spec)} if spec else {}
        inputs |= {"without": self.without} if self.without else {}
        provenance = self._provenance(method, recorded, inputs, table)
        with create_artifact(self.condensed, provenance, inputs=list(inputs.values())) as work:
            if not work.done:
                if scored:
                    candidates = replace(candidates, easiness=scored.easiness(self.score, ids))
                if spec:
                    from coreset.engine.models.feature_rows import feature_table

                    features = feature_table(inputs["features"] / FEATURES_NAME, work.scratch)
                    candidates = replace(candidates, features=features)
                drawn = draw_coreset(method, candidates, budgets, self.seed, parameters)
                suffix = f"-{score_name}" if scored else revealed.suffix if revealed else ""
                name, chosen = f"{method}{suffix}", ids[drawn.positions]
                write_set(work, dataset, chosen, method=name, parameters=recorded, seed=self.seed)
                scores = scored.values(self.score)[chosen] if scored else None
                groups = candidates.groups_of(drawn.positions)
                write_selection(work.scratch, dataset, chosen, drawn, scores, groups=groups)
                work.meter.images = len(dataset)
                work.meter.notes[LOWERED] = len(drawn.lowered)
        return self._result(method, len(dataset), assumption, done=work.done)

    def _budgets(self, candidates: Candidates) -> NDArray[np.int64]:
        if self.ipc is not None:
            return candidates.budgets(self.ipc)
        shares = [n_hardest(size, self.ratio or 0) for size in candidates.sizes.tolist()]
        return np.maximum(candidates.budgets(1), shares)

    def _recorded(
        self,
        sampler: Sampler,
        parameters: object,
        spec: FeatureSpec | None,
        revealed: ScoreTable | None,
    ) -> dict[str, Any]:
        """Return what shapes the set, without options that were not given or play no part."""
        columns = {own.name: getattr(parameters, own.name) for own in fields(sampler.parameters)}
        score = self.score if "scores" in sampler.needs else None
        network = f"{spec.backbone}@{spec.size}" if spec else None
        every = {"ipc": self.ipc, "ratio": self.ratio, "score": score, "backbone": network}
        every["labels"] = revealed.labelled_by if revealed else None
        return {name: value for name, value in (every | columns).items() if value is not None}

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
        origins = Provenance.inputs_of(self.condensed, inputs)
        return Provenance(kind="set", stage="select", config=config, inputs=origins)

    def _result(self, method: str, n: int, assumption: str, *, done: bool) -> Result:
        info, lowered = SetInfo.read(self.condensed), read_ledger(self.condensed)[-1].get(LOWERED)
        n_images, assumed = sum(info.per_class), [assumption] if assumption else []
        if "features" in SAMPLERS[method].needs:
            assumed += self.extractor.notice()
        used = json.dumps(dict(info.parameters), sort_keys=True)
        how = "are there already" if done else "chosen"
        if lowered:
            assumed += [f"in {lowered} classes fewer were cut than asked, to leave enough images"]
        if self.reveal:
            exact = "IPC is exact" if self.ipc is not None else "the share is"
            assumed += [f"revealed: {info.balance} ({exact} per group, not per class)"]
        lines = (
            *assumed,
            f"{n_images:,} of {n:,} images ({info.method}, {used}) {how}: {self.condensed}",
            f"next: coreset train {self.condensed} VAL RESULTS",
        )
        data = {"set": str(self.condensed), "images": n_images, "method": method}
        if self.reveal:
            data |= {"per_class": info.per_class}
        return Result(lines, {**data, "assumed": assumed})
