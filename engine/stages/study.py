"""``coreset study``: plan and run the commands of a recipe, tell how far they are."""

import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from coreset.engine.artifacts.writer import lock, require_output
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds
from coreset.engine.stages.options import Result
from coreset.engine.studies.driver import Driver, last_failures
from coreset.engine.studies.executors import EXECUTORS, gpu_names
from coreset.engine.studies.outputs import expectations, finished, is_published
from coreset.engine.studies.plan import SHARED, Node, part_of, plan_study, with_needs
from coreset.engine.studies.recipe import read_recipe
from coreset.shards.errors import CoresetError, DataError, MachineError, UsageError
from coreset.shards.format.files import missing

SHOWN = 5  # names of what hangs on a failure
_ERRORS: dict[int, type[CoresetError]] = {2: UsageError, 3: DataError}
RecipeName: TypeAlias = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
RunPath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Print what a study consists of, what is there, and what the rest is expected to take.

    Changes nothing. Expected are means of what the same RUN has done, by place in the recipe.
    """

    recipe: RecipeName
    """TOML file, or the name of a recipe that is shipped: smoke, table4."""
    run_folder: RunPath
    """Folder of the study."""

    def run(self) -> Result:
        """Plan, look for outputs, add up what those of the same kind have cost."""
        nodes = _planned(self.recipe, self.run_folder)
        _require_sound(nodes)
        done = finished(nodes)
        groups = expectations(nodes, done)
        rows = [
            (each.group, f"{each.n:,}", f"{each.n_done:,}",
             "unknown" if each.seconds is None else readable_seconds(each.seconds),
             readable_bytes(each.n_bytes))
            for each in groups
        ]  # fmt: skip
        seconds = sum(each.seconds or 0.0 for each in groups)
        unknown = sum(each.n - each.n_done for each in groups if each.seconds is None)
        n_bytes = readable_bytes(sum(each.n_bytes or 0.0 for each in groups))
        rest = f", and {unknown:,} commands of unknown time" if unknown else ""
        lines = (
            *aligned(("commands", "all", "there", "expected", "disk"), rows),
            f"left, one after the other: {readable_seconds(seconds)}, {n_bytes}{rest}",
            f"{_counted(nodes, done)}: {self.run_folder}",
            f"next: coreset study run {self.recipe} {self.run_folder}",
        )
        return Result(lines, {"run": str(self.run_folder), "groups": [*map(asdict, groups)]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run every command of a study whose output is not there yet, in the order of their needs.

    A command that fails is named with what hangs on it, and the rest goes on. The same command
    again continues, also after a kill. For example: coreset study run smoke RUN --slots 2.
    """

    recipe: RecipeName
    """TOML file, or the name of a recipe that is shipped: smoke, table4."""
    run_folder: RunPath
    """Folder of the study; made if absent."""
    limit: int | None = None
    """Commands to start at most."""
    slots: int = 0
    """Commands at a time, which share the cores; 0: one, or as many as there are GPUs."""
    executor: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(EXECUTORS)}}}")] = "local"
    """local: child processes on this machine."""
    part: str | None = None
    """Part I/N of the trainings, from 1/N to N/N, for as many drivers at once; without a report."""
    until: Literal["sets"] | None = None
    """sets: make only what trainings share: data sets, scores, teachers, sets."""
    timeout: float | None = None
    """Seconds after which a command is ended and tried again."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("slots", 0), ("timeout", 0)):
            if (value := getattr(self, name)) is not None:
                require_at_least(name, value, least)
        if self.executor not in EXECUTORS:
            choices = ", ".join(EXECUTORS)
            raise UsageError(f"executor must be one of {choices}, got {self.executor}")
        _ = self.share

    @property
    def share(self) -> tuple[int, int]:
        """``part`` as numbers."""
        first, _, n = (self.part or "1/1").partition("/")
        if not (first.isdecimal() and n.isdecimal() and 1 <= int(first) <= int(n)):
            raise UsageError(f"part must be I/N with I from 1 to N, got {self.part}")
        return int(first), int(n)

    def run(self) -> Result:
        """Plan, take the lock, start what is ready until nothing is left."""
        require_output(self.run_folder)
        nodes = self.chosen(_planned(self.recipe, self.run_folder))
        _require_sound(nodes)
        part = "-".join(["study", *map(str, self.share if self.part else ())])
        with lock(self.run_folder / part):
            driver = self._driver(nodes)
            driver.drive()
        return _outcome(self, nodes, driver)

    def chosen(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """Keep the nodes that this run is asked for."""
        if self.part is not None:
            nodes = part_of(nodes, *self.share)
        if self.until == "sets":
            nodes = tuple(node for node in nodes if node.kind in SHARED)
        return nodes

    def _driver(self, nodes: tuple[Node, ...]) -> Driver:
        gpus, cores = len(gpu_names()), len(os.sched_getaffinity(0))
        slots = self.slots or max(1, gpus)
        return Driver(
            nodes=nodes,
            done=finished(nodes),
            run=self.run_folder,
            executor=EXECUTORS[self.executor](slots),
            program=(sys.executable, "-m", "coreset"),
            cores=max(1, cores // slots),
            gpu=min(1.0, gpus / slots),
            timeout=self.timeout,
            limit=self.limit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(Run):
    """Run only what failed last, by the log of RUN, and what hangs on it but the report."""

    def chosen(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """Keep what failed last, and what hangs on it."""
        wanted = set(last_failures(self.run_folder))
        for node in nodes:
            if node.kind != "reports" and not wanted.isdisjoint(node.needs):
                wanted.add(node.name)
        return with_needs(Run.chosen(self, nodes), wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Tell how much of a study is there, and what failed last."""

    recipe: RecipeName
    """TOML file, or the name of a recipe that is shipped."""
    run_folder: RunPath
    """Folder of the study."""

    def run(self) -> Result:
        """Look for outputs, read the log."""
        nodes = _planned(self.recipe, self.run_folder)
        done, kinds = finished(nodes), Counter(node.kind for node in nodes)
        there = Counter(node.kind for node in nodes if node.name in done)
        failed = {n: e for n, e in last_failures(self.run_folder).items() if n not in done}
        rows = [(kind, f"{there[kind]:,}", f"{n:,}") for kind, n in kinds.items()]
        names = {node.name for node in nodes}
        lines = (
            *aligned(("kind", "there", "all"), rows),
            *(_told(name, end.exit_code, end.last_line) for name, end in failed.items()
              if name in names),
            f"{_counted(nodes, done)}: {self.run_folder}",
        )  # fmt: skip
        data = {"run": str(self.run_folder), "there": len(done), "all": len(nodes)}
        return Result(lines, data | {"failed": sorted(names & failed.keys())})


