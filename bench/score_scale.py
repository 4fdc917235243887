"""Growth of time, memory and files of ``coreset score`` with the data set.

    python -m coreset.bench.score_scale [--part pixels linear]

- ``pixels``: synthetic images of few pixels through ``synth``, ``decode`` and ``score`` with
  ResNet-18.
- ``linear``: as many records as ImageNet has, through ``score --proxy linear``. Their features are
  drawn at random around the centres of 1,000 classes and lie where ``coreset embed`` leaves them.

Every command runs in a process of its own. Writes ``bench/results/score_scale.jsonl``, keeping the
records of parts that were not run.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.docs import Block, Table, if_present, machine
from coreset.bench.harness import ROOT, Row, records_of, run_parts
from coreset.bench.inputs import CLASSES
from coreset.bench.processes import (
    CORESET,
    environment_of,
    memory_of,
    options,
    tree_bytes,
    watch,
)
from coreset.bench.score_scale_inputs import WIDTH, write_features, write_records
from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.store import SCORES_NAME
from coreset.shards.format.files import temporary_name

Part: TypeAlias = Literal["pixels", "linear"]
PARTS: tuple[Part, ...] = get_args(Part)
GOAL_BYTES = 1_500_000_000
"""Memory above the data at every size."""
EVERY_SECONDS = 0.2
"""Between two looks at the memory; one look at a process of 1,500 maps takes some 10 ms."""
_SCORES = "scores"
_VERBS = ("synth", "decode", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreScaleBench:
    """Measure scoring at growing sizes."""

    part: tuple[Part, ...] = PARTS
    """What to measure."""
    images: tuple[int, ...] = (10_000, 30_000, 100_000)
    """Sizes of the synthetic data sets, growing."""
    pixel_epochs: int = 1
    """Epochs of ResNet-18."""
    pixel_batch: int = 1024
    """Images per step of ResNet-18."""
    side: int = 20
    """Side of the synthetic images in pixels."""
    crop: int = 17
    """Side of the crops in pixels."""
    records: tuple[int, ...] = (100_000, 400_000, 1_281_167)
    """Sizes of the data sets without pixels, growing."""
    linear_epochs: int = 3
    """Epochs of the linear proxy."""
    linear_batch: int = 4096
    """Records per step of the linear proxy."""
    final: bool = True
    """Evaluate every image once at the end, as ``coreset score`` does by default."""
    seed: int = 0
    """Of images, features and training."""
    work: Path = ROOT / "runs"
    """Folder to work in, of 5 GB at the given sizes. What is made there is removed."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        self.work.mkdir(parents=True, exist_ok=True)
        parts = {part: partial(self.rows, part) for part in self.part}
        run_parts("score_scale", parts, dry=self.dry)

    def rows(self, part: Part) -> Iterator[Row]:
        """Run a part at each of its sizes."""
        sizes = {"pixels": self.images, "linear": self.records}[part]
        for size in sizes:
            with (
                tempfile.TemporaryDirectory(dir=self.work.resolve()) as folder,
                environment_of({"CORESET_CACHE": f"{folder}/cache"}),
            ):
                rows = self.pixels if part == "pixels" else self.linear
                yield from rows(size, Path(folder))

    def pixels(self, images: int, folder: Path) -> Iterator[Row]:
        """Synthesise, decode and score small images with ResNet-18."""
        data, decoded, scores = (folder / name for name in ("data", "pixels", _SCORES))
        made = {"images": images, "size": self.side, "seed": self.seed}
        training = {
            "size": self.crop,
            "epochs": self.pixel_epochs,
            "batch": self.pixel_batch,
            "final": self.final,
            "seed": self.seed,
        }
        commands = (
            ([str(data), *options(made)], data),
            ([str(data), str(decoded), *options({"size": self.side})], decoded),
            ([str(data), str(scores), *options(training | {"pixels": decoded})], scores),
        )
        for verb, (arguments, out) in zip(_VERBS, commands, strict=True):
            about = training | {"proxy": "resnet18"} if verb == "score" else {}
            yield _watched(verb, arguments, out) | about | {"images": images}

    def linear(self, records: int, folder: Path) -> Iterator[Row]:
        """Score records with the linear proxy on features that are in the cache."""
        data, scores = folder / "data", folder / _SCORES
        spec = write_features(folder / "features", write_records(data, records), self.seed)
        training = {
            "proxy": "linear",
            "epochs": self.linear_epochs,
            "batch": self.linear_batch,
            "final": self.final,
            "seed": self.seed,
        }
        features = {"backbone": spec.backbone, "weights": spec.weights, "size": spec.size}
        arguments = [str(data), str(scores), *options(training | features)]
        row = _watched("score", arguments, scores) | training
        row |= {"images": records, "classes": CLASSES, "columns": WIDTH}
        yield row | _held(row, records)


