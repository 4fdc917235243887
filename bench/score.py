"""Speed of ``coreset score`` as a whole, and what its scores find.

    python -m coreset.bench.score [--data FOLDER] [--work FOLDER] [--part usual-loop busy labels]

- ``usual-loop``: images/s beside the usual torchvision loop in float32, and beside the same step
  on one resident batch.
- ``busy``: threads that spin or sleep while they wait, alone and beside one busy process.
- ``labels``: area under the ROC of every score for finding labels that were flipped on purpose, and
  of out-of-fold scores beside cleanlab on the same features. Its artifacts stay in the folder of
  the work and are not made again, so an interrupted run continues.

Writes ``bench/results/score.jsonl``, keeping the records of parts that were not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.docs import Block, Table, machine, optional
from coreset.bench.harness import ROOT, Row, records_of
from coreset.bench.score_labels import OURS, THEIRS, labels
from coreset.bench.score_loops import USUAL, Setting, busy, usual_loop

Part: TypeAlias = Literal["usual-loop", "busy", "labels"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBench(Setting):
    """Measure scoring."""

    work: Path = ROOT / "runs" / "score"
    """Folder of the artifacts, which are kept."""
    part: tuple[Part, ...] = PARTS
    """Parts to measure."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        rows = {"usual-loop": usual_loop, "busy": busy, "labels": labels}
        self.record_parts("score", {part: partial(rows[part], self) for part in self.part})


def _usual_speed() -> str:
    rows = [row for row in records_of("score.usual-loop") if row["what"] == "speed"]
    table = Table(
        lambda: (row | {"over": row["speed_over"].get(USUAL)} for row in rows),
        {
            "": "{contender}",
            "images/s": "{images_per_second:,.1f}",
            "times the usual loop": optional("over", "{over:.2f}"),
            "goal": lambda row: f"at least {row['goal']}" if row["role"] == "ours" else "",
        },
    )
    about = "{images:,} images a turn, crops of {size} px."
    return f"{table()}\n\n{about.format_map(rows[0])}"


def _labels_medians() -> list[Row]:
    return [row for row in records_of("score.labels") if "seeds" in row]


LABELS = Table(
    _labels_medians,
    {
        "flipped": "{percent} %",
        f"`{OURS}`": f"{{areas[{OURS}]:.4f}}",
        "cleanlab": f"{{peer_areas[{THEIRS}]:.4f}}",
        "worst difference": "{worst_difference:+.4f}",
        "goal": "at least {goal}",
        **{f"`{name}`": f"{{areas[{name}]:.4f}}" for name in ("margin_oof", "el2n", "aum")},
    },
)


def _labels() -> str:
    runs = [row for row in records_of("score.labels") if "seed" in row]
    peer = ", ".join(f"{name} {number}" for name, number in runs[0]["peer"].items())
    seeds = len({row["seed"] for row in runs})
    about = f"Medians of {seeds} seeds, {runs[0]['folds']} folds; {peer}"
    return f"{LABELS()}\n\n{about}; {machine(runs[0])}."


BLOCKS: Mapping[str, Block] = {
    "score_usual_speed": _usual_speed,
    "score_labels": _labels,
    "score_labels_issues": Table(
        _labels_medians,
        {
            "flipped": "{percent} %",
            "precision": "{issues[precision]:.1%}",
            "recall": "{issues[recall]:.1%}",
            "precision of cleanlab": "{peer_issues[precision]:.1%}",
            "recall of cleanlab": "{peer_issues[recall]:.1%}",
        },
    ),
}


if __name__ == "__main__":
    tyro.cli(ScoreBench).run()
