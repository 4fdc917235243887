"""Figures in README.md and docs/ come from ``bench/results/*.jsonl``, and from nowhere else.

    python -m coreset.bench.docs [--check]

A block between ``<!-- bench:NAME -->`` and ``<!-- /bench -->`` is replaced by what the function
NAME below makes of the recorded results.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro

from coreset.bench.decode_tables import DECODE_BLOCKS
from coreset.bench.dynamics_tables import DYNAMICS_BLOCKS
from coreset.bench.pack_tables import PACK_BLOCKS
from coreset.bench.pixels_tables import PIXEL_BLOCKS
from coreset.bench.record import read
from coreset.bench.robustness_table import (
    robustness,
    robustness_circumstances,
    robustness_summary,
)
from coreset.bench.score_scale_tables import SCORE_SCALE_BLOCKS
from coreset.bench.score_tables import SCORE_BLOCKS
from coreset.engine.report.results import comparisons
from coreset.engine.report.sets import catalogue
from coreset.engine.report.verdict import verdicts
from coreset.engine.runtime.text import readable_seconds

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "docs/first-results.md",
    "docs/packing.md",
    "docs/performance.md",
    "docs/pixels.md",
    "docs/robustness.md",
    "docs/scores.md",
)
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
STUDY_CLASSES = 10
PUBLISHED_NAME = {"random": "Random", "ccs-aum": "AUM"}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Docs:
    """Regenerate the figures of the documents."""

    check: bool = False
    """Change nothing; fail if a document is out of step."""

    def run(self) -> None:
        """Rewrite every block of every document, or compare."""
        for name in DOCUMENTS:
            path = ROOT / name
            before = path.read_text()
            after = BLOCK.sub(_replaced, before)
            if self.check and after != before:
                sys.exit(
                    f"{name} is out of step with bench/results: run python -m coreset.bench.docs"
                )
            if after != before:
                path.write_text(after)


def _replaced(match: re.Match[str]) -> str:
    return f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}"


def demo_output() -> str:
    """What the demo printed."""
    (one,) = read("demo")
    return f"```\n{one['output']}\n```"


def demo_time() -> str:
    """How long the demo took, and where."""
    (one,) = read("demo")
    return f"{readable_seconds(one['wall_seconds'])} on {_machine(one)}."


def first_path_accuracy() -> str:
    """Accuracy of random and CCS-AUM coresets beside the study's."""
    rows = _of("first_path.students")
    published = {(one["method"], int(one["ipc"])): one for one in _of("first_path.published")}
    table: list[Sequence[str]] = []
    for ipc in (10, 50):
        for method in ("random", "ccs-aum"):
            cell = [one for one in rows if (one["method"], one["ipc"]) == (method, ipc)]
            theirs = published[PUBLISHED_NAME[method], ipc]
            table.append(
                (
                    method,
                    str(ipc),
                    _mean_std([one["top1_best"] for one in cell]),
                    _mean_std([one["top1_last"] for one in cell]),
                    str(len(cell)),
                    str(cell[0]["epochs"]),
                    f"{theirs['mean']:.1f} ± {theirs['std']:.1f}",
                )
            )
    header = ("method", "IPC", "best top-1 %", "last top-1 %", "students", "epochs", "the study %")
    return _markdown(header, table)


def first_path_verdicts() -> str:
    """What these students can tell, in the words of the report."""
    rows = [one | {"set_path": ""} for one in _of("first_path.students")]
    compared = comparisons(rows, catalogue(rows))
    told = zip(compared, verdicts(compared), strict=True)
    return "\n".join(f"- IPC {one.setting.ipc}: {verdict.sentence}." for one, verdict in told)


def first_path_metrics() -> str:
    """Representativeness and diversity of the four coresets."""
    rows = _of("first_path.metrics")
    names = sorted({one["metric"] for one in rows})
    sets = sorted({(one["ipc"], one["method"]) for one in rows})
    values = {(one["ipc"], one["method"], one["metric"]): one["value"] for one in rows}
    table = [
        (method, str(ipc), *(f"{values[ipc, method, name]:.3f}" for name in names))
        for ipc, method in sets
    ]
    return _markdown(("method", "IPC", *(name.split("@")[0] for name in names)), table)


def first_path_flips() -> str:
    """Area under the ROC of each score against the flipped labels."""
    rows = _of("first_path.flips")
    scores = list(rows[0]["auc"])
    table = [
        (
            one["config"]["proxy"],
            str(one["config"]["epochs"]),
            *(f"{one['auc'][name]:.3f}" for name in scores),
        )
        for one in rows
    ]
    return _markdown(("proxy", "epochs", *scores), table)


def first_path_cost() -> str:
    """Wall time of every stage of two artifacts, and of one student."""
    rows = [
        (one["artifact"], one["stage"], one["wall_seconds"], one["images"])
        for one in _of("first_path.cost")
        if one["artifact"] in {"ccs-10", "noisy-linear"}
    ]
    students = _of("first_path.students")
    for ipc in (10, 50):
        cell = [one for one in students if one["ipc"] == ipc]
        seconds = fmean(one["train_seconds"] for one in cell)
        passes = cell[0]["epochs"] * ipc * STUDY_CLASSES
        rows.append((f"a student at IPC {ipc}", "train", seconds, passes))
        seconds = fmean(one["evaluation_seconds"] for one in cell)
        passes = cell[0]["evaluations"] * cell[0]["n_val"]
        rows.append((f"a student at IPC {ipc}", "evaluate", seconds, passes))
    table = [
        (what, stage, readable_seconds(wall), f"{passes:,}", f"{passes / wall:,.0f}")
        for what, stage, wall, passes in rows
    ]
    return _markdown(("what", "stage", "wall time", "image passes", "images/s"), table)


def first_path_machine() -> str:
    """Where the path was run."""
    return f"Measured on {_machine(_of('first_path.students')[0])}."


BLOCKS: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (
        demo_output,
        demo_time,
        first_path_accuracy,
        first_path_verdicts,
        first_path_metrics,
        first_path_flips,
        first_path_cost,
        first_path_machine,
        *PACK_BLOCKS,
        *DECODE_BLOCKS,
        *PIXEL_BLOCKS,
        *DYNAMICS_BLOCKS,
        *SCORE_SCALE_BLOCKS,
        *SCORE_BLOCKS,
        robustness,
        robustness_circumstances,
        robustness_summary,
    )
}


def _of(bench: str) -> list[Row]:
    return [one for one in read("first_path") if one["bench"] == bench]


def _machine(one: Row) -> str:
    hardware, versions = one["hardware"], one["versions"]
    return (
        f"{hardware['cores']} cores ({hardware['processor']}, {', '.join(hardware['bfloat16'])}), "
        f"{hardware['memory_gib']} GiB, no GPU, torch {versions['torch']}, {one['date']}, "
        f"commit {one['commit']}"
    )


def _mean_std(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(Docs).run()
