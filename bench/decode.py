"""How fast images come out of the loaders of ``coreset`` and of others, and what limits them.

    bench/peers/setup.sh
    python -m coreset.bench.decode [--data FOLDER] [--peers FOLDER] [--part original-float ...]

FOLDER of the data holds ``imagenet-sample`` and ``imagenette/train``. Every loader has a process of
its own, has warmed up, and hands over batches of 256 squares of 224 pixels from a warm page cache;
all loaders of a race take turns on the same cores (``bench.contenders``). Every byte of every batch
is read, images are counted by their ids, and pixels of 16 images are compared with Pillow's. A peer
that cannot be imported, or refuses the work, is recorded as absent with the reason. Writes
``bench/results/decode.jsonl``, keeping the records of parts that were not run.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.decode_contenders import Processes
from coreset.bench.decode_inputs import Inputs
from coreset.bench.decode_parts import RaceName, Row, Setting, line, races, thread_counts
from coreset.bench.decode_process import memory, starts
from coreset.bench.record import RESULTS, read, record, write
from coreset.engine.runtime.progress import Display, choose_display

Part: TypeAlias = RaceName | Literal["threads", "start", "memory"]
PARTS: tuple[Part, ...] = (*get_args(RaceName), "threads", "start", "memory")
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBench:
    """Measure loading."""

    data: Path = Path("../shared/data")
    """Folder of the images."""
    work: Path = _ROOT / "runs"
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
        """Run the parts in turn, print and record what came out."""
        usable = sorted(os.sched_getaffinity(0))[: self.threads]
        os.sched_setaffinity(0, usable)
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        self._require_space()
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="decode-bench-", dir=self.work)
            setting = self._setting(Path(stack.enter_context(folder)), stack, len(usable))
            for part in self.part:
                print(part, flush=True)
                self._keep(part, [record(f"decode.{part}", row) for row in _rows(part, setting)])

    def _setting(self, work: Path, stack: ExitStack, threads: int) -> Setting:
        there = sum(1 for _ in (self.data / "imagenette" / "train").glob("*/*"))
        inputs = Inputs(
            data=self.data.resolve(),
            work=work,
            images=self.images,
            small_images=self.small_images or min(there, 4 * self.images),
            threads=threads,
        )
        return Setting(
            work=work,
            inputs=inputs,
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

    def _keep(self, part: Part, rows: list[Row]) -> None:
        for row in rows:
            print(line(row), flush=True)
        if self.dry:
            return
        there = read("decode") if (RESULTS / "decode.jsonl").is_file() else []
        others = [one for one in there if one["bench"] != f"decode.{part}"]
        print(f"written: {write('decode', [*others, *rows])}", flush=True)


def _rows(part: Part, setting: Setting) -> Iterator[Row]:
    if part == "threads":
        return thread_counts(setting)
    if part == "start":
        return starts(setting)
    if part == "memory":
        return memory(setting)
    return races(part, setting)


if __name__ == "__main__":
    tyro.cli(DecodeBench).run()
