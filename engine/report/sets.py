"""Condensed sets of the results, and the names that tell them apart.

A table has one column per method. Where one method was run in several ways on the same data at the
same IPC (two misratios, two proxies), pooling them would hide the difference, so the name of the
method says what differs: ``ccs-aum (misratio 0.3)``.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance, locate
from coreset.engine.condensed.condensed_set import CondensedSet, open_set
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.scores import SCORES, easiness
from coreset.shards.errors import CoresetError, UsageError
from coreset.shards.format.dataset import Dataset

BASELINE = "random"
DIGEST_CHARACTERS = 8
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedSet:
    """One condensed set as the rows of RESULTS describe it."""

    digest: str
    data: str
    method: str
    """Method, with what tells it from others of that name."""
    ipc: int
    kind: str
    seed: int
    path: str
    """Relative to RESULTS, when it was last trained on or measured."""
    parameters: Mapping[str, Any]
    name: str
    """Unique among the sets of one data set: ``ccs-aum, IPC 10``."""


def catalogue(rows: Iterable[Row]) -> dict[str, ReportedSet]:
    """Collect the sets of all rows by digest: by data, method (baseline first), IPC and seed."""
    by_digest = {row["set_digest"]: _described(row) for row in rows}
    sets = _with_seeds_told_apart(_with_methods_told_apart(list(by_digest.values())))
    ordered = sorted(
        sets, key=lambda one: (one.data, *method_order(one.method), one.ipc, one.seed, one.digest)
    )
    return {one.digest: one for one in ordered}


def method_order(method: str) -> tuple[bool, str]:
    """Sort key of methods: the baseline first, the others by name."""
    return method != BASELINE, method


def _described(row: Row) -> ReportedSet:
    parameters = json.loads(row["parameters"])
    parameters.pop("ipc", None)
    return ReportedSet(
        digest=row["set_digest"],
        data=row["data"],
        method=row["method"],
        ipc=row["ipc"],
        kind=row["set_kind"],
        seed=row["set_seed"],
        path=row["set_path"],
        parameters=parameters,
        name=f"{row['method']}, IPC {row['ipc']}",
    )


def _with_methods_told_apart(sets: Sequence[ReportedSet]) -> list[ReportedSet]:
    differing: dict[tuple[str, str], set[str]] = defaultdict(set)
    for group in _groups(sets, "data", "method", "ipc"):
        differing[group[0].data, group[0].method] |= _differing_parameters(group)
    named = [_renamed(one, _told(one, differing[one.data, one.method])) for one in sets]
    # The same parameters and the same seed, yet another set: made from other inputs.
    twins = {
        one.digest
        for group in _groups(named, "data", "method", "ipc", "seed")
        for one in group
        if len(group) > 1
    }
    return [
        _renamed(one, [f"set {one.digest[:DIGEST_CHARACTERS]}"] if one.digest in twins else [])
        for one in named
    ]


def _with_seeds_told_apart(sets: Sequence[ReportedSet]) -> list[ReportedSet]:
    return [
        replace(one, name=f"{one.name}, seed {one.seed}") if len(group) > 1 else one
        for group in _groups(sets, "data", "method", "ipc")
        for one in group
    ]


def _groups(sets: Sequence[ReportedSet], *fields: str) -> list[list[ReportedSet]]:
    groups: dict[tuple[Any, ...], list[ReportedSet]] = defaultdict(list)
    for one in sets:
        groups[tuple(getattr(one, field) for field in fields)].append(one)
    return list(groups.values())


def _differing_parameters(group: Sequence[ReportedSet]) -> set[str]:
    names = {name for one in group for name in one.parameters}
    return {name for name in names if len({str(one.parameters.get(name)) for one in group}) > 1}


def _told(one: ReportedSet, names: Iterable[str]) -> list[str]:
    return [f"{name} {one.parameters.get(name, '-')}" for name in sorted(names)]


def _renamed(one: ReportedSet, additions: Sequence[str]) -> ReportedSet:
    if not additions:
        return one
    method = f"{one.method} ({', '.join(additions)})"
    return replace(one, method=method, name=f"{method}, IPC {one.ipc}")


# What a moved, replaced or damaged artifact raises on the way in.
UNREADABLE = (CoresetError, OSError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSet:
    """A reported set that is still where it was, with its images."""

    reported: ReportedSet
    condensed: CondensedSet


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundScores:
    """One score of every image of a data set."""

    score: str
    digest: str
    """Digest of the scores artifact."""
    dataset: Dataset
    values: NDArray[np.float32]
    """In id order."""

    @property
    def easiness(self) -> NDArray[np.float32]:
        """Turn the score so that low is hard."""
        return easiness(self.score, self.values)

    @property
    def low_is_hard(self) -> bool:
        """Test whether the hard end of the score is its low end."""
        return SCORES[self.score].low_is_hard


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was found, and one line on each thing that was not."""

    sets: tuple[FoundSet, ...]
    scores: tuple[FoundScores, ...]
    notices: tuple[str, ...]

    def coresets_of(self, scores: FoundScores) -> list[FoundSet]:
        """Coresets of the scored data, those chosen by this very score first."""
        identity = scores.dataset.manifest.identity
        found = [
            one
            for one in self.sets
            if one.condensed.info.kind == "coreset"
            and one.condensed.info.source_identity == identity
        ]
        return sorted(found, key=lambda one: not was_chosen_by(one, scores))


