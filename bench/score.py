"""Speed of ``coreset score`` as a whole, and what its scores find.

    python -m coreset.bench.score [--data FOLDER] [--work FOLDER] [--part pipeline usual-loop ...]

- ``pipeline``: images/s from decoded pixels beside the same step on one resident batch.
- ``usual-loop``: speed and scores beside the usual torchvision loop in float32.
- ``waiting``: threads that spin or sleep while they wait, with and without a decoder.
- ``busy``: the same, training steps/s alone and beside one busy process.
- ``noise``: area under the ROC of every score for finding labels that were flipped on purpose.
- ``labels``: the same of out-of-fold scores, beside cleanlab on the same features.
- ``recipes``: agreement of cheaper recipes, by ``coreset scores compare``.

FOLDER of the data holds ``imagenette/train`` and ``labels/noisy_imagenette.csv``. The artifacts of
the last three stay in the folder of the work and are not made again, so an interrupted run
continues. Writes ``bench/results/score.jsonl``, keeping the records of parts that were not run.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.docs import Block, Table, machine, markdown, optional
from coreset.bench.harness import Row, records_of, run_parts
from coreset.bench.score_labels import OURS, THEIRS, labels
from coreset.bench.score_loops import usual_loop
from coreset.bench.score_noise import noise, recipes
from coreset.bench.score_pipeline import PIPELINE, RESIDENT, pipeline
from coreset.bench.score_training import Setting
from coreset.bench.score_waiting import CHOSEN, busy, waiting
from coreset.engine.runtime.progress import Display, choose_display
from coreset.engine.runtime.text import readable_seconds

Part: TypeAlias = Literal["pipeline", "usual-loop", "waiting", "busy", "noise", "labels", "recipes"]
PARTS: tuple[Part, ...] = get_args(Part)
ROWS: Mapping[Part, Callable[[Setting], Iterator[Row]]] = MappingProxyType(
    {
        "pipeline": pipeline,
        "usual-loop": usual_loop,
        "waiting": waiting,
        "busy": busy,
        "noise": noise,
        "labels": labels,
        "recipes": recipes,
    }
)
SHOWN = ("aum", "aum_logit", "el2n", "forgetting_toneva", "loss_mean", "dual", "loss_final")
"""Scores of the tables of areas and agreements that have a column; the records hold all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBench(Setting):
    """Measure scoring."""

    part: tuple[Part, ...] = PARTS
    """What to measure."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        # Features of an earlier run would bring the time that they took then.
        os.environ["CORESET_CACHE"] = str(self.work.resolve() / "cache")
        setting = replace(
            self,
            data=self.data.resolve(),
            work=self.work.resolve(),
            threads=len(os.sched_getaffinity(0)),
        )
        parts = {part: partial(ROWS[part], setting) for part in self.part}
        run_parts("score", parts, dry=self.dry)


def _of(part: str) -> list[Row]:
    return records_of(f"score.{part}")


def _pipeline() -> Iterable[Row]:
    rows = _of("pipeline")
    resident = {row["size"]: row for row in rows if row["name"] == RESIDENT}
    for row in rows:
        if row["name"] == PIPELINE:
            rate = resident[row["size"]]["images_per_second"]
            yield row | {"resident": rate, "low": min(row["shares"]), "high": max(row["shares"])}


def _parts() -> str:
    rows = [row for row in _of("pipeline") if row["name"] not in {PIPELINE, RESIDENT}]
    sizes = sorted({row["size"] for row in rows})
    costs = {(row["name"], row["size"]): row["us_per_image"] for row in rows}
    lines = [
        (name, *(f"{costs[name, size]:,.1f}" for size in sizes))
        for name in dict.fromkeys(row["name"] for row in rows)
    ]
    return markdown(("part alone, us per image", *(f"{size} px" for size in sizes)), lines)


def _usual_speed() -> str:
    rows = [row for row in _of("usual-loop") if row["what"] == "speed"]
    table = Table(
        lambda: (row | {"over": row["speed_over"].get("usual loop")} for row in rows),
        {
            "": "{contender}",
            "images/s": "{images_per_second:,.1f}",
            "times the usual loop": optional("over", "{over:.2f}"),
            "goal": lambda row: f"at least {row['goal']}" if row["role"] == "ours" else "",
        },
    )
    about = "{images:,} images a turn, crops of {size} px."
    return f"{table()}\n\n{about.format_map(rows[0])}"


def _usual_agreement() -> str:
    (row,) = [row for row in _of("usual-loop") if row["what"] == "agreement"]
    pairs = [(pair["kind"], f"{pair['spearman']:.3f}") for pair in row["pairs"]]
    means = ", ".join(f"{mean:.3f} {kind}" for kind, mean in row["means"].items())
    about = (
        "`{score}` of {images:,} images, {epochs} epochs at {size} px, batch {batch}; goal "
    ).format_map(row)
    met = "met" if row["met"] else "missed"
    return markdown(("pair", "Spearman"), pairs) + f"\n\n{about}{met}: means {means}."


def _other_way(row: Row) -> str:
    other = CHOSEN.get(row["contender"])
    return f"{row['speed_over'][other]:.2f}" if other else ""


def _area(name: str, field: str = "areas") -> Callable[[Row], str]:
    return lambda row: f"{row[field][name]:.4f}"


def _noise() -> str:
    rows = [row for row in _of("noise") if "seeds" in row or row["proxy"] != "linear"]
    shown = [name for name in SHOWN if name in rows[0]["areas"]]
    columns = {
        "flipped": "{percent} %",
        "training": _training,
        **{f"`{name}`": _area(name) for name in shown},
        "goal": optional("goal", "aum at least {goal}"),
    }
    return Table(lambda: rows, columns)()


def _training(row: Row) -> str:
    if "seeds" in row:
        return f"{row['recipe']}, median of {len(row['seeds'])} seeds"
    return f"{row['recipe']}, {row['epochs']} epochs at {row['size']} px, one seed"


def _noise_spread() -> str:
    rows = [row for row in _of("noise") if "seed" in row and row["proxy"] == "linear"]
    lines = [
        (f"{percent} %", *(f"{run['areas']['aum']:.4f} (seed {run['seed']})" for run in runs))
        for percent in dict.fromkeys(row["percent"] for row in rows)
        if (runs := [row for row in rows if row["percent"] == percent])
    ]
    header = ("flipped", *["area of `aum`"] * (len(lines[0]) - 1))
    seconds = sorted(row["wall_seconds"] for row in rows)
    cost = f"{readable_seconds(seconds[0])} to {readable_seconds(seconds[-1])}"
    return markdown(header, lines) + f"\n\nA scoring by the linear proxy took {cost}."


def _labels_medians() -> list[Row]:
    return [row for row in _of("labels") if "seeds" in row]


LABELS = Table(
    _labels_medians,
    {
        "flipped": "{percent} %",
        f"`{OURS}`": _area(OURS),
        "cleanlab": _area(THEIRS, "peer_areas"),
        "worst difference": "{worst_difference:+.4f}",
        "goal": "at least {goal}",
        **{f"`{name}`": _area(name) for name in ("margin_oof", "el2n", "aum")},
    },
)


def _labels() -> str:
    runs = [row for row in _of("labels") if "seed" in row]
    peer = ", ".join(f"{name} {number}" for name, number in runs[0]["peer"].items())
    seeds = len({row["seed"] for row in runs})
    about = f"Medians of {seeds} seeds, {runs[0]['folds']} folds; {peer}"
    return f"{LABELS()}\n\n{about}; {machine(runs[0])}."


def _agreements() -> Iterable[Row]:
    for row in _of("recipes"):
        by_score = {entry["score"]: entry for entry in row["agreement"]}
        yield from (row | by_score[name] for name in SHOWN if name in by_score)


def _number(field: str) -> Callable[[Row], str]:
    return lambda row: "" if row[field] is None else f"{row[field]:.3f}"


def _coresets() -> Iterable[Row]:
    for row in _of("recipes"):
        full, other = row["costs"]
        name = "wall_seconds_with_inputs"
        costs = {
            "scoring": readable_seconds(other["wall_seconds"]),
            "whole": readable_seconds(other[name]),
            "times": full[name] / other[name],
        }
        yield from (row | each | costs for each in row["coresets"])


BLOCKS: Mapping[str, Block] = {
    "score_pipeline": Table(
        _pipeline,
        {
            "crops": "{size} px",
            f"images/s {PIPELINE}": "{images_per_second:,.0f}",
            f"images/s of {RESIDENT}": "{resident:,.0f}",
            "share": "{share:.1%} ({low:.1%}-{high:.1%})",
            "goal": "at least {goal:.0%}",
        },
    ),
    "score_parts": _parts,
    "score_usual_speed": _usual_speed,
    "score_usual_agreement": _usual_agreement,
    "score_waiting": Table(
        "score.waiting",
        {
            "": "{contender}",
            "images/s": "{images_per_second:,.1f}",
            "chosen: times the other": _other_way,
        },
    ),
    "score_noise": _noise,
    "score_noise_spread": _noise_spread,
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
    "score_recipes": Table(
        _agreements,
        {
            "recipe": "{name}",
            "score": "`{score}`",
            "Spearman": _number("spearman"),
            "within classes": _number("spearman_within_class"),
            "area of full": _number("roc_area"),
            "area of this": _number("other_roc_area"),
        },
    ),
    "score_recipes_coresets": Table(
        _coresets,
        {
            "recipe": "{name}",
            "IPC": "{ipc}",
            "shared with full": "{share:.1%}",
            "if unrelated, same seed": "{unrelated:.1%}",
            "if drawn apart": "{chance:.1%}",
            "scoring": "{scoring}",
            "with its inputs": "{whole}",
            "times as fast as full": "{times:.1f}",
        },
    ),
    "score_circumstances": lambda: f"{machine(_of('noise')[0])}.",
}


if __name__ == "__main__":
    tyro.cli(ScoreBench).run()