def _planned(recipe: str, run: Path) -> tuple[Node, ...]:
    nodes = plan_study(read_recipe(recipe), run)
    for node in nodes:
        if not node.command and not is_published(node):
            fault = missing(node.out, "name a packed data set", otherwise="is none")
            raise UsageError(f"{node.group}: {fault}")
    return nodes


def _require_sound(nodes: tuple[Node, ...]) -> None:
    """Let every verb check its options now, before hours of work; one command for each place."""
    parse = import_module("coreset.engine.cli").parse  # which lies above the stages
    for place, node in {node.group.split()[0]: node for node in nodes if node.command}.items():
        try:
            parse(node.command[0], node.command[1:])
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from error


def _counted(nodes: tuple[Node, ...], done: set[str]) -> str:
    cells = [node for node in nodes if node.kind == "cells"]
    n_done = sum(node.name in done for node in cells)
    return f"{n_done:,} of {len(cells):,} cells, {len(done):,} of {len(nodes):,} outputs are there"


def _told(name: str, exit_code: int, last_line: str) -> str:
    return f"failed: {name} (exit code {exit_code}): {last_line}"


def _outcome(stage: Run, nodes: tuple[Node, ...], driver: Driver) -> Result:
    lines, failed = list[str](), driver.failed
    for name, end in failed.items():
        blocked = [other for other, cause in driver.blocked.items() if cause == name]
        lines.append(_told(name, end.exit_code, end.last_line))
        if blocked:
            more = ", ..." if len(blocked) > SHOWN else ""
            lines.append(f"on it hang {len(blocked):,}: {', '.join(blocked[:SHOWN])}{more}")
    lines.append(f"{_counted(nodes, driver.done)}: {stage.run_folder}")
    pages = [str(node.out) for node in nodes if node.kind == "reports" and node.out.is_file()]
    if len(driver.done) == len(nodes) and pages:
        lines.append(f"next: open {' and '.join(pages)} in a browser")
    else:
        lines.append(f"next: coreset study run {stage.recipe} {stage.run_folder}")
    data = {"run": str(stage.run_folder), "there": len(driver.done), "all": len(nodes)}
    data |= {"failed": [*failed], "blocked": driver.blocked, "reports": pages}
    if not failed:
        return Result(tuple(lines), data)
    kind = _ERRORS.get(next(iter(failed.values())).exit_code, MachineError)
    n, logs = f"{len(failed):,} of {len(nodes):,} commands failed", stage.run_folder / "logs"
    return Result(tuple(lines), data, error=kind(f"{n}; mend what {logs} tells, run again"))


Study: TypeAlias = (
    Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Retry, tyro.conf.subcommand("retry")]
)
"""Subcommands of ``coreset study``."""
