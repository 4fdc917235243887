"""The parts of ``coreset.bench.decode``: who races on what, and what is to be reached."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from coreset.bench.contenders import Absent, Contender, interleave, measurements
from coreset.bench.decode_contenders import (
    DECODE,
    DECODED,
    ENTRANTS,
    FAST,
    OURS,
    PARTS,
    Processes,
    Racer,
    copy_limit,
    decode_limit,
    racer,
)
from coreset.bench.decode_inputs import Input, InputName, Inputs
from coreset.bench.peers.loaders import Crop, Pixels

Row: TypeAlias = dict[str, Any]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Loaders that hand over the same."""

    images: InputName
    crop: Crop
    pixels: Pixels
    entrants: tuple[str, ...]
    """Of whom the first has targets."""
    targets: Mapping[str, float] = field(default_factory=dict[str, float])
    """Times the speed of another that is to be reached."""
    epochs: int = 1
    """In a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where, on what and how often."""

    work: Path
    inputs: Inputs
    processes: Processes
    threads: int
    repeats: int


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


def _race(
    images: InputName,
    crop: Crop,
    pixels: Pixels,
    entrants: tuple[str, ...],
    *,
    epochs: int = 1,
    **targets: float,
) -> Race:
    names = {"best": BEST, "decode": DECODE, "jpg": "FFCV, jpg", "raw": "FFCV, raw"}
    return Race(
        images=images,
        crop=crop,
        pixels=pixels,
        entrants=entrants,
        epochs=epochs,
        targets={names[name]: target for name, target in targets.items()},
    )


RACES: Mapping[RaceName, tuple[Race, ...]] = {
    "original-float": (_race("imagenet", "centre", "float32", _ALL, best=1.3, decode=0.85),),
    "original-uint8": (_race("imagenet", "centre", "uint8", _THREADED, best=1.3),),
    "packed256": (
        _race("packed256", "centre", "float32", _PACKED, epochs=3, jpg=2.0, decode=0.7),
        _race("packed256", "centre", "uint8", _PACKED, epochs=3, jpg=2.0, decode=0.7),
    ),
    "imagenette224": (
        _race("imagenette", "whole", "float32", _SMALL, best=1.5),
        _race("imagenette", "whole", "uint8", _SMALL, best=1.5),
    ),
    "cached": (
        _race("imagenet", "centre", "uint8", _KEPT, epochs=10, raw=1.0),
        _race("imagenette", "whole", "uint8", _KEPT, epochs=5, raw=1.0),
    ),
    "rrc-original": (_race("imagenet", "random", "float32", _RANDOM, best=1.2, decode=0.85),),
    "rrc-packed256": (_race("packed256", "random", "uint8", _PACKED, epochs=3, jpg=1.3),),
}


def races(name: RaceName, setting: Setting) -> Iterator[Row]:
    """All loaders of a part by turns, beside decoding alone and copying alone."""
    for race in RACES[name]:
        images = setting.inputs.get(race.images)
        task = images.task(race.crop, race.pixels, setting.threads, epochs=race.epochs)
        entries = [racer(ENTRANTS[one], task, setting.processes) for one in race.entrants]
        limits = [
            *([decode_limit(images, task)] if race.entrants[0] != DECODED else []),
            copy_limit(task),
        ]
        found = _run(entries, limits, images, setting, epochs=race.epochs)
        rows = [row | {"threads": setting.threads} for row in found]
        about = {"input": race.images, "input_note": images.note, "crop": race.crop}
        first = race.entrants[0]
        for row in rows:
            extra = reached(rows, row, race.targets) if row["contender"] == first else {}
            yield {**about, "pixels": race.pixels, **row, **extra}


def thread_counts(setting: Setting) -> Iterator[Row]:
    """``coreset`` and decoding alone with 1 thread and with all."""
    images = setting.inputs.get("imagenet")
    entries: list[Racer | Absent] = []
    limits: list[Contender] = []
    threads_of: dict[str, int] = {}
    for threads in dict.fromkeys((1, setting.threads)):
        task = images.task("centre", "float32", threads)
        for name in (f"{OURS}, threads: {threads}", f"{DECODE}, threads: {threads}"):
            threads_of[name] = threads
        ours, limit = list(threads_of)[-2:]
        entries.append(racer(ENTRANTS[OURS], task, setting.processes, name=ours))
        limits.append(decode_limit(images, task, name=limit))
    for row in _run(entries, limits, images, setting):
        about = {"input": "imagenet", "input_note": images.note, "pixels": "float32"}
        yield {**about, "crop": "centre", **row, "threads": threads_of[row["contender"]]}


def reached(rows: Sequence[Row], ours: Row, targets: Mapping[str, float]) -> Row:
    """What a loader is to reach, and what it reached, as times the speed of others.

    Returns:
        ``targets``, ``reached`` (None where the other was absent or failed) and ``best_peer``.
    """
    peers = [row for row in rows if row["role"] == "peer" and "images_per_second" in row]
    best = max(peers, key=lambda row: row["images_per_second"], default=None)
    best_peer = None if best is None else best["contender"]
    over = ours.get("speed_over", {})
    found = {name: over.get(best_peer if name == BEST else name) for name in targets}
    return {"targets": dict(targets), "reached": found, "best_peer": best_peer}


def _run(
    entries: Sequence[Racer | Absent],
    limits: Sequence[Contender],
    images: Input,
    setting: Setting,
    *,
    epochs: int = 1,
) -> list[Row]:
    racers = {one.name: one for one in entries if isinstance(one, Racer)}
    with ExitStack() as stack:
        for one in racers.values():
            stack.callback(one.close)
        present = [*(one.contender() for one in racers.values()), *limits]
        measured = interleave(present, repeats=setting.repeats, work=setting.work)
        rows = measurements(
            measured,
            images=epochs * len(images.files),
            source_bytes=epochs * sum(map(len, images.contents)),
        )
        rows = [
            row | (racers[row["contender"]].facts(images) if _ran(row, racers) else {})
            for row in rows
        ]
    return [*rows, *(one.measured() for one in entries if isinstance(one, Absent))]


def _ran(row: Row, racers: Mapping[str, Racer]) -> bool:
    return row["contender"] in racers and "failed" not in row


def line(row: Mapping[str, Any]) -> str:
    """A row in a line, for whoever waits."""
    start = f"{row['bench']}, {row['input']}, {row['pixels']}, {row['contender']}: "
    if row.get("absent") or row.get("failed"):
        return start + (row.get("absent") or f"FAILED: {row['failed']}")
    if "peak_bytes" in row:
        return f"{start}{row['peak_bytes'] / 1e6:.0f} MB"
    if "first_batch_seconds" in row:
        return f"{start}{row['open_seconds']:.2f} s, then {row['first_batch_seconds']:.3f} s"
    shares = ", ".join(
        f"{row['reached'][other] or float('nan'):.2f} x {other} (target {target})"
        for other, target in row.get("targets", {}).items()
    )
    pixels = f"; pixels {row['pixels_max']} / {row['pixels_mean']}" if "pixels_max" in row else ""
    return f"{start}{row['images_per_second']:,.0f} images/s{pixels}; {shares}".rstrip("; ")
