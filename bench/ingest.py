"""Speed of taking in a released set beside packing the same folder as classes.

    python -m coreset.bench.ingest [--data FOLDER] [--images 50000]

The set has 1,000 classes in the layout of SRe2L; its images are ImageNette's, each linked several
times. Both contenders decode every image, are timed through the fsync of their output, in a process
that was started before, and must store the same bytes. Writes ``bench/results/ingest.jsonl``.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

import tyro

from coreset.bench.docs import SPREAD, Block, Table, contender, if_present, machine
from coreset.bench.harness import Contender, Options, Role, Row, race, records_of
from coreset.bench.processes import pool_of
from coreset.engine.runtime.progress import Display, choose_display
from coreset.engine.stages.ingest import Ingest
from coreset.engine.stages.options import Decoding
from coreset.engine.stages.pack import Pack
from coreset.shards.format.dataset import Dataset

CLASSES, TARGET = 1000, 0.8
Make: TypeAlias = Callable[[Path, Path, int], None]
OURS, PACK = "coreset ingest", "coreset pack"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestBench(Options):
    """Measure taking in a set."""

    images: int = 50_000
    """Files of the set."""

    def run(self) -> None:
        """Write the set, take it in and pack it by turns, and record the results."""
        self.record_parts("ingest", {"layout": self._rows})

    def _rows(self) -> Iterator[Row]:
        with tempfile.TemporaryDirectory(dir=self.work) as work, pool_of() as pool:
            source, n_bytes = Path(work, "set"), self._write_set(Path(work))
            contenders: tuple[tuple[str, Role, Make], ...] = (
                (OURS, "ours", _ingest),
                (PACK, "peer", _pack),
            )
            entries = [
                Contender(
                    name=name,
                    run=lambda out, make=make: pool.submit(
                        make, source, out / "set", self.threads
                    ).result(),
                    role=role,
                    check=lambda out: _stored_error(out / "set", self.images, n_bytes),
                )
                for name, role, make in contenders
            ]
            rows = race(
                entries,
                repeats=self.repeats,
                work=Path(work),
                images=self.images,
                source_bytes=n_bytes,
            )
            yield from ({"threads": self.threads, "files": self.images} | row for row in rows)

    def _write_set(self, work: Path) -> int:
        """Write the files of a set, linked to copies of ImageNette's; return their bytes."""
        copies, n_bytes = list[Path](), 0
        (work / "copies").mkdir()
        for number, path in enumerate(sorted((self.data / "imagenette/train").glob("*/*"))):
            copies.append(work / "copies" / f"{number}.jpg")
            copies[-1].write_bytes(path.read_bytes())
        for number, copy in zip(range(self.images), cycle(copies)):
            slot, label = divmod(number, CLASSES)
            folder = work / "set" / f"new{label:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            os.link(copy, folder / f"class{label:03d}_id{slot:03d}.jpg")
            n_bytes += copy.stat().st_size
        return n_bytes


def _ingest(source: Path, out: Path, threads: int) -> None:
    choose_display(Display.QUIET)
    Ingest(src=source, condensed=out, decoding=Decoding(workers=threads)).run()


def _pack(source: Path, out: Path, threads: int) -> None:
    choose_display(Display.QUIET)
    Pack(src=source, data=out, workers=threads).run()


def _stored_error(out: Path, images: int, n_bytes: int) -> str:
    """Return what is wrong with a packed output: another number of images or of bytes."""
    dataset = Dataset.open(out)
    stored = len(dataset), int(dataset.ints("bytes").sum())
    return "" if stored == (images, n_bytes) else f"stored {stored}, expected {images}, {n_bytes}"


def _summary() -> str:
    rows = records_of("ingest.layout")
    ours = next(row for row in rows if row["contender"] == OURS)
    return (
        f"{ours['files']:,} files, {ours['threads']} threads: {ours['speed_over'][PACK]:.2f} times "
        f"the speed of `pack` (goal {TARGET}); {machine(ours)}."
    )


BLOCKS: Mapping[str, Block] = {
    "ingest": Table(
        "ingest.layout",
        {
            "contender": contender,
            "images/s": if_present("{images_per_second:,.0f}"),
            "seconds": if_present(SPREAD),
        },
    ),
    "ingest_summary": _summary,
}

if __name__ == "__main__":
    tyro.cli(IngestBench).run()
