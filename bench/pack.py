"""Speed of packing beside other packers of the same images, and beside decoding alone.

    python -m coreset.bench.pack [--data FOLDER] [--peers FOLDER] [--part original resized ...]

FOLDER of the data holds ``imagenet-sample`` and ``imagenette/train``. All contenders of a part take
turns on the same cores, read the same files through a warm page cache, and are timed through the
fsync of their output, which is then compared with the source. ``bench/peers/setup.sh`` installs the
peers; one that cannot be imported is recorded as absent. Writes ``bench/results/pack.jsonl``,
keeping the records of parts that were not run.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
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
    race_circumstances,
    ratio,
)
from coreset.bench.harness import Contender, Options, Row, absent, race, records_of
from coreset.bench.inputs import (
    QUALITY,
    SHORT_SIDE,
    Tree,
    bytes_error,
    decode_limit,
    fingerprint,
    repeated_tree,
    size_error,
    sizes_at,
    sizes_of_tars,
)
from coreset.bench.peers import writers
from coreset.bench.processes import open_peer, options, pool_of, run_coreset
from coreset.engine.runtime.progress import Display, choose_display
from coreset.engine.stages.pack import Pack
from coreset.shards.images.probe import probe

Check: TypeAlias = Callable[[Path], str]
Part: TypeAlias = Literal["original", "nocheck", "resized"]
PARTS: tuple[Part, ...] = get_args(Part)
OURS, COMMAND = "coreset pack", "coreset pack, new process"
# Times the speed of another contender that `coreset pack` is to reach.
TARGETS: Mapping[str, Mapping[str, float]] = {
    "original": {"ShardWriter, our check": 1.8, "ShardWriter, full decode": 1.8, "decode": 0.85},
    "nocheck": {"ShardWriter": 1.5},
    "resized": {"Pillow, processes": 1.4, "img2dataset, processes": 1.1},
}
FIELDS: Mapping[Part, Row] = {
    "original": {},
    "nocheck": {"check": False},
    "resized": {"store": "resized", "short_side": SHORT_SIDE, "quality": QUALITY},
}
"""Options of ``coreset pack`` by part."""
_CHECKS: Mapping[str, Mapping[str, Callable[[bytes], object]]] = {
    "original": {
        "ShardWriter, our check": probe,
        "ShardWriter, full decode": writers.check_in_full,
    },
    "nocheck": {"ShardWriter": lambda _: None},
}
"""Check of each file in a loop around ``ShardWriter``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackBench(Options):
    """Measure packing."""

    peers: Path = Path("/tmp/peers")  # noqa: S108 - thrown away, and holds nothing of ours
    """Folder with a folder of packages per peer."""
    part: tuple[Part, ...] = PARTS
    """Parts to measure."""
    images: int = 20_000
    """Files of the tree that repeats the full-size images (110 kB each, kept four times), and at
    most of ImageNette."""
    samples_per_shard: int = 2000
    """In the output of every contender; one thread fills a shard, so few shards balance badly."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        self.record_parts("pack", {part: partial(self.rows, part) for part in self.part})

    def rows(self, part: Part) -> Iterator[Row]:
        """Pack each tree of a part in one way by every contender in turns."""
        sources = {"imagenet": self.data / "imagenet-sample"}
        if part != "resized":  # ImageNette's images are smaller than what they are resized to
            sources["imagenette"] = self.data / "imagenette" / "train"
        for name, source in sources.items():
            with tempfile.TemporaryDirectory(dir=self.work) as work, ExitStack() as stack:
                n = self.images
                if name == "imagenette":
                    n = min(n, sum(1 for _ in source.glob("*/*")))
                tree = repeated_tree(source, Path(work, "source"), n)
                entries = self._entries(part, tree, stack)
                rows = race(
                    entries,
                    repeats=self.repeats,
                    work=Path(work),
                    images=n,
                    source_bytes=tree.source_bytes(),
                )
            about = {"input": name, "input_note": tree.note, "threads": self.threads}
            for row in rows:
                targets = {"targets": TARGETS[part]} if row["contender"] == OURS else {}
                yield about | row | targets

    def _entries(self, part: Part, tree: Tree, stack: ExitStack) -> list[Contender | Row]:
        files, contents = tree.files(), tree.contents()
        labelled = [(label, data) for (_, label), data in zip(files, contents, strict=True)]
        if part == "resized":
            short = sizes_at(SHORT_SIDE, labelled)

            def check(folder: Path) -> str:
                return size_error(sizes_of_tars(folder), short)

            others = self._resizers(tree, check, stack)
        else:
            expected = fingerprint(labelled)

            def check(folder: Path) -> str:
                return bytes_error(folder, expected)

            others = self._shard_writers(part, tree, check)
        limits = [decode_limit(contents, self.threads)] if part == "original" else []
        return [*self._ours(part, tree, check, stack), *others, *limits]

    def _ours(self, part: Part, tree: Tree, check: Check, stack: ExitStack) -> Iterator[Contender]:
        sizes = {"workers": self.threads, "samples_per_shard": self.samples_per_shard}
        fields = {**sizes, **FIELDS[part]}
        pool = stack.enter_context(pool_of())
        yield Contender(
            name=OURS,
            run=lambda out: pool.submit(_pack, tree.path, out / "data", fields).result(),
            role="ours",
            check=check,
            note="process started before the clock",
        )
        yield Contender(
            name=COMMAND,
            run=lambda out: run_coreset("pack", tree.path, out / "data", *options(fields)),
            role="ours",
            check=check,
            note="start-up of Python and imports counted",
        )

    def _shard_writers(self, part: Part, tree: Tree, check: Check) -> Iterator[Contender]:
        """Yield ``webdataset.ShardWriter`` in a loop that checks each file."""
        for name, decode in _CHECKS[part].items():
            yield Contender(
                name=name,
                run=lambda out, decode=decode: writers.write_files(
                    tree.files(), out, decode, self.samples_per_shard
                ),
                check=check,
                note="one thread, as its users write it",
                versions=writers.webdataset_versions(),
            )

    def _resizers(self, tree: Tree, check: Check, stack: ExitStack) -> Iterator[Contender | Row]:
        """Yield peers that re-encode files in processes; this process writes the results."""
        for name, packages, versions, reencode in (
            ("Pillow, processes", "", writers.pillow_versions, writers.pillow_reencode),
            (
                "img2dataset, processes",
                "img2dataset",
                writers.img2dataset_versions,
                writers.img2dataset_reencode,
            ),
        ):
            opened = open_peer(stack, self.peers, packages, versions, self.threads)
            if isinstance(opened, str):
                yield absent(name, opened)
                continue
            yield Contender(
                name=name,
                run=lambda out, pool=opened[0], reencode=reencode: writers.write_resized(
                    pool, reencode, tree.files(), out, self.samples_per_shard
                ),
                check=check,
                note="processes started before the clock",
                versions=opened[1],
            )


def _pack(source: Path, data: Path, settings: Mapping[str, Any]) -> None:
    choose_display(Display.QUIET)
    Pack(src=source, data=data, **settings).run()


def _raced(part: str) -> Iterator[Row]:
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
    **{f"pack_{part}": Table(partial(_raced, part), RACE) for part in PARTS},
    "pack_circumstances": lambda: race_circumstances(
        records_of("pack.original"),
        "threads or processes of every contender",
        records_of("pack.resized"),
    ),
}


if __name__ == "__main__":
    tyro.cli(PackBench).run()
