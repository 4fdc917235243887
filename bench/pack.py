"""How fast packing is beside what others do with the same images, and beside what limits it.

    python -m coreset.bench.pack [--data FOLDER] [--peers FOLDER] [--part original resized ...]

FOLDER of the data holds ``imagenet-sample`` and ``imagenette/train``. All contenders of a part take
turns on the same cores (``bench.contenders``), read the same files through a warm page cache, and
are timed through the fsync of their output, which is then compared with the source. Packages of
peers are looked for in the folder that ``--peers`` names (``bench/peers``); one that cannot be
imported is recorded as absent. Writes ``bench/results/pack.jsonl``, keeping the records of parts
that were not run.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import tyro

from coreset.bench import pack_parts
from coreset.bench.pack_contenders import Setting
from coreset.bench.pack_inputs import Tree, repeated_tree, tiny_tree
from coreset.bench.pack_parts import Row
from coreset.bench.record import RESULTS, read, record, write
from coreset.engine.runtime.progress import Display, choose_display

Part: TypeAlias = Literal["original", "nocheck", "resized", "memory", "open"]
PARTS: tuple[Part, ...] = ("original", "nocheck", "resized", "memory", "open")
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class PackBench:
    """Measure packing."""

    data: Path = Path("../shared/data")
    """Folder of the images."""
    work: Path = _ROOT / "runs"
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
    """In the output of every contender; a shard is one thread's, so few of them balance badly."""
    input: tuple[str, ...] = ()
    """Only these of a part's inputs (imagenet, imagenette, tiny); records of the others stay."""
    cores: int = 2
    """Cores, and threads or processes of every contender."""
    copies: bool = False
    """Copy the images instead of linking them."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record what came out."""
        usable = sorted(os.sched_getaffinity(0))[: self.cores]
        os.sched_setaffinity(0, usable)
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        self._require_space()
        for part in self.part:
            with tempfile.TemporaryDirectory(prefix="pack-bench-", dir=self.work) as folder:
                setting = Setting(
                    work=Path(folder),
                    peers=self.peers,
                    threads=len(usable),
                    repeats=self.repeats,
                    samples_per_shard=self.samples_per_shard,
                )
                self._keep(part, [record(f"pack.{part}", row) for row in self._rows(part, setting)])

    def _require_space(self) -> None:
        # Source and three outputs at a time, of 110 kB an image; a tiny image takes 4 KiB in each.
        needed = 4 * max(self.images * 110_000, self.tiny_images * 4096) + (1 << 30)
        free = shutil.disk_usage(self.work).free
        if needed > free:
            sys.exit(f"the bench needs {needed:,} bytes in {self.work}, {free:,} are free")

    def _rows(self, part: Part, setting: Setting) -> Iterator[Row]:
        if part == "open":
            yield from pack_parts.opening(setting, shards=self.shards, samples=self.samples)
            return
        for tree in self._trees(part, setting.work):
            if self.input and tree.name not in self.input:
                continue
            print(f"{part}, {tree.name}: {tree.note}", flush=True)
            yield from pack_parts.ROWS[part](tree, setting)

    def _trees(self, part: Part, work: Path) -> Iterator[Tree]:
        yield self._repeated("imagenet", self.data / "imagenet-sample", work, self.images)
        if part == "memory":
            yield tiny_tree(work / "tiny", self.tiny_images)
        elif part != "resized":  # ImageNette's images are smaller than what they are resized to
            source = self.data / "imagenette" / "train"
            there = sum(1 for _ in source.glob("*/*"))
            yield self._repeated("imagenette", source, work, min(there, self.images))

    def _repeated(self, name: str, source: Path, work: Path, images: int) -> Tree:
        return repeated_tree(name, source, work / name, images, copies=self.copies)

    def _keep(self, part: Part, rows: list[Row]) -> None:
        for row in rows:
            print(pack_parts.line(row), flush=True)
        if self.dry:
            return
        there = read("pack") if (RESULTS / "pack.jsonl").is_file() else []
        others = [
            one
            for one in there
            if one["bench"] != f"pack.{part}" or (self.input and one["input"] not in self.input)
        ]
        print(f"written: {write('pack', [*others, *rows])}", flush=True)


if __name__ == "__main__":
    tyro.cli(PackBench).run()
