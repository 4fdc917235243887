"""Speed of the loaders of ``coreset`` and of others, and of decoding alone.

    bench/peers/setup.sh
    python -m coreset.bench.decode [--data FOLDER] [--peers FOLDER] [--part original-float ...]

FOLDER of the data holds ``imagenet-sample`` and ``imagenette/train``. Every loader has a process of
its own, has warmed up, and hands over batches of 256 squares of 224 pixels from a warm page cache;
all loaders of a race take turns on the same cores. Every byte of every batch is read, images are
counted by their ids, and pixels of 16 images are compared with Pillow's. A peer that cannot be
imported, or refuses the work, is recorded as absent with the reason. Writes
``bench/results/decode.jsonl``, keeping the records of parts that were not run.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import tyro

from coreset.bench.decode_host import BY_IMAGE, HOST_BATCH, host_work
from coreset.bench.decode_racers import CACHED, FAST, OURS, Packed, Racers, difference
from coreset.bench.docs import (
    SPREAD,
    Block,
    Table,
    contender,
    if_present,
    markdown,
    optional,
    race_circumstances,
    ratio,
    text_of,
)
from coreset.bench.harness import Options, Row, race, records_of
from coreset.bench.inputs import QUALITY, SHORT_SIDE, decode_limit, repeated_tree
from coreset.bench.peers.loaders import Crop, Pixels, Task
from coreset.bench.processes import options, run_coreset
from coreset.shards.format.dataset import Dataset

Part: TypeAlias = Literal[
    "original-float",
    "original-uint8",
    "packed256",
    "imagenette224",
    "cached",
    "rrc-original",
    "rrc-packed256",
    "host",
]
PARTS: tuple[Part, ...] = get_args(Part)
InputName: TypeAlias = Literal["imagenet", "packed256", "imagenette"]
BEST, DECODE = "best peer", "decode"
"""Targets: whichever loader of others is the fastest of its race; decoding alone."""
_SHARDS_PER_THREAD = 4  # so that loaders that share out whole shards share them evenly


@dataclass(frozen=True, slots=True)
class Race:
    """Loaders that hand over the same, and times the speed of others that the first must reach."""

    images: InputName
    crop: Crop
    pixels: Pixels
    entrants: tuple[str, ...]
    targets: Mapping[str, float]
    epochs: int = 1
    """In a turn."""


_THREADED = (OURS, FAST, "torchvision.io, threads", "DALI, shards", "SPDL, threads")
_ALL = (
    *_THREADED,
    "ImageFolder + Pillow, workers",
    "webdataset + Pillow, workers",
    "LitData + Pillow, workers",
    "MosaicML Streaming + Pillow, workers",
)
_PACKED = (OURS, FAST, "FFCV, jpg", "DALI, shards")
_SMALL = (*_PACKED, "torchvision.io, threads", "ImageFolder + Pillow, workers")
_RANDOM = (OURS, FAST, "torchvision.io, threads", "DALI, shards")
_KEPT = (CACHED, "FFCV, raw")
RACES: Mapping[Part, tuple[Race, ...]] = {
    "original-float": (Race("imagenet", "centre", "float32", _ALL, {BEST: 1.3, DECODE: 0.85}),),
    "original-uint8": (Race("imagenet", "centre", "uint8", _THREADED, {BEST: 1.3}),),
    "packed256": (
        Race("packed256", "centre", "float32", _PACKED, {"FFCV, jpg": 2.0, DECODE: 0.7}, 3),
        Race("packed256", "centre", "uint8", _PACKED, {"FFCV, jpg": 2.0, DECODE: 0.7}, 3),
    ),
    "imagenette224": (
        Race("imagenette", "whole", "float32", _SMALL, {BEST: 1.5}),
        Race("imagenette", "whole", "uint8", _SMALL, {BEST: 1.5}),
    ),
    "cached": (
        Race("imagenet", "centre", "uint8", _KEPT, {"FFCV, raw": 1.0}, epochs=10),
        Race("imagenette", "whole", "uint8", _KEPT, {"FFCV, raw": 1.0}, epochs=5),
    ),
    "rrc-original": (Race("imagenet", "random", "float32", _RANDOM, {BEST: 1.2, DECODE: 0.85}),),
    "rrc-packed256": (Race("packed256", "random", "uint8", _PACKED, {"FFCV, jpg": 1.3}, 3),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBench(Options):
    """Measure loading."""

    peers: Path = Path("/tmp/peers")  # noqa: S108 - thrown away, and holds nothing of ours
    """Folder with a folder of packages per peer."""
    part: tuple[Part, ...] = PARTS
    """Parts to measure."""
    images: int = 1536
    """Images of original size, repeated from the sample, and four times as many of ImageNette; a
    multiple of 256, or DALI decodes what fills up its last batch. Files take 8 GB."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        self.work.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.work.resolve())))
            racers = Racers(peers=self.peers, stack=stack)
            inputs: dict[InputName, Packed] = {}
            parts = {part: partial(self._rows, part, work, racers, inputs) for part in self.part}
            self.record_parts("decode", parts)

    def _rows(
        self, part: Part, work: Path, racers: Racers, inputs: dict[InputName, Packed]
    ) -> Iterator[Row]:
        """Run all loaders of each race by turns, beside decoding alone."""
        if part == "host":
            photos = self._packed("imagenet", work / part)
            sizes = {"batch": HOST_BATCH, "threads": self.threads, "input_note": photos.note}
            for row in host_work(
                photos.dataset, threads=self.threads, repeats=self.repeats, work=work
            ):
                yield sizes | row
            return
        for each in RACES[part]:
            if each.images not in inputs:
                inputs[each.images] = self._packed(each.images, work)
            images = inputs[each.images]
            about = {"input": each.images, "input_note": images.note, "crop": each.crop}
            about |= {"pixels": each.pixels, "threads": self.threads}
            for row in self._raced(each, images, work, racers):
                first = row["contender"] == each.entrants[0]
                yield about | row | ({"targets": dict(each.targets)} if first else {})

    def _raced(self, each: Race, images: Packed, work: Path, racers: Racers) -> list[Row]:
        task = Task(
            data=images.dataset.path,
            tree=images.tree.path,
            files=images.files,
            folder=images.folder,
            crop=each.crop,
            pixels=each.pixels,
            threads=self.threads,
            epochs=each.epochs,
        )
        entries = [racers.enter(name, task) for name in each.entrants]
        if each.entrants[0] != CACHED:
            entries.append(decode_limit(each.epochs * images.contents, self.threads))
        rows = race(
            entries,
            repeats=self.repeats,
            work=work,
            images=each.epochs * len(images.files),
            source_bytes=each.epochs * sum(map(len, images.contents)),
        )
        for row in rows:
            ids, pixels = racers.first_pixels(row, each.crop)
            if ids:
                row.update(difference(pixels, images.reference(ids, each.crop)))
        racers.close()
        return rows

    def _packed(self, name: InputName, work: Path) -> Packed:
        small = self.data / "imagenette" / "train"
        source, n = self.data / "imagenet-sample", self.images
        if name == "imagenette":
            source, n = small, min(4 * n, sum(1 for _ in small.glob("*/*")))
        # Copies: bytes that a loader reads again must not be in a cache of the processor.
        tree = repeated_tree(source, work / f"{name}-files", n)
        per_shard = -(-n // (_SHARDS_PER_THREAD * self.threads))
        settings: dict[str, Any] = {"samples_per_shard": per_shard, "workers": self.threads}
        if name == "packed256":
            settings |= {"store": "resized", "short_side": SHORT_SIDE, "quality": QUALITY}
        run_coreset("pack", tree.path, work / name, *options(settings))
        folder = work / f"{name}-made"
        folder.mkdir()
        return Packed(tree=tree, dataset=Dataset.open(work / name), folder=folder)


_WORK = {
    ("imagenet", "centre"): "original size, resize 256 + centre crop 224",
    ("imagenet", "random"): "original size, random resized crop 224",
    ("packed256", "centre"): "packed at 256 px, centre crop 224",
    ("packed256", "random"): "packed at 256 px, random resized crop 224",
    ("imagenette", "whole"): "224-px JPEGs as they are",
}
_SPEED = if_present("{images_per_second:,.0f}", reason=True)


def _recorded(*parts: str) -> list[Row]:
    """Return records of races, with a text of their work and their place."""
    rows = [row for part in parts for row in records_of(f"decode.{part}")]
    return [
        row
        | {"work": _WORK[row["input"], row["crop"]], "output": row["pixels"].removesuffix("32")}
        | {"race": (row["bench"], row["input"], row["crop"], row["pixels"])}
        for row in rows
    ]


def best_peer(rows: Iterable[Row]) -> Row:
    """Return the fastest loader of others."""
    peers = [row for row in rows if row["role"] == "peer" and "images_per_second" in row]
    return max(peers, key=lambda row: row["images_per_second"], default=Row(contender="none"))


def _goals() -> str:
    rows = _recorded(*RACES)
    lines: list[Sequence[str]] = []
    for row in (row for row in rows if "targets" in row):
        rivals = {each["contender"]: each for each in rows if each["race"] == row["race"]}
        rivals[BEST] = best_peer(rivals.values())
        for beside, goal in row["targets"].items():
            other = rivals.get(beside, Row(contender=beside))
            kind = "limit" if other.get("role") == "limit" else "peer"
            reached = row.get("speed_over", {}).get(other["contender"])
            speeds = text_of(_SPEED, row), text_of(_SPEED, other) if "role" in other else ""
            work, name = f"{row['work']}, {row['output']}", f"{other['contender']} ({kind})"
            cells = (work, row["contender"], speeds[0], name, speeds[1])
            lines.append((*cells, ratio(reached), ratio(goal)))
    header = ("work", "loader", "images/s", "beside", "images/s", "ours / it", "goal")
    return markdown(header, lines)


def _with_ratios(*parts: str) -> Iterator[Row]:
    rows = _recorded(*parts)
    ours = {row["race"]: row.get("speed_over", {}) for row in rows if "targets" in row}
    for row in rows:
        share = None if row["role"] == "limit" else row.get("speed_over", {}).get(DECODE)
        over = ours[row["race"]].get(row["contender"])
        yield row | {"ratio": ratio(over), "share": ratio(share)}


def _race_table(*parts: str) -> Block:
    return Table(
        partial(_with_ratios, *parts),
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


def _milliseconds(row: Row) -> str:
    names = ("median_seconds", "min_seconds", "max_seconds")
    middle, least, most = (1e3 * HOST_BATCH * row[name] / row["images"] for name in names)
    return f"{middle:.1f} ({least:.1f}-{most:.1f})"


BLOCKS: Mapping[str, Block] = {
    "decode_goals": _goals,
    "decode_original": _race_table("original-float", "original-uint8"),
    "decode_packed": _race_table("packed256"),
    "decode_imagenette": _race_table("imagenette224"),
    "decode_cached": _race_table("cached"),
    "decode_random": _race_table("rrc-original", "rrc-packed256"),
    "decode_host": Table(
        lambda: records_of("decode.host"),
        {
            "clock": "{clock}",
            "way": contender,
            "ms per batch of 256": _milliseconds,
            "image by image / it": lambda row: ratio(row["speed_over"].get(BY_IMAGE)),
        },
    ),
    "decode_circumstances": lambda: race_circumstances(
        _recorded(*RACES), "threads or workers of every loader"
    ),
}


if __name__ == "__main__":
    tyro.cli(DecodeBench).run()
