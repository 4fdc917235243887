"""Speed of packing beside other packers of the same images, and beside the limits of all.

    python -m coreset.bench.pack [--data FOLDER] [--peers FOLDER] [--part original resized ...]

FOLDER of the data holds ``imagenet-sample`` and ``imagenette/train``. All contenders of a part take
turns on the same cores, read the same files through a warm page cache, and are timed through the
fsync of their output, which is then compared with the source. ``bench/peers/setup.sh`` installs the
peers; one that cannot be imported is recorded as absent. Writes ``bench/results/pack.jsonl``,
keeping the records of parts that were not run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import tyro

from coreset.bench.docs import (
    SPREAD,
    Block,
    Cell,
    Table,
    contender,
    if_present,
    optional,
    peer_versions,
    ratio,
)
from coreset.bench.harness import (
    ROOT,
    Absent,
    Contender,
    Row,
    records_of,
    rows_of_all,
    run_parts,
)
from coreset.bench.inputs import Tree, repeated_tree, tiny_tree, write_dataset
from coreset.bench.pack_contenders import ENTRIES, OURS, RESIZE, Setting
from coreset.bench.processes import CORESET, options, rollup_bytes, watch
from coreset.engine.runtime.progress import Display, choose_display
from coreset.shards.format.dataset import Dataset

Part: TypeAlias = Literal["original", "nocheck", "resized", "memory", "open"]
PARTS: tuple[Part, ...] = get_args(Part)
# Times the speed of another contender that `coreset pack` is to reach.
TARGETS: Mapping[str, Mapping[str, float]] = {
    "original": {"ShardWriter, our check": 1.8, "ShardWriter, full decode": 1.8, "decode": 0.85},
    "nocheck": {"ShardWriter": 1.5},
    "resized": {"Pillow, processes": 1.4, "img2dataset, processes": 1.1, "decode + encode": 0.85},
}
MEMORY_BYTES, MEMORY_BYTES_PER_IMAGE = 300_000_000, 150
VERIFY_SECONDS, OPEN_SECONDS = 5.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackBench:
    """Measure packing."""

    data: Path = Path("../shared/data")
    """Folder of the images."""
    work: Path = ROOT / "runs"
    """Folder to work in; hard links need it on the file system of the data. What is made there is
    removed."""
    peers: Path = Path("/tmp/peers")  # noqa: S108 - thrown away, and holds nothing of ours
    """Folder with a folder of packages per peer."""
    part: tuple[Part, ...] = PARTS
    """What to measure."""
    repeats: int = 5
    """Timed rounds, after one that warms up."""
    images: int = 20_000
    """Files of the tree that repeats the full-size images, and at most of ImageNette."""
    tiny_images: int = 200_000
    """Files of the tree of tiny images, whose packing tells memory per image."""
    shards: int = 100_000
    """Shards of the data set that ``verify --fast`` looks at."""
    samples: int = 1_281_167
    """Samples of the data sets that are opened."""
    samples_per_shard: int = 2000
    """In the output of every contender; one thread fills a shard, so few shards balance badly."""
    input: tuple[str, ...] = ()
    """Only these of a part's inputs (imagenet, imagenette, tiny); records of the others stay."""
    cores: int = 2
    """Cores, and threads or processes of every contender."""
    copies: bool = False
    """Copy the images instead of linking them."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.cores])
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        self._require_space()
        parts = {part: partial(self._rows, part) for part in self.part}
        run_parts(
            "pack",
            parts,
            dry=self.dry,
            replaces=lambda row: not self.input or row["input"] in self.input,
        )

    def _require_space(self) -> None:
        # Source and three outputs at a time, of 110 kB an image; a tiny image takes 4 KiB in each.
        needed = 4 * max(self.images * 110_000, self.tiny_images * 4096) + (1 << 30)
        free = shutil.disk_usage(self.work).free
        if needed > free:
            sys.exit(f"the bench needs {needed:,} bytes in {self.work}, {free:,} are free")

    def _rows(self, part: Part) -> Iterator[Row]:
        with tempfile.TemporaryDirectory(prefix="pack-bench-", dir=self.work) as folder:
            setting = Setting(
                work=Path(folder),
                peers=self.peers,
                threads=len(os.sched_getaffinity(0)),
                repeats=self.repeats,
                samples_per_shard=self.samples_per_shard,
            )
            if part == "open":
                yield from opening(setting, shards=self.shards, samples=self.samples)
                return
            for tree in self._trees(part, setting.work):
                if not self.input or tree.name in self.input:
                    rows = memory(tree, setting) if part == "memory" else race(part, tree, setting)
                    yield from ({"input": tree.name, "input_note": tree.note} | row for row in rows)

    def _trees(self, part: Part, work: Path) -> Iterator[Tree]:
        yield self._repeated("imagenet", self.data / "imagenet-sample", work, self.images)
        if part == "memory":
            yield tiny_tree(work / "tiny", self.tiny_images)
        elif part != "resized":  # ImageNette's images are smaller than what they are resized to
            source = self.data / "imagenette" / "train"
            available = sum(1 for _ in source.glob("*/*"))
            yield self._repeated("imagenette", source, work, min(available, self.images))

    def _repeated(self, name: str, source: Path, work: Path, images: int) -> Tree:
        return repeated_tree(name, source, work / name, images, copies=self.copies)


def race(part: Part, tree: Tree, setting: Setting) -> Iterator[Row]:
    """Pack a tree in one way by every contender in turns."""
    with ExitStack() as stack:
        rows = rows_of_all(
            ENTRIES[part](tree, setting, stack),
            repeats=setting.repeats,
            work=setting.work,
            images=len(tree.files()),
            source_bytes=tree.source_bytes(),
        )
    for row in rows:
        targets = {"targets": TARGETS[part]} if row["contender"] == OURS else {}
        yield row | {"threads": setting.threads} | targets


def memory(tree: Tree, setting: Setting) -> Iterator[Row]:
    """Measure peak memory of packing a tree in each way and of verifying one; one run each."""
    images = len(tree.files())
    ways: Mapping[str, Mapping[str, Any]] = {
        "original": {},
        "nocheck": {"check": False},
        "resized": RESIZE,
    }
    commands = {
        f"pack, {way}": ["pack", str(tree.path), str(setting.work / way), *options(fields)]
        for way, fields in ways.items()
    }
    commands["verify"] = ["verify", str(setting.work / "original")]
    for name, command in commands.items():
        threads = options({"workers": setting.threads})
        yield {
            "contender": name,
            "images": images,
            "allowed_bytes": MEMORY_BYTES + MEMORY_BYTES_PER_IMAGE * images,
        } | watch([*CORESET, *command, *threads], memory_and_processes, 0.05)
    for way in ways:
        shutil.rmtree(setting.work / way)


def memory_and_processes(pids: Sequence[int]) -> Mapping[str, int]:
    """Measure processes for ``watch``."""
    return {"peak_pss_bytes": rollup_bytes(pids, "Pss"), "most_processes": len(pids)}


def opening(setting: Setting, *, shards: int, samples: int) -> Iterator[Row]:
    """Open a large data set, and look at every file of one with many shards, by turns."""
    many, large = setting.work / "many", setting.work / "large"
    write_dataset(many, shards=shards, samples=shards)
    write_dataset(large, shards=-(-samples // setting.samples_per_shard), samples=samples)
    entries = [
        _fast_verify(f"verify --fast, {shards:,} shards", many),
        _fast_verify(f"verify --fast, {samples:,} samples", large),
        Contender(name="Dataset.open", run=lambda _out: Dataset.open(large), role="ours"),
    ]
    allowed = {entries[0].name: VERIFY_SECONDS, "Dataset.open": OPEN_SECONDS}
    for row in rows_of_all(entries, repeats=setting.repeats, work=setting.work):
        limit = {"limit_seconds": allowed.get(row["contender"])}
        yield row | {"threads": setting.threads} | limit


def _fast_verify(name: str, data: Path) -> Contender | Absent:
    command = [*CORESET, "verify", str(data), "--fast"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        return Absent(name=name, reason=(tried.stderr.strip().splitlines() or ["no message"])[-1])
    return Contender(
        name=name,
        run=lambda _out: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),
        role="ours",
        note="a new process, start-up counted",
    )


def _circumstances() -> str:
    rows = records_of("pack.original")
    notes = dict.fromkeys(f"{row['input']}: {row['input_note']}" for row in rows)
    text = (
        "{notes}. {threads} threads or processes of every contender, {rounds} rounds by turns "
        "({hardware[processor]}, {hardware[memory_gib]} GiB), {date}, commit {commit}. "
        "Peers: {peers}."
    )
    return text.format_map(
        rows[0]
        | {
            "notes": "; ".join(notes),
            "rounds": len(rows[0]["seconds"]),
            "peers": peer_versions([*rows, *records_of("pack.resized")]),
        }
    )


def _raced(part: str) -> Iterable[Row]:
    rows = records_of(f"pack.{part}")
    ours = {row["input"]: row for row in rows if row["contender"] == OURS}
    for row in rows:
        reached, name = ours[row["input"]], row["contender"]
        ratios = reached.get("speed_over", {}).get(name), reached["targets"].get(name)
        yield row | dict(zip(("ratio", "target"), map(ratio, ratios), strict=True))


RACE: Mapping[str, Cell] = {
    "input": "{input}",
    "contender": contender,
    "images/s": if_present("{images_per_second:,.0f}", reason=True),
    "MB/s": if_present("{mb_per_second:,.0f}"),
    "seconds": if_present(SPREAD),
    "ours / it": if_present("{ratio}"),
    "target": if_present("{target}"),
}
BLOCKS: Mapping[str, Block] = {
    **{f"pack_{part}": Table(partial(_raced, part), RACE) for part in TARGETS},
    "pack_memory": Table(
        "pack.memory",
        {
            "command": "{contender}",
            "images": "{images:,} ({input})",
            "peak memory": lambda row: row["failed"] or f"{row['peak_pss_bytes'] / 1e6:.0f} MB",
            "allowed": lambda row: f"{row['allowed_bytes'] / 1e6:.0f} MB",
        },
    ),
    "pack_open": Table(
        "pack.open",
        {
            "what": "{contender}",
            "seconds": if_present(SPREAD, reason=True),
            "allowed": optional("limit_seconds", "{limit_seconds:.0f} s"),
        },
    ),
    "pack_circumstances": _circumstances,
}


if __name__ == "__main__":
    tyro.cli(PackBench).run()