def was_chosen_by(found: FoundSet, scores: FoundScores) -> bool:
    """Test whether a set was selected on this score of this scores artifact."""
    ancestor = found.condensed.provenance.ancestor("scores")
    same = ancestor is not None and ancestor["digest"] == scores.digest
    return same and found.condensed.info.parameters.get("score") == scores.score


def gather(results: Path, sets: Iterable[ReportedSet], data: Path | None) -> Evidence:
    """Open every reported set and the scores behind it.

    Args:
        results: The results directory; the sets' paths are relative to it.
        sets: What the rows speak of.
        data: Where the data set of the coresets lies now, if it was moved.
    """
    found: list[FoundSet] = []
    scores: dict[tuple[str, str], FoundScores] = {}
    notices: list[str] = []
    for one in sets:
        try:
            condensed = _opened(results, one, data)
        except UNREADABLE as error:
            notices.append(f"{one.data}, {one.name}: its images are left out, for {error}")
            continue
        found.append(FoundSet(reported=one, condensed=condensed))
        try:
            behind = _scores_behind(condensed, known=scores)
        except UNREADABLE as error:
            notices.append(f"{one.data}, {one.name}: its scores are left out, for {error}")
            continue
        if behind is not None:
            scores[behind.digest, behind.score] = behind
    return Evidence(
        sets=tuple(found), scores=tuple(scores.values()), notices=tuple(dict.fromkeys(notices))
    )


def _opened(results: Path, reported: ReportedSet, data: Path | None) -> CondensedSet:
    path = (results.resolve() / reported.path).resolve()
    try:
        condensed = open_set(path)
    except UsageError:
        if data is None or not path.is_dir():
            raise
        condensed = open_set(path, data=data)
    if condensed.provenance.digest != reported.digest:
        raise UsageError(
            f"{path} holds another set by now; train on that one, or restore the old one"
        )
    return condensed


def _scores_behind(
    condensed: CondensedSet, known: dict[tuple[str, str], FoundScores]
) -> FoundScores | None:
    """Open the scores that a coreset was chosen by; None if it was chosen without."""
    recorded, score = (
        condensed.provenance.ancestor("scores"),
        condensed.info.parameters.get("score"),
    )
    if recorded is None or score is None:
        return None
    digest = str(recorded["digest"])
    if (digest, score) in known:
        return known[digest, score]
    directory = locate(condensed.path, "scores")
    if directory is None or Provenance.read(directory).digest != digest:
        raise UsageError(f"{directory} does not hold the scores of this set any more")
    dataset = condensed.dataset
    values = ScoreTable(path=directory, dataset=dataset).values(score)
    return FoundScores(score=score, digest=digest, dataset=dataset, values=values)
