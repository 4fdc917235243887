"""Speed of the loaders of ``coreset`` and of others, and what limits them.

    bench/peers/setup.sh
    python -m coreset.bench.decode [--data FOLDER] [--peers FOLDER] [--part original-float ...]

FOLDER of the data holds ``imagenet-sample`` and ``imagenette/train``. Every loader has a process of
its own, has warmed up, and hands over batches of 256 squares of 224 pixels from a warm page cache;
all loaders of a race take turns on the same cores. Every byte of every batch is read, images are
counted by their ids, and pixels of 16 images are compared with Pillow's. A peer that cannot be
imported, or refuses the work, is recorded as absent with the reason. Writes
``bench/results/decode.jsonl``, keeping the records of parts that were not run.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.decode_contenders import Processes, Setting
from coreset.bench.decode_inputs import Inputs
from coreset.bench.decode_races import BEST, RACES, RaceName, races, thread_counts
from coreset.bench.decode_start import memory, starts
from coreset.bench.docs import (
    SPREAD,
    Block,
    Table,
    contender,
    if_present,
    markdown,
    optional,
    peer_versions,
    ratio,
    text_of,
)
from coreset.bench.harness import ROOT, Row, records_of, run_parts
from coreset.engine.runtime.progress import Display, choose_display

Part: TypeAlias = RaceName | Literal["threads", "start", "memory"]
PARTS: tuple[Part, ...] = (*get_args(RaceName), "threads", "start", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBench:
    """Measure loading."""

    data: Path = Path("../shared/data")
    """Folder of the images."""
    work: Path = ROOT / "runs"
    """Folder to work in. What is made there is removed."""
    peers: Path = Path("/tmp/peers")  # noqa: S108 - thrown away, and holds nothing of ours
    """Folder with a folder of packages per peer."""
    part: tuple[Part, ...] = PARTS
    """What to measure."""
    repeats: int = 5
    """Timed rounds, after one that warms up."""
    images: int = 1536
    """Images of original size, repeated from the sample; a multiple of 256, or DALI decodes what
    fills up its last batch."""
    small_images: int = 0
    """Images of ImageNette; 0 = four times as many as of original size, at most all."""
    threads: int = 2
    """Cores, and threads or workers of every loader."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        self._require_space()
        rows: dict[Part, Callable[[Setting], Iterator[Row]]]
        rows = {name: partial(races, name) for name in RACES}
        rows |= {"threads": thread_counts, "start": starts, "memory": memory}
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="decode-bench-", dir=self.work)
            setting = self._setting(Path(stack.enter_context(folder)), stack)
            parts = {part: partial(rows[part], setting) for part in self.part}
            run_parts("decode", parts, dry=self.dry)

    def _setting(self, work: Path, stack: ExitStack) -> Setting:
        available = sum(1 for _ in (self.data / "imagenette" / "train").glob("*/*"))
        threads = len(os.sched_getaffinity(0))
        return Setting(
            work=work,
            inputs=Inputs(
                data=self.data.resolve(),
                work=work,
                images=self.images,
                small_images=self.small_images or min(available, 4 * self.images),
                threads=threads,
            ),
            processes=Processes(peers=self.peers, stack=stack),
            threads=threads,
            repeats=self.repeats,
        )

    def _require_space(self) -> None:
        # Files, shards and those of four loaders; pixels of two inputs, twice.
        needed = self.images * (6 * 110_000 + 450_000) + 4 * self.images * 450_000 + (1 << 30)
        free = shutil.disk_usage(self.work).free
        if needed > free:
            sys.exit(f"the bench needs {needed:,} bytes in {self.work}, {free:,} are free")


_WORK = {
    ("imagenet", "centre"): "original size, resize 256 + centre crop 224",
    ("imagenet", "random"): "original size, random resized crop 224",
    ("packed256", "centre"): "packed at 256 px, centre crop 224",
    ("packed256", "random"): "packed at 256 px, random resized crop 224",
    ("imagenette", "whole"): "224-px JPEGs as they are",
}
_OUTPUT = {"float32": "float", "uint8": "uint8"}
_SPEED = if_present("{images_per_second:,.0f}", reason=True)


def _recorded(*names: str) -> list[Row]:
    """Return records of races, with a text of their work."""
    rows = [row for name in names for row in records_of(f"decode.{name}")]
    return [
        row | {"work": _WORK[row["input"], row["crop"]], "output": _OUTPUT[row["pixels"]]}
        for row in rows
    ]


