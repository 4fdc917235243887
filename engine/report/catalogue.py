"""The condensed sets that results speak of, and the names that tell them apart.

A table has one column per method. Where one method was run in several ways on the same data at the
same IPC (two misratios, two proxies), pooling them would hide the difference, so the name of the
method says what differs: ``ccs-aum (misratio 0.3)``.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """The sets of all rows by digest, sorted by data, method (baseline first), IPC and seed."""
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