def _watched(verb: str, arguments: list[str], out: Path) -> Row:
    """Run a command whose files are beside ``out``; measure it and the artifact that it leaves."""
    command = [*CORESET, verb, *arguments]
    row = watch(
        command, partial(memory_and_scratch, out.parent, temporary_name(out)), EVERY_SECONDS
    )
    row |= {"verb": verb, "goal_bytes": GOAL_BYTES, "artifact_bytes": tree_bytes(out)}
    newest = Checkpoints(out).latest() if out.name == _SCORES and out.is_dir() else None
    scores = {} if newest is None else {"scores_bytes": tree_bytes(newest[1] / SCORES_NAME)}
    return row | scores


def memory_and_scratch(data: Path, scratch: Path, pids: Sequence[int]) -> Mapping[str, int]:
    """Measure processes for ``watch``.

    Pages of mapped data files are a cache that the kernel takes back when it needs memory, and are
    counted apart. All else is memory above the data: anonymous memory, shared memory, and the pages
    of programs and libraries.

    Args:
        data: Folder whose files are data; it holds no program and no library.
        scratch: Directory that the command writes into before it publishes its output.
        pids: Of the command and its descendants.
    """
    memories = [memory_of(pid, data) for pid in pids]
    total, mapped, anonymous = (sum(column) for column in zip(*memories, strict=True))
    return {
        "peak_bytes": total,
        "peak_above_bytes": total - mapped,
        "peak_anonymous_bytes": anonymous,
        "peak_data_bytes": mapped,
        "peak_scratch_bytes": tree_bytes(scratch),
    }


def _held(row: Row, records: int) -> Row:
    """Return how the features were held; resident ones are data as well, not above it."""
    if row["peak_data_bytes"]:
        return {"features": "mapped", "features_bytes": 2 * records * WIDTH}
    held = 4 * records * WIDTH
    less = {name: max(0, row[name] - held) for name in ("peak_above_bytes", "peak_anonymous_bytes")}
    return {"features": "resident", "features_bytes": held, **less}


def _of(part: str) -> list[Row]:
    return records_of(f"score_scale.{part}")


def _grown(part: str) -> Iterable[Row]:
    """Return records by command, with the cost of each image more than in the smaller run."""
    before: Row = {}
    for row in sorted(_of(part), key=lambda row: _VERBS.index(row["verb"])):
        slope = None
        if not row["failed"] and before.get("verb") == row["verb"]:
            more = row["images"] - before["images"]
            slope = (row["wall_seconds"] - before["wall_seconds"]) / more
        yield row | {"slope": "" if slope is None else f"{1e6 * slope:,.0f}"}
        before = {} if row["failed"] else row


def _data(row: Row) -> str:
    if row.get("features") == "resident":
        return f"{_mb(row['features_bytes'])}, resident"
    return f"{_mb(row['peak_data_bytes'])}, mapped" if row["peak_data_bytes"] else "0"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _written(row: Row) -> int:
    return row.get("scores_bytes", row["artifact_bytes"])


def _grown_table(part: str) -> Block:
    return Table(
        partial(_grown, part),
        {
            "command": "`{verb}`",
            "images": "{images:,}",
            "seconds": if_present("{wall_seconds:.1f}", reason=True),
            "us per image": if_present(
                lambda row: f"{1e6 * row['wall_seconds'] / row['images']:,.0f}"
            ),
            "us per further image": "{slope}",
            "anonymous memory, MB": if_present(lambda row: _mb(row["peak_anonymous_bytes"])),
            "with libraries, MB": if_present(lambda row: _mb(row["peak_above_bytes"])),
            "data in memory, MB": if_present(_data),
            "scratch, MB": if_present(lambda row: _mb(row["peak_scratch_bytes"])),
            "written, MB": if_present(lambda row: f"{_written(row) / 1e6:,.1f}"),
            "bytes per image": if_present(lambda row: f"{_written(row) / row['images']:,.1f}"),
        },
    )


def _goal() -> str:
    rows = [row for part in PARTS for row in _of(part) if not row["failed"]]
    most = max(rows, key=lambda row: row["peak_anonymous_bytes"])
    most_of_all = max(row["peak_above_bytes"] for row in rows)
    return (
        f"The most anonymous memory beside the data is {_mb(most['peak_anonymous_bytes'])} MB "
        f"(`{most['verb']}`, {most['images']:,} images), the most with programs and libraries "
        f"{_mb(most_of_all)} MB; the goal is under {_mb(most['goal_bytes'])} MB above the data."
    )


def _circumstances() -> str:
    small = next(row for row in _of("pixels") if row["verb"] == "score")
    large = _of("linear")[-1]
    return (
        f"{machine(large, features=False)}; one run each. "
        f"ResNet-18: crops of {small['size']} px, {_training(small)}. Linear proxy: "
        f"{large['columns']} features, {large['classes']:,} classes, {_training(large)}."
    )


def _training(row: Row) -> str:
    epochs = f"{row['epochs']} epoch{'s' if row['epochs'] > 1 else ''}"
    final = " and the final look" if row["final"] else ""
    return f"{epochs}{final}, batches of {row['batch']:,}"


BLOCKS: Mapping[str, Block] = {
    "score_scale_pixels": _grown_table("pixels"),
    "score_scale_linear": _grown_table("linear"),
    "score_scale_goal": _goal,
    "score_scale_circumstances": _circumstances,
}


if __name__ == "__main__":
    tyro.cli(ScoreScaleBench).run()
