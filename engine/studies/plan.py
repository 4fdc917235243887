"""Plan of a study: the commands that its recipe stands for, each once, after what they need.

A command's key is the digest of its verb, the fields that shape its output, and the keys of its
inputs. Names of outputs end in it, so that what a changed recipe no longer means is left alone and
whatever does not hang on the change is found again. The order of the recipe changes nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from coreset.engine.studies.recipe import TRAIN, VAL, WITH_IPC, Recipe, Step, Table
from coreset.shards.errors import UsageError
from coreset.shards.format.files import digest_of

Kind = Literal["data", "steps", "sets", "cells", "measures", "reports"]
SHARED: tuple[Kind, ...] = ("data", "steps", "sets")
"""Kinds whose outputs are artifacts; those of the others are rows and pages."""
KEY_DIGITS = 10
RUNTIME = ("device", "workers", "slots", "compile")
"""Options that say where and how fast, and do not shape the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Command of a study and what it leaves: an artifact, a row of results, or a page."""

    kind: Kind
    key: str
    out: Path
    """Artifact, results folder of a row, or page."""
    name: str = ""
    """Readable, and unique in the study."""
    command: tuple[str, ...] = ()
    """Words after ``coreset``; none for a packed data set that is there already."""
    needs: tuple[str, ...] = ()
    """Names of the nodes whose outputs it reads."""
    group: str = ""
    """Place in the recipe, and what else decides the cost: ``sets.random ipc 10``."""
    row: tuple[Any, ...] = ()
    """Set, validation set, student and seed of the row of a cell; the first two of a measure."""


def plan_study(recipe: Recipe, run: Path) -> tuple[Node, ...]:
    """Return the nodes of a study whose outputs lie in ``run``, each after those it needs."""
    planner = _Planner(recipe, run)
    for data, protocol in product(sorted(recipe.data), sorted(recipe.protocols)):
        for ipc, condensed in product(sorted(recipe.ipcs), sorted(recipe.sets)):
            planner.add_cells(data, protocol, ipc, condensed)
    for protocol in sorted(recipe.protocols) if recipe.report is not None else ():
        planner.add_report(protocol)
    return tuple(planner.nodes.values())


def _key(*parts: Any) -> str:  # noqa: ANN401 - of JSON
    return digest_of({"parts": parts})


@dataclass(frozen=True, slots=True)
class _Planner:
    recipe: Recipe
    run: Path
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    names: dict[str, str] = field(default_factory=dict[str, str])
    """By key."""
    known: dict[tuple[str, str, int], Node] = field(
        default_factory=dict[tuple[str, str, int], Node]
    )

    def add_cells(self, data: str, protocol: str, ipc: int, condensed: str) -> None:
        """Add what trains on a set under a protocol, and what measures it beside."""
        made, val = self.artifact(condensed, data, ipc), self.artifact(VAL, data, ipc)
        results, label = self.results(protocol), f"{data}-{condensed}-ipc{ipc}-{protocol}"
        places = (str(made.out), str(val.out), str(results))
        given = Words.of(self.recipe.protocols[protocol], self, data, ipc)
        key = _key(made.key, val.key, given.key)
        node = Node(kind="cells", key=key, out=results, row=(made.out, val.out))
        for student, seed in product(sorted(self.recipe.students), sorted(self.recipe.seeds)):
            who = ("--student", student, "--seed", str(seed), "--repeats", "1")
            cell = replace(
                node, key=_key("train", key, student, seed), row=(*node.row, student, seed),
                command=("train", *places, *given.words, *who),
                needs=(made.name, val.name, *given.needs),
                group=f"protocols.{protocol} {student} ipc {ipc}",
            )  # fmt: skip
            self._add(f"{label}-{re.sub('[:/]', '-', student)}-seed{seed}", cell)
        if self.recipe.measure is not None:
            given = Words.of(self.recipe.measure, self, data, ipc)
            measure = replace(
                node, kind="measures", key=_key("measure", key, given.key), group="measure",
                command=("measure", *places, *given.words),
                needs=(made.name, val.name, *given.needs),
            )  # fmt: skip
            self._add(f"{label}-measure", measure)

    def add_report(self, protocol: str) -> None:
        """Add the report of a protocol, which comes after all its rows."""
        results = self.results(protocol)
        page = self.run / f"report-{results.name}.html"
        words = Words.of(self.recipe.report or {}, self, "", 0).words
        needs = tuple(node.name for node in self.nodes.values() if node.out == results)
        key = _key("report", sorted(needs), words)
        command = ("report", str(results), str(page), *words)
        report = Node(
            kind="reports", key=key, command=command, out=page, needs=needs, group="report"
        )
        self._add(f"report-{protocol}", report)

    def results(self, protocol: str) -> Path:
        """Return the results folder of a protocol: rows of other options lie in another."""
        key = _key(_defined(self.recipe, self.recipe.protocols[protocol]))
        return self.run / "results" / f"{protocol}-{key[:KEY_DIGITS]}"

    def artifact(self, name: str, data: str, ipc: int) -> Node:
        """Return the node of ``@name`` for a data set and IPC, adding it and what it needs."""
        if (known := self.known.get((name, data, ipc))) is None:
            known = self.known[name, data, ipc] = self._artifact(name, data, ipc)
        return known

    def value(self, value: Any, data: str, ipc: int) -> tuple[str, Any, str]:  # noqa: ANN401
        """Return a value as a word, what it means for a key, and the name of a node it needs."""
        text = str(value).replace("{ipc}", str(ipc)).replace("{data}", data)
        if isinstance(value, str) and text.startswith("@"):
            node = self.artifact(text[1:], data, ipc)
            return str(node.out), ["@", node.key], node.name
        return text, value if type(value) in {bool, int, float} else text, ""

    def _artifact(self, name: str, data: str, ipc: int) -> Node:
        recipe, label = self.recipe, f"{data}-{name}"
        if name in {TRAIN, VAL}:
            kind, step, group = "data", recipe.data[data][name], f"data.{data}.{name}"
        elif name in recipe.steps:
            kind, step, group = "steps", recipe.steps[name], f"steps.{name}"
        else:
            kind, step, group = "sets", recipe.sets[name], f"sets.{name} ipc {ipc}"
            label += f"-ipc{ipc}"
        if not step.verb:
            there = Path(step.inputs[0])
            return self._add(label, Node(kind=kind, key=_key(step.inputs), out=there, group=group))
        asked = {"ipc": ipc} if kind == "sets" and step.verb in WITH_IPC else {}
        inputs = Words.of({"": list(step.inputs)}, self, data, ipc)
        given = Words.of({**step.options, **asked}, self, data, ipc)
        key = _key(step.verb, inputs.key, given.key)
        out = self.run / kind / f"{label}-{key[:KEY_DIGITS]}"
        command = (*step.verb.split(), *inputs.words, str(out), *given.words)
        needs = (*inputs.needs, *given.needs)
        return self._add(
            label, Node(kind=kind, key=key, command=command, out=out, needs=needs, group=group)
        )

    def _add(self, label: str, node: Node) -> Node:
        name = f"{label}-{node.key[:KEY_DIGITS]}"
        if (other := self.names.setdefault(node.key, name)) != name:
            raise UsageError(f"{name} and {other} are the same command; remove one of them")
        return self.nodes.setdefault(name, replace(node, name=name))


@dataclass(frozen=True, slots=True)
class Words:
    """Options as words of a command, as what they mean for its key, and what they need."""

    words: tuple[str, ...]
    key: Mapping[str, Any]
    needs: tuple[str, ...]

    @staticmethod
    def of(options: Table, planner: _Planner, data: str, ipc: int) -> "Words":
        """Put the outputs of other commands in the place of ``@NAME``, choose values by IPC."""
        words, key, needs = list[str](), dict[str, Any](), list[str]()
        for name in sorted(options):
            given = options[name]
            if isinstance(given, dict) and (given := given.get(str(ipc))) is None:
                raise UsageError(f"{name} has no value for IPC {ipc}; name one for each")
            values = given if isinstance(given, list) else [given]
            parts = [planner.value(value, data, ipc) for value in values]
            words += _flagged(name, given, [word for word, _, _ in parts])
            needs += [need for _, _, need in parts if need]
            if name not in RUNTIME:
                key[name] = [meaning for _, meaning, _ in parts]
        return Words(tuple(words), key, tuple(needs))


def _flagged(name: str, value: Any, shown: list[str]) -> Iterator[str]:  # noqa: ANN401 - of TOML
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
        return
    if flag:
        yield f"--{flag}"
    yield from shown


def _defined(recipe: Recipe, value: Any) -> Any:  # noqa: ANN401 - of TOML
    """Return options with the tables of the recipe in the place of ``@NAME``, without data sets."""
    if isinstance(value, Mapping):
        kept = {name: one for name, one in value.items() if name not in RUNTIME}
        return {name: _defined(recipe, one) for name, one in kept.items()}
    if isinstance(value, list | tuple):
        return [_defined(recipe, one) for one in value]
    if isinstance(value, str) and value[:1] == "@" and value[1:] not in {TRAIN, VAL}:
        step: Step = recipe.steps.get(value[1:]) or recipe.sets[value[1:]]
        return [step.verb, _defined(recipe, step.inputs), _defined(recipe, step.options)]
    return value


def part_of(nodes: tuple[Node, ...], part: int, parts: int) -> tuple[Node, ...]:
    """Keep what is shared and the rows whose key falls to ``part`` of ``parts``, from 1."""
    return tuple(
        node
        for node in nodes
        if node.kind in SHARED or (node.kind != "reports" and int(node.key, 16) % parts == part - 1)
    )


def with_needs(nodes: tuple[Node, ...], names: set[str]) -> tuple[Node, ...]:
    """Keep the nodes that are named and what they need, however far back."""
    wanted = set(names)
    for node in reversed(nodes):  # each comes after those it needs
        if node.name in wanted:
            wanted.update(node.needs)
    return tuple(node for node in nodes if node.name in wanted)
