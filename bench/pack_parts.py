"""The parts of ``bench.pack``: what each contender must produce, and what is to be reached."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from coreset.bench import pack_contenders as take_part
from coreset.bench.contenders import Absent, Contender, interleave, measurements
from coreset.bench.pack_contenders import CORESET, OURS, Resizer, Setting, words
from coreset.bench.pack_inputs import (
    QUALITY,
    SHORT_SIDE,
    Tree,
    complaint_of_bytes,
    complaint_of_sizes,
    fingerprint,
    resized_pixels,
    sizes_at,
    sizes_of_tars,
)
from coreset.bench.pack_memory import watch
from coreset.bench.pack_open import write_dataset
from coreset.bench.peers import ffcv_writer, img2dataset_resize, limits, pillow_resize, shard_writer
from coreset.shards.format.dataset import Dataset

Row: TypeAlias = dict[str, Any]
# Times the speed of another contender that `coreset pack` is to reach.
TARGETS: Mapping[str, Mapping[str, float]] = {
    "original": {"ShardWriter, our check": 1.8, "ShardWriter, full decode": 1.8, "decode": 0.85},
    "nocheck": {"ShardWriter": 1.5},
    "resized": {"Pillow, processes": 1.4, "img2dataset, processes": 1.1, "decode + encode": 0.85},
}
MEMORY_BYTES, MEMORY_BYTES_PER_IMAGE = 300_000_000, 150
VERIFY_SECONDS, OPEN_SECONDS = 5.0, 1.0
RESIZE: Mapping[str, Any] = {"store": "resized", "short_side": SHORT_SIDE, "quality": QUALITY}


def original(tree: Tree, setting: Setting) -> Iterator[Row]:
    """Files stored as they are, every one decoded before."""
    contents = tree.contents()
    complaint = partial(complaint_of_bytes, expected=_fingerprint(tree, contents))
    with take_part.ours(tree, setting, complaint, {}) as ours:
        entries = [
            *ours,
            take_part.writer(
                "ShardWriter, our check", tree, setting, complaint, shard_writer.check_as_ours
            ),
            take_part.writer(
                "ShardWriter, full decode", tree, setting, complaint, shard_writer.check_in_full
            ),
            take_part.limit("decode", limits.decode, contents, setting.threads),
            take_part.limit("check", limits.check, contents, setting.threads),
        ]
        yield from _race("original", tree, setting, entries)


def nocheck(tree: Tree, setting: Setting) -> Iterator[Row]:
    """Files stored as they are, undecoded."""
    contents = tree.contents()
    complaint = partial(complaint_of_bytes, expected=_fingerprint(tree, contents))
    with take_part.ours(tree, setting, complaint, {"check": False}) as ours:
        entries = [
            *ours,
            take_part.writer("ShardWriter", tree, setting, complaint, shard_writer.no_check),
            take_part.limit("sha256", limits.digest, contents, setting.threads),
            take_part.copying(tree.files(), setting),
        ]
        yield from _race("nocheck", tree, setting, entries)


def resized(tree: Tree, setting: Setting) -> Iterator[Row]:
    """Files re-encoded at a short side of 256 pixels."""
    contents = tree.contents()
    labelled = list(zip((label for _, label in tree.files()), contents, strict=True))
    short = sizes_at(SHORT_SIDE, min, labelled)
    long = sizes_at(ffcv_writer.LONG_SIDE, max, labelled)
    recode = partial(limits.decode_and_encode, pixels=resized_pixels(contents))

    def complaint(out: Path) -> str:
        return complaint_of_sizes(sizes_of_tars(out), short)

    with ExitStack() as stack:
        entries = [
            *stack.enter_context(take_part.ours(tree, setting, complaint, RESIZE)),
            *(
                stack.enter_context(take_part.resizer(peer, tree, setting, complaint))
                for peer in _resizers(setting)
            ),
            stack.enter_context(
                take_part.ffcv(tree, setting, partial(complaint_of_sizes, expected=long))
            ),
            take_part.limit("decode + encode", recode, contents, setting.threads),
            take_part.limit("decode + resize + encode", limits.resize, contents, setting.threads),
            stack.enter_context(take_part.least_loop(tree, setting)),
        ]
        yield from _race("resized", tree, setting, entries)


def _resizers(setting: Setting) -> tuple[Resizer, ...]:
    return (
        Resizer(
            name="Pillow, processes",
            versions=pillow_resize.versions,
            reencode=pillow_resize.reencode,
        ),
        Resizer(
            name="img2dataset, processes",
            versions=img2dataset_resize.versions,
            reencode=img2dataset_resize.reencode,
            folder=setting.peers / "img2dataset",
        ),
    )


def memory(tree: Tree, setting: Setting) -> Iterator[Row]:
    """Peak memory of packing a tree in each way, and of verifying what was packed; one run each."""
    images = len(tree.files())
    allowed = MEMORY_BYTES + MEMORY_BYTES_PER_IMAGE * images
    ways: Mapping[str, Mapping[str, Any]] = {
        "original": {},
        "nocheck": {"check": False},
        "resized": RESIZE,
    }
    commands = {
        f"pack, {way}": ["pack", str(tree.path), str(setting.work / way), *words(fields)]
        for way, fields in ways.items()
    }
    commands["verify"] = ["verify", str(setting.work / "original")]
    for name, command in commands.items():
        threads = words({"workers": setting.threads})
        watched = watch([*CORESET, *command, *threads], setting.work / "errors")
        yield {
            "input": tree.name,
            "input_note": tree.note,
            "contender": name,
            "images": images,
            "peak_pss_bytes": watched.peak_pss_bytes,
            "allowed_bytes": allowed,
            "most_processes": watched.most_processes,
            "looks": watched.looks,
            "wall_seconds": round(watched.wall_seconds, 2),
            "failed": watched.failed,
        }
    for way in ways:
        shutil.rmtree(setting.work / way)


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
    limits_seconds = {entries[0].name: VERIFY_SECONDS, "Dataset.open": OPEN_SECONDS}
    for row in _measured(entries, setting, images=0, source_bytes=0):
        yield row | {"limit_seconds": limits_seconds.get(row["contender"])}


def line(row: Mapping[str, Any]) -> str:
    """A row in a line, for whoever waits."""
    start = f"{row['bench']}, {row.get('input', 'sparse shards')}, {row['contender']}: "
    if row.get("absent") or row.get("failed"):
        return start + (row.get("absent") or f"FAILED: {row['failed']}")
    if "peak_pss_bytes" in row:
        peak, allowed = row["peak_pss_bytes"] / 1e6, row["allowed_bytes"] / 1e6
        return f"{start}{peak:.0f} MB at most, allowed {allowed:.0f} MB, {row['wall_seconds']} s"
    spread = f"{row['min_seconds']:.2f} .. {row['max_seconds']:.2f}"
    reached = ", ".join(
        f"{row['speed_over'].get(other, float('nan')):.2f} x {other} (target {target})"
        for other, target in row.get("targets", {}).items()
    )
    rate = f", {row['images_per_second']:,.0f} images/s" if "images" in row else ""
    return f"{start}{row['median_seconds']:.2f} s ({spread}){rate}; {reached}".rstrip("; ")


def _race(
    part: str, tree: Tree, setting: Setting, entries: Sequence[Contender | Absent]
) -> Iterator[Row]:
    rows = _measured(entries, setting, images=len(tree.files()), source_bytes=tree.source_bytes())
    for row in rows:
        targets = {"targets": TARGETS[part]} if row["contender"] == OURS else {}
        yield {"input": tree.name, "input_note": tree.note, **row, **targets}


def _measured(
    entries: Sequence[Contender | Absent], setting: Setting, *, images: int, source_bytes: int
) -> list[Row]:
    present = [one for one in entries if isinstance(one, Contender)]
    measured = interleave(present, repeats=setting.repeats, work=setting.work)
    rows = measurements(measured, images=images, source_bytes=source_bytes)
    absent = [one.measured() for one in entries if isinstance(one, Absent)]
    return [row | {"threads": setting.threads} for row in (*rows, *absent)]


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


def _fingerprint(tree: Tree, contents: Sequence[bytes]) -> str:
    labels = (label for _, label in tree.files())
    return fingerprint(zip(labels, contents, strict=True))


ROWS: Mapping[str, Callable[[Tree, Setting], Iterator[Row]]] = {
    "original": original,
    "nocheck": nocheck,
    "resized": resized,
    "memory": memory,
}
