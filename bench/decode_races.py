"""Races of ``coreset.bench.decode``: which loaders hand over the same, and the targets of ours."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeAlias

from coreset.bench.decode_contenders import (
    DECODE,
    DECODED,
    FAST,
    OURS,
    PARTS,
    Racer,
    Setting,
    copy_limit,
    decode_limit,
    racer,
)
from coreset.bench.decode_inputs import Input, InputName
from coreset.bench.harness import Absent, Contender, Row, rows_of_all
from coreset.bench.peers.loaders import Crop, Pixels

RaceName: TypeAlias = Literal[
    "original-float",
    "original-uint8",
    "packed256",
    "imagenette224",
    "cached",
    "rrc-original",
    "rrc-packed256",
]
BEST = "best peer"
"""Whichever loader of others is the fastest of its race."""


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


_PROTOTYPES = (OURS, FAST, PARTS)
_ALL = (
    *_PROTOTYPES,
    "torchvision.io, threads",
    "torchvision.io, workers",
    "DALI, shards",
    "DALI, files",
    "SPDL, threads",
    "ImageFolder + Pillow, workers",
    "webdataset + Pillow, workers",
    "LitData + Pillow, workers",
    "MosaicML Streaming + Pillow, workers",
)
_THREADED = (*_PROTOTYPES, "torchvision.io, threads", "DALI, shards", "SPDL, threads")
_PACKED = (OURS, FAST, "FFCV, jpg", "DALI, shards")
_SMALL = (
    *_PROTOTYPES,
    "FFCV, jpg",
    "torchvision.io, threads",
    "DALI, shards",
    "ImageFolder + Pillow, workers",
)
_RANDOM = (*_PROTOTYPES, "torchvision.io, threads", "torchvision.io, workers", "DALI, shards")
_KEPT = (DECODED, "FFCV, raw")
RACES: Mapping[RaceName, tuple[Race, ...]] = {
    "original-float": (Race("imagenet", "centre", "float32", _ALL, {BEST: 1.3, DECODE: 0.85}),),
    "original-uint8": (Race("imagenet", "centre", "uint8", _THREADED, {BEST: 1.3}),),
    "packed256": (
        Race("packed256", "centre", "float32", _PACKED, {"FFCV, jpg": 2.0, DECODE: 0.7}, epochs=3),
        Race("packed256", "centre", "uint8", _PACKED, {"FFCV, jpg": 2.0, DECODE: 0.7}, epochs=3),
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
    "rrc-packed256": (Race("packed256", "random", "uint8", _PACKED, {"FFCV, jpg": 1.3}, epochs=3),),
}


def races(name: RaceName, setting: Setting) -> Iterator[Row]:
    """Run all loaders of a part by turns, beside decoding alone and copying alone."""
    for race in RACES[name]:
        images = setting.inputs.get(race.images)
        task = images.task(race.crop, race.pixels, setting.threads, epochs=race.epochs)
        entries = [racer(name, task, setting.processes) for name in race.entrants]
        limits = [decode_limit(images, task)] if race.entrants[0] != DECODED else []
        rows = _raced(entries, [*limits, copy_limit(task)], images, setting, epochs=race.epochs)
        about = {"input": race.images, "input_note": images.note, "crop": race.crop}
        about |= {"pixels": race.pixels, "threads": setting.threads}
        for row in rows:
            first = row["contender"] == race.entrants[0]
            yield about | row | (reached(rows, row, race.targets) if first else {})


def thread_counts(setting: Setting) -> Iterator[Row]:
    """Run ``coreset`` and decoding alone with 1 thread and with all."""
    images = setting.inputs.get("imagenet")
    entries: list[Racer | Absent] = []
    limits: list[Contender] = []
    threads_of: dict[str, int] = {}
    for threads in dict.fromkeys((1, setting.threads)):
        task = images.task("centre", "float32", threads)
        ours, limit = (f"{name}, threads: {threads}" for name in (OURS, DECODE))
        threads_of |= {ours: threads, limit: threads}
        entries.append(racer(OURS, task, setting.processes, called=ours))
        limits.append(decode_limit(images, task, name=limit))
    about = {"input": "imagenet", "input_note": images.note, "pixels": "float32", "crop": "centre"}
    for row in _raced(entries, limits, images, setting):
        yield about | row | {"threads": threads_of[row["contender"]]}


def reached(rows: Sequence[Row], ours: Row, targets: Mapping[str, float]) -> Row:
    """Compare a loader's speed over others with its targets.

    Returns:
        ``targets``, ``reached`` (None where the other was absent or failed) and ``best_peer``.
    """
    peers = [row for row in rows if row["role"] == "peer" and "images_per_second" in row]
    best = max(peers, key=lambda row: row["images_per_second"], default=None)
    best_peer = None if best is None else best["contender"]
    over = ours.get("speed_over", {})
    ratios = {name: over.get(best_peer if name == BEST else name) for name in targets}
    return {"targets": dict(targets), "reached": ratios, "best_peer": best_peer}


def _raced(
    entries: Sequence[Racer | Absent],
    limits: Sequence[Contender],
    images: Input,
    setting: Setting,
    *,
    epochs: int = 1,
) -> list[Row]:
    racers = {entry.name: entry for entry in entries if isinstance(entry, Racer)}
    absent = [entry for entry in entries if isinstance(entry, Absent)]
    with ExitStack() as stack:
        for entry in racers.values():
            stack.callback(entry.close)
        rows = rows_of_all(
            [*(entry.contender() for entry in racers.values()), *limits, *absent],
            repeats=setting.repeats,
            work=setting.work,
            images=epochs * len(images.files),
            source_bytes=epochs * sum(map(len, images.contents)),
        )
        ran = {row["contender"] for row in rows if "seconds" in row and "failed" not in row}
        compared = {name: racers[name].difference(images) for name in ran & racers.keys()}
    return [row | compared.get(row["contender"], {}) for row in rows]
