"""Renderer of the figures in README.md and docs/, which come from ``bench/results/*.jsonl`` alone.

    python -m coreset.bench.docs [--check]

The text between ``<!-- bench:NAME -->`` and ``<!-- /bench -->`` is replaced by the block NAME. Each
benchmark declares its blocks in ``BLOCKS``: tables with a specification of their columns, and
sentences.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TypeAlias

import tyro

from coreset.bench.harness import ROOT, Row, records_of

DOCUMENTS = (
    "README.md",
    "docs/benchmarks.md",
    "docs/pixels.md",
    "docs/selection.md",
    "docs/concepts.md",
    "docs/protocols.md",
    "docs/sets.md",
    "docs/methods.md",
)
# Imported by name when blocks are made, because these modules import the renderer.
BENCHMARKS = (
    "demo",
    "first_path",
    "pack",
    "decode",
    "selection",
    "similarity",
    "concepts",
    "concept_flips",
    "protocol_values",
    "student_study",
    "distill",
    "distilled_study",
    "ingest",
    "systems",
    "misratio",
    "pixels",
    "dynamics",
    "score",
    "score_scale",
    "students",
    "robustness.scoreboard",
)
PATTERN = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
Block: TypeAlias = Callable[[], str]
Cell: TypeAlias = str | Callable[[Row], str]
"""Format string over the fields of a row, or a function of the row."""


@dataclass(frozen=True, slots=True)
class Table:
    """Block of one line per record."""

    rows: str | Callable[[], Iterable[Row]]
    """Part of a benchmark whose records are the rows, or a function that returns the rows."""
    columns: Mapping[str, Cell]
    """Cell by header."""

    def __call__(self) -> str:
        """Render the table."""
        rows = records_of(self.rows) if isinstance(self.rows, str) else self.rows()
        lines = ([text_of(cell, row) for cell in self.columns.values()] for row in rows)
        return markdown([*self.columns], lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Docs:
    """Regenerate the figures of the documents."""

    check: bool = False
    """Change nothing; fail if a document is out of step."""

    def run(self) -> None:
        """Rewrite every block of every document, or compare."""
        known = blocks()
        for name in DOCUMENTS:
            path = ROOT / name
            before = path.read_text()
            after = PATTERN.sub(lambda match: f"{match[1]}{known[match[2]]()}\n{match[3]}", before)
            if self.check and after != before:
                sys.exit(
                    f"{name} is out of step with bench/results: run python -m coreset.bench.docs"
                )
            if after != before:
                path.write_text(after)


def blocks() -> dict[str, Block]:
    """Collect the blocks of all benchmarks."""
    modules = (import_module(f"coreset.bench.{name}") for name in BENCHMARKS)
    return {name: block for module in modules for name, block in module.BLOCKS.items()}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def text_of(cell: Cell, row: Row) -> str:
    """Render a cell."""
    return cell.format_map(row) if isinstance(cell, str) else cell(row)


def optional(field: str, cell: Cell) -> Cell:
    """Return a cell that is empty where a row has no such field, or None in it."""
    return lambda row: "" if row.get(field) is None else text_of(cell, row)


def absence(row: Row) -> str:
    """Return why a row has no speed; empty if it has one."""
    if "absent" in row:
        return f"absent: {row['absent']}"
    return f"failed: {row['failed']}" if row.get("failed") else ""


def if_present(cell: Cell, *, reason: bool = False) -> Cell:
    """Return a cell of a contender that ran; others give the reason or nothing."""

    def text(row: Row) -> str:
        absent = absence(row)
        return text_of(cell, row) if not absent else absent if reason else ""

    return text


def contender(row: Row) -> str:
    """Return the contender's name, marked if it is a limit."""
    return f"*{row['contender']}* (limit)" if row["role"] == "limit" else row["contender"]


SPREAD = "{median_seconds:.2f} ({min_seconds:.2f}-{max_seconds:.2f})"
"""Cell of seconds."""


def ratio(value: float | None) -> str:
    """Render a ratio, empty if there is none."""
    return "" if value is None else f"{value:.2f}"


def machine(row: Row, extra: str = "", *, features: bool = True) -> str:
    """Describe where a record was measured."""
    hardware = row["hardware"]
    names = [hardware["processor"], *(hardware["bfloat16"] if features else ())]
    place = f"{hardware['cores']} cores ({', '.join(names)}), "
    return place + (
        f"{hardware['memory_gib']} GiB, no GPU, {extra}torch {row['versions']['torch']}, "
        f"{row['date']}, commit {row['commit']}"
    )


def race_circumstances(rows: Sequence[Row], workers: str, others: Iterable[Row] = ()) -> str:
    """Describe inputs, machine and peers of races; ``others`` are records with more peers."""
    row = next(row for row in rows if "seconds" in row)
    notes = dict.fromkeys(f"{row['input']}: {row['input_note']}" for row in rows)
    versions: dict[str, str] = {}
    for each in (*rows, *others):
        versions |= each.get("peer_versions", {})
    peers = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
    hardware = "{processor}, {cores} cores, {memory_gib} GiB".format_map(row["hardware"])
    return (
        f"{'; '.join(notes)}. {row['threads']} {workers}, {len(row['seconds'])} rounds by turns "
        f"({hardware}), {row['date']}, commit {row['commit']}, torch {row['versions']['torch']}. "
        f"Peers: {peers}."
    )


if __name__ == "__main__":
    tyro.cli(Docs).run()
