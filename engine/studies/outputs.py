"""Outputs of a study's commands: which are there, and what those that are have cost.

There is no other state: an artifact is published whole under a name that ends in the key of its
command, and a row lies in the results folder of its protocol.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import PROVENANCE_NAME
from coreset.engine.evaluation.metrics import METRICS as REGISTRY
from coreset.engine.evaluation.result_tables import METRICS, SCHEMAS, STUDENTS
from coreset.engine.evaluation.row_files import read_parts
from coreset.engine.studies.plan import SHARED, Node

_TIMES = ("train_seconds", "evaluation_seconds")
_FREE = {"frechet": "fid", "fid": "fid", "kid": "kid"}
"""Groups of metrics whose names tell the backbone, by how the names begin."""


def is_published(node: Node) -> bool:
    """Tell whether the artifact of a node is there."""
    return (node.out / PROVENANCE_NAME).is_file()


def finished(nodes: Sequence[Node]) -> set[str]:
    """Return the names of the nodes whose outputs are there."""
    there = trained_seconds(nodes).keys()
    measured = _measured({node.out for node in nodes if node.kind == "measures"})
    done = {node.name for node in nodes if node.kind in SHARED and is_published(node)} | there
    for node in nodes:
        if node.kind == "measures":
            groups = measured.get((node.out, *map(_real, node.row)), set[str]())
            done |= {node.name} if _asked(node) <= groups else set()
    # A page is as new as the newest row; nodes come after those they need.
    for node in nodes:
        if node.kind == "reports" and done.issuperset(node.needs) and _is_newest(node):
            done.add(node.name)
    return done


def trained_seconds(nodes: Iterable[Node]) -> dict[str, float]:
    """Return what the students whose rows are there have taken, by the names of their nodes."""
    cells = [node for node in nodes if node.kind == "cells"]
    found: dict[tuple[Any, ...], float] = {
        (folder, _at(base, row["set_path"]), _at(base, row["val_path"]), *who): time
        for folder in {node.out for node in cells}
        for base in [os.path.realpath(folder)]
        for row in _columns(folder, STUDENTS, "set_path", "val_path", "student", "seed", *_TIMES)
        for who in [(row["student"], row["seed"])]
        for time in [sum(row[name] or 0.0 for name in _TIMES)]
    }
    keys = {node.name: (node.out, *map(_real, node.row[:2]), *node.row[2:]) for node in cells}
    return {name: found[key] for name, key in keys.items() if key in found}


def _measured(folders: Iterable[Path]) -> dict[tuple[Any, ...], set[str]]:
    """Return the groups of metrics that are there, by results folder, set and validation set."""
    stamped = {metric.stamp: metric.group for metric in REGISTRY.values()}
    groups: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for folder in folders:
        base = os.path.realpath(folder)
        for row in _columns(folder, METRICS, "set_path", "val_path", "metric", "backbone"):
            key = folder, _at(base, row["set_path"]), _at(base, row["val_path"])
            metric, backbone = row["metric"], (row["backbone"] or "").partition("@")[0]
            group = stamped.get(metric) or _FREE.get(metric.partition("@")[0].partition("_")[0], "")
            groups[key] |= {group, f"{group} {backbone}"}
    return groups


def _asked(node: Node) -> set[str]:
    """Return the groups that a measure is to make, with the backbone where it is named."""
    given = dict(zip(node.command, node.command[1:], strict=False))
    backbone, groups = given.get("--backbone", "auto"), given.get("--metrics", "coverage")
    return {f"{group.strip()} {backbone}".removesuffix(" auto") for group in groups.split(",")}


def _columns(folder: Path, table: str, *names: str) -> list[dict[str, Any]]:
    parts = read_parts(folder, table, SCHEMAS[table])
    return [row for part in parts for row in part.table.select(list(names)).to_pylist()]


@cache
def _real(path: Path) -> str:
    return os.path.realpath(path)


@cache
def _at(base: str, relative: str) -> str:
    return os.path.normpath(os.path.join(base, relative))  # noqa: PTH118 - a text, ten thousand times


def _is_newest(node: Node) -> bool:
    """Tell whether a page is there that is newer than the rows it shows."""
    results, page = Path(node.command[1]), node.out
    files = [*results.glob("*.parquet"), *results.glob("*.rows.jsonl")]
    newest = max((file.stat().st_mtime_ns for file in files), default=0)
    return page.is_file() and page.stat().st_mtime_ns >= newest


@dataclass(frozen=True, slots=True)
class Expected:
    """What the commands of one place in a recipe are expected to take."""

    group: str
    n: int
    n_done: int
    seconds: float | None
    """Of all that are not done, one after the other; None where none was ever done."""
    n_bytes: float | None


def expectations(nodes: Sequence[Node], done: set[str]) -> list[Expected]:
    """Estimate what is left by the means of what is done, group by group, in the plan's order."""
    seconds, groups = trained_seconds(nodes), dict[str, list[Node]]()
    for node in nodes:
        if node.command:
            groups.setdefault(node.group, []).append(node)
    return [_expected(group, members, done, seconds) for group, members in groups.items()]


def _expected(
    group: str, nodes: Sequence[Node], done: set[str], seconds: dict[str, float]
) -> Expected:
    there = [node for node in nodes if node.name in done]
    left = len(nodes) - len(there)
    costs = [(seconds[node.name], 0.0) for node in there if node.name in seconds]
    costs += [_own_cost(node.out) for node in there if node.kind in SHARED]
    if not costs:
        return Expected(group, len(nodes), len(there), None if left else 0.0, None)
    times, sizes = zip(*costs, strict=True)
    return Expected(group, len(nodes), len(there), left * fmean(times), left * fmean(sizes))


def _own_cost(artifact: Path) -> tuple[float, float]:
    """Return the seconds of all runs that made an artifact, and its bytes."""
    own = [line for line in read_ledger(artifact) if "artifact" not in line]
    n_bytes = own[-1].get("bytes_written", 0) if own else 0
    return sum(line.get("wall_seconds", 0.0) for line in own), n_bytes
