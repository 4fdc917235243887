"""Growth of time, memory and files of ``coreset score`` with the data set.

    python -m coreset.bench.score_scale [--images 10000 30000 100000]

Synthetic images of few pixels go through ``synth``, ``decode`` and ``score`` with ResNet-18, each
command in a process of its own. Writes ``bench/results/score_scale.jsonl``.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from coreset.bench.docs import Block, Cell, Table, if_present, machine
from coreset.bench.harness import Options, Row, records_of
from coreset.bench.processes import CORESET, environment_of, options, watch
from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.store import SCORES_NAME

EVERY_SECONDS = 0.2
"""Between two looks at the memory."""
_SCORES = "scores"
SIDE = 20
"""Side of the synthetic images in pixels."""
RESNET: Row = {"size": 17, "epochs": 1, "batch": 1024, "final": True, "seed": 0}
"""Options of the scoring."""
_PIXELS = "score_scale.pixels"
_VERBS = ("synth", "decode", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreScaleBench(Options):
    """Measure scoring at growing sizes."""

    images: tuple[int, ...] = (10_000, 30_000, 100_000)
    """Sizes of the synthetic data sets, growing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        self.record_parts("score_scale", {"pixels": self.rows})

    def rows(self) -> Iterator[Row]:
        """Run the three commands at each size."""
        for images in self.images:
            with (
                tempfile.TemporaryDirectory(dir=self.work.resolve()) as folder,
                environment_of({"CORESET_CACHE": f"{folder}/cache"}),
            ):
                yield from self._commands(images, Path(folder))

    def _commands(self, images: int, folder: Path) -> Iterator[Row]:
        """Synthesise, decode and score small images with ResNet-18."""
        data, decoded, scores = (folder / name for name in ("data", "pixels", _SCORES))
        made = options({"images": images, "size": SIDE, "seed": 0})
        commands = (
            ([str(data), *made], data),
            ([str(data), str(decoded), *options({"size": SIDE})], decoded),
            ([str(data), str(scores), *options(RESNET | {"pixels": decoded})], scores),
        )
        for verb, (arguments, out) in zip(_VERBS, commands, strict=True):
            about = RESNET | {"proxy": "resnet18"} if verb == "score" else {}
            yield _watched(verb, arguments, out) | about | {"images": images}


def _watched(verb: str, arguments: list[str], out: Path) -> Row:
    """Run a command whose files are beside ``out``; measure it and the artifact that it leaves."""
    command = [*CORESET, verb, *arguments]
    row = watch(command, memory_of, EVERY_SECONDS)
    row |= {"verb": verb, "artifact_bytes": tree_bytes(out)}
    newest = Checkpoints(out).latest() if out.name == _SCORES and out.is_dir() else None
    scores = {} if newest is None else {"scores_bytes": tree_bytes(newest[1] / SCORES_NAME)}
    return row | scores


def memory_of(pids: Sequence[int]) -> Mapping[str, int]:
    """Measure processes for ``watch``."""
    kinds: Counter[str] = Counter()
    for pid in pids:
        with suppress(OSError):  # it may have ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                kind, size, *_ = line.split()
                kinds[kind] += 1024 * int(size)
    return {"peak_bytes": kinds["Pss:"], "peak_anonymous_bytes": kinds["Pss_Anon:"]}


def tree_bytes(directory: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _grown() -> Iterator[Row]:
    """Return records by command, with the cost of each image more than in the smaller run."""
    before: Row = {}
    for row in sorted(records_of(_PIXELS), key=lambda row: _VERBS.index(row["verb"])):
        slope = None
        if not row["failed"] and before.get("verb") == row["verb"]:
            more = row["images"] - before["images"]
            slope = (row["wall_seconds"] - before["wall_seconds"]) / more
        yield row | {"slope": "" if slope is None else f"{1e6 * slope:,.0f}"}
        before = {} if row["failed"] else row


def _written(row: Row) -> int:
    return row.get("scores_bytes", row["artifact_bytes"])


def _mb(field: str) -> Cell:
    return if_present(lambda row: f"{row[field] / 1e6:,.0f}")


def _circumstances() -> str:
    row = next(row for row in records_of(_PIXELS) if row["verb"] == "score")
    training = "crops of {size} px, {epochs} epoch and the final look, batches of {batch:,}"
    return f"{machine(row, features=False)}; one run each. ResNet-18: {training.format_map(row)}."


BLOCKS: Mapping[str, Block] = {
    "score_scale_pixels": Table(
        _grown,
        {
            "command": "`{verb}`",
            "images": "{images:,}",
            "seconds": if_present("{wall_seconds:.1f}", reason=True),
            "us per image": if_present(
                lambda row: f"{1e6 * row['wall_seconds'] / row['images']:,.0f}"
            ),
            "us per further image": "{slope}",
            "anonymous memory, MB": _mb("peak_anonymous_bytes"),
            "with libraries and mapped data, MB": _mb("peak_bytes"),
            "written, MB": if_present(lambda row: f"{_written(row) / 1e6:,.1f}"),
            "bytes per image": if_present(lambda row: f"{_written(row) / row['images']:,.1f}"),
        },
    ),
    "score_scale_circumstances": _circumstances,
}


if __name__ == "__main__":
    tyro.cli(ScoreScaleBench).run()
