"""Cost of accumulating all scores, and of the steps from a CPU to a GPU.

    python -m coreset.bench.dynamics [--part step peers ...]

- ``step``: ``Dynamics.update`` beside the training step whose logits it takes.
- ``peers``: samples per second beside the package ``aum``, on the same logits.
- ``epoch``: a whole epoch of ImageNet's size, with its end and its commit.
- ``graph``: graphs, kernels, passes over the logits, host synchronisations. Nothing is timed.
- ``profile``: time of a training step by kind of work.
- ``arithmetic``: operations and bytes of a training step, counted on tensors without values.

Writes ``bench/results/dynamics.jsonl``, keeping the records of parts that were not run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.docs import Block, Table, machine, markdown, optional
from coreset.bench.dynamics_counts import (
    GROUPS,
    OTHER,
    arithmetic,
    compiled_graph,
    host_reads,
    profiled,
)
from coreset.bench.dynamics_peers import peers
from coreset.bench.dynamics_timing import Setting, epoch_costs, step_share
from coreset.bench.harness import ROOT, Row, records_of, run_parts

Part: TypeAlias = Literal["step", "peers", "epoch", "graph", "profile", "arithmetic"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicsBench:
    """Measure the accumulation of scores."""

    part: tuple[Part, ...] = PARTS
    """What to measure."""
    samples: int = 1_281_167
    """Of the data set; the default is ImageNet's training set."""
    classes: int = 1000
    """Of the logits."""
    batch: int = 256
    """Rows of a batch of logits."""
    size: int = 64
    """Side of the images of the training step, in pixels."""
    repeats: int = 7
    """Timed rounds, after one that warms up."""
    work: Path = ROOT / "runs"
    """Folder to commit in. What is made there is removed."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        self.work.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            samples=self.samples,
            classes=self.classes,
            batch=self.batch,
            size=self.size,
            repeats=self.repeats,
            work=self.work,
        )
        rows: Mapping[Part, Callable[[Setting], Iterator[Row]]] = {
            "step": step_share,
            "peers": peers,
            "epoch": epoch_costs,
            "graph": _graph,
            "profile": profiled,
            "arithmetic": arithmetic,
        }
        parts = {part: partial(rows[part], setting) for part in self.part}
        run_parts("dynamics", parts, dry=self.dry)


def _graph(setting: Setting) -> Iterator[Row]:
    yield compiled_graph(setting)
    yield from host_reads(setting)


def _of(part: str) -> list[Row]:
    return records_of(f"dynamics.{part}")


def _circumstances() -> str:
    row = _of("step")[0]
    sizes = "{samples:,} samples, {classes:,} classes, batches of {batch}."
    threads = f"{row['threads']} threads, "
    return f"{machine(row, threads)}. {sizes.format_map(row)}"


def _peers() -> Iterator[Row]:
    for row in _of("peers"):
        failed = row.get("absent") or (f"wrong: {row['failed']}" if "failed" in row else "")
        cells = {"speed": failed, "ms": "", "ratio": "", "aim": ""}
        if not failed:
            ms = [1e3 * seconds * row["batch"] / row["images"] for seconds in row["seconds"]]
            ratio = row["speed_over"].get("aum")
            cells = {
                "speed": f"{row['images_per_second']:,.0f}",
                "ms": f"{median(ms):.3f} ({min(ms):.3f}-{max(ms):.3f})",
                "ratio": f"{ratio:.1f}" if ratio else "",
                "aim": f"{row['goal']:.0f}" if row["goal"] else "",
            }
        yield row | cells


def _seconds(row: Row) -> str:
    low, middle, high = (row[f"{name}_ms"] / 1e3 for name in ("min", "median", "max"))
    return row["failed"] or f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _state() -> str:
    row = _of("epoch")[0]
    return (
        f"The state of {row['samples']:,} samples is {row['state_bytes'] / 1e6:.1f} MB (goal: "
        f"under {row['bytes_goal'] / 1e6:.0f} MB), whatever the classes and epochs. The logits of "
        f"60 epochs, which CCS's code writes to files as float16, are "
        f"{row['reference_bytes'] / 1e9:.0f} GB."
    )


def _counts() -> Iterable[Row]:
    rows = {row["name"]: row for row in _of("graph")}
    compiled, network = rows["compiled accumulation"], rows["compiled network"]
    counted: dict[str, tuple[int, str]] = {
        "passes over the logits": (compiled["passes"], "at most 3"),
        "graphs of the accumulation": (compiled["graphs"], "1"),
        "the same, if the last batch is short": (compiled["graphs_with_short_batch"], ""),
        "fused groups of loops (`generated_kernel_count`)": (compiled["kernels"], "a handful"),
        "functions that they are generated into, for a CPU": (compiled["functions"], ""),
        "operators that are not compiled": (len(compiled["fallbacks"]), "0"),
        "graph breaks of the accumulation": (compiled["graph_breaks"], "0"),
        "graphs of ResNet-18": (network["graphs"], "1"),
        "graph breaks of ResNet-18": (network["graph_breaks"], "0"),
    }
    for name in ("accumulation", "training step"):
        waits = len(rows[f"waits of the {name}"]["host_reads"])
        counted[f"host synchronisations of the {name}, per batch"] = waits, "0"
    return ({"what": what, "counted": n, "goal": goal} for what, (n, goal) in counted.items())


def _profile() -> str:
    rows = _of("profile")
    groups = sorted(GROUPS, key=lambda group: group != "matrix arithmetic")  # it comes first

    def shares(group: str) -> list[float]:
        seconds = (row["seconds_by_group"] for row in rows)
        return [each.get(group, 0) / sum(each.values()) for each in seconds]

    lines = [[group, *(f"{share:.1%}" for share in shares(group))] for group in (*groups, OTHER)]
    outside = (f"{1 - share:.1%}" for share in shares("matrix arithmetic"))
    lines.append(["all but matrix arithmetic", *outside])
    steps = (f"{row['wall_seconds'] / row['steps']:.2f} s" for row in rows)
    lines.append(["the whole step, profiled", *steps])
    return markdown(["kind of work", *(f"{row['size']} px" for row in rows)], lines)


def _costs() -> dict[int, Row]:
    """Return the cost of a training step by size of its images."""
    return {row["size"]: row for row in _of("arithmetic") if row["name"] == "arithmetic"}


def _weights() -> str:
    row = next(iter(_costs().values()))
    return (
        f"Weights: {row['parameter_bytes'] / 1e6:.1f} MB in float32, momentum: "
        f"{row['optimiser_bytes'] / 1e6:.1f} MB; weights, gradients and the optimiser move "
        f"{row['bytes_per_step'] / 1e9:.2f} GB per step, whatever its batch."
    )


def _projections() -> list[Row]:
    return [row for row in _of("arithmetic") if row["name"] == "projection"]


def _total(projection: Row) -> tuple[float, float]:
    """Return operations and bytes of all epochs of a recipe."""
    costs, n = _costs(), projection["samples"]
    epochs = [costs[size] for size in projection["sizes"]]
    steps = -(-n // projection["batch"])
    flops = sum(n * cost["flops_per_image"] for cost in epochs)
    n_bytes = sum(n * cost["bytes_per_image"] + steps * cost["bytes_per_step"] for cost in epochs)
    return flops, n_bytes


def _projection() -> str:
    """Project minutes on a GPU from operations and bytes."""
    lines: list[Sequence[str]] = []
    for row in _projections():
        flops, n_bytes = _total(row)
        sizes = sorted(set(row["sizes"]))
        sides = "-".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
        minutes = [flops / (share * row["peak_flops"]) / 60 for share in row["shares"]]
        minutes.append(n_bytes / row["peak_bytes"] / 60)
        epochs = f"{len(row['sizes'])} x {sides} px"
        lines.append((row["recipe"], epochs, f"{flops:.2g}", *(f"{each:.0f}" for each in minutes)))
    shares = [f"minutes at {share:.0%} of the peak" for share in _projections()[0]["shares"]]
    header = ("recipe", "epochs", "FLOP", *shares, "minutes if only memory bounds, nothing fused")
    return markdown(header, lines)


def _assumed() -> str:
    row = _projections()[0]
    return (
        f"Assumed of one {row['gpu']} (the vendor's figures, not ours): "
        f"{row['peak_flops'] / 1e12:.0f} TFLOP/s in dense bfloat16 and "
        f"{row['peak_bytes'] / 1e12:.1f} TB/s of memory; {row['samples']:,} images."
    )


BLOCKS: Mapping[str, Block] = {
    "dynamics_circumstances": _circumstances,
    "dynamics_step": Table(
        "dynamics.step",
        {
            "what": "{name}",
            "ms per batch": "{median_ms:.2f} ({min_ms:.2f}-{max_ms:.2f})",
            "share of the step": optional("share", "{share:.2%}"),
            "goal": optional("goal", "at most {goal:.0%}"),
        },
    ),
    "dynamics_peers": Table(
        _peers,
        {
            "what": "{contender} ({role})",
            "samples/s": "{speed}",
            "ms per batch": "{ms}",
            "times the speed of `aum`": "{ratio}",
            "goal": "{aim}",
        },
    ),
    "dynamics_epoch": Table(
        "dynamics.epoch",
        {
            "what": "{name}",
            "seconds": _seconds,
            "us per sample": "{microseconds_per_sample:.2f}",
        },
    ),
    "dynamics_state": _state,
    "dynamics_graph": Table(_counts, {"what": "{what}", "counted": "{counted}", "goal": "{goal}"}),
    "dynamics_profile": _profile,
    "dynamics_arithmetic": Table(
        lambda: _costs().values(),
        {
            "size": "{size} px",
            "GFLOP per image": lambda row: f"{row['flops_per_image'] / 1e9:.2f}",
            "MB moved per image": lambda row: f"{row['bytes_per_image'] / 1e6:.0f}",
            "FLOP per byte": lambda row: f"{row['flops_per_image'] / row['bytes_per_image']:.0f}",
            "kB of pixels": lambda row: f"{row['pixel_bytes'] / 1e3:.1f}",
            "GB of pixels in all": lambda row: f"{row['pixel_bytes'] * row['samples'] / 1e9:.0f}",
        },
    ),
    "dynamics_weights": _weights,
    "dynamics_projection": _projection,
    "dynamics_assumed": _assumed,
}


if __name__ == "__main__":
    tyro.cli(DynamicsBench).run()