def _race_of(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("bench", "input", "crop", "pixels"))


def _goals() -> str:
    rows = _recorded(*RACES)
    named = {(*_race_of(row), row["contender"]): row for row in rows}
    lines: list[Sequence[str]] = []
    for row in (row for row in rows if "targets" in row):
        for beside, goal in row["targets"].items():
            name = row["best_peer"] if beside == BEST else beside
            other = named.get((*_race_of(row), name), {})
            kind = "limit" if other.get("role") == "limit" else "peer"
            speeds = text_of(_SPEED, row), text_of(_SPEED, other) if other else ""
            shares = ratio(row["reached"][beside]), f"{goal:.2f}"
            work = f"{row['work']}, {row['output']}"
            lines.append(
                (work, row["contender"], speeds[0], f"{name} ({kind})", speeds[1], *shares)
            )
    header = ("work", "loader", "images/s", "beside", "images/s", "ours / it", "goal")
    return markdown(header, lines)


def _with_ratios(*names: str) -> Iterable[Row]:
    rows = _recorded(*names)
    ours = {_race_of(row): row.get("speed_over", {}) for row in rows if "targets" in row}
    for row in rows:
        share = None if row["role"] == "limit" else row.get("speed_over", {}).get("decode")
        over = ours[_race_of(row)].get(row["contender"])
        yield row | {"ratio": ratio(over), "share": ratio(share)}


def _race_table(*names: str) -> Block:
    return Table(
        partial(_with_ratios, *names),
        {
            "work": "{work}",
            "output": "{output}",
            "loader": contender,
            "images/s": _SPEED,
            "seconds": if_present(SPREAD),
            "coreset / it": "{ratio}",
            "share of decode": "{share}",
            "from Pillow: most / mean": optional(
                "pixels_max", "{pixels_max:.0f} / {pixels_mean:.2f}"
            ),
        },
    )


def _circumstances() -> str:
    rows = _recorded(*RACES)
    notes = dict.fromkeys(f"{row['input']}: {row['input_note']}" for row in rows)
    text = (
        "{notes}. {threads} threads or workers of every loader, {rounds} rounds by turns "
        "({hardware[processor]}, {hardware[cores]} cores, {hardware[memory_gib]} GiB), {date}, "
        "commit {commit}, torch {versions[torch]}. Peers: {peers}."
    )
    row = next(row for row in rows if "seconds" in row)
    lists = {"notes": "; ".join(notes), "peers": peer_versions(rows)}
    return text.format_map(row | lists | {"rounds": len(row["seconds"])})


def _beside_goal(field: str, digits: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        goal = f" (goal {row['allowed'][field]:g})" if "allowed" in row else ""
        return f"{row[field]:.{digits}f}{goal}"

    return text


BLOCKS: Mapping[str, Block] = {
    "decode_goals": _goals,
    "decode_original": _race_table("original-float", "original-uint8"),
    "decode_packed": _race_table("packed256"),
    "decode_imagenette": _race_table("imagenette224"),
    "decode_cached": _race_table("cached"),
    "decode_random": _race_table("rrc-original", "rrc-packed256"),
    "decode_threads": Table(
        "decode.threads",
        {
            "threads": "{threads}",
            "what": lambda row: contender(row).replace(f", threads: {row['threads']}", ""),
            "images/s": _SPEED,
            "seconds": if_present(SPREAD),
        },
    ),
    "decode_start": Table(
        "decode.start",
        {
            "input": "{input}",
            "loader": "{contender}",
            "making it, s": lambda row: row.get("absent") or _beside_goal("open_seconds", 1)(row),
            "first batch of 256, s": if_present(_beside_goal("first_batch_seconds", 3)),
        },
    ),
    "decode_memory": Table(
        "decode.memory",
        {
            "loader": "{contender}",
            "memory above torch's": lambda row: (
                row.get("absent") or f"{row['peak_bytes'] / 1e6:.0f} MB"
            ),
            "goal": optional("allowed_bytes", lambda row: f"{row['allowed_bytes'] / 1e6:.0f} MB"),
        },
    ),
    "decode_circumstances": _circumstances,
}


if __name__ == "__main__":
    tyro.cli(DecodeBench).run()
