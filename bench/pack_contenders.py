"""Contenders of ``coreset.bench.pack``: ``coreset pack``, its peers, and the limits of both."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from coreset.bench.harness import Absent, Contender
from coreset.bench.inputs import (
    QUALITY,
    SHORT_SIDE,
    Labelled,
    Size,
    Tree,
    bytes_error,
    fingerprint,
    resized_pixels,
    size_error,
    sizes_at,
    sizes_of_tars,
)
from coreset.bench.peers import ffcv_writer, img2dataset_resize, limits, pillow_resize, shard_writer
from coreset.bench.processes import MissingPeerError, options, pool_of, run_coreset
from coreset.engine.runtime.progress import Display, choose_display
from coreset.engine.stages.pack import Pack

Check: TypeAlias = Callable[[Path], str]
Entries: TypeAlias = list[Contender | Absent]
OURS, COMMAND = "coreset pack", "coreset pack, new process"
RESIZE: Mapping[str, Any] = {"store": "resized", "short_side": SHORT_SIDE, "quality": QUALITY}
_DATA, _BETON = "data", "images.beton"
_FILES_PER_TASK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Place and repetitions."""

    work: Path
    """Existing folder for whatever is made."""
    peers: Path
    """Folder with a folder of packages per peer."""
    threads: int
    """Threads or processes of every contender."""
    repeats: int
    """Timed rounds."""
    samples_per_shard: int = 2000
    """In every contender's output."""


def original(tree: Tree, setting: Setting, stack: ExitStack) -> Entries:
    """Store files as they are and decode every one before."""
    contents, threads = tree.contents(), setting.threads
    check = partial(bytes_error, expected=_fingerprint(tree, contents))
    return [
        *stack.enter_context(ours(tree, setting, check, {})),
        *(
            writer(f"ShardWriter, {name}", tree, setting, check, decode)
            for name, decode in (
                ("our check", shard_writer.check_as_ours),
                ("full decode", shard_writer.check_in_full),
            )
        ),
        limit("decode", limits.decode, contents, threads),
        limit("check", limits.check, contents, threads),
    ]


def nocheck(tree: Tree, setting: Setting, stack: ExitStack) -> Entries:
    """Store files as they are, undecoded."""
    contents = tree.contents()
    check = partial(bytes_error, expected=_fingerprint(tree, contents))
    return [
        *stack.enter_context(ours(tree, setting, check, {"check": False})),
        writer("ShardWriter", tree, setting, check, shard_writer.no_check),
        limit("sha256", limits.digest, contents, setting.threads),
        copying(tree.files(), setting),
    ]


def resized(tree: Tree, setting: Setting, stack: ExitStack) -> Entries:
    """Re-encode files at a short side of 256 pixels."""
    contents, threads = tree.contents(), setting.threads
    labelled = list(zip((label for _, label in tree.files()), contents, strict=True))
    short = sizes_at(SHORT_SIDE, min, labelled)
    long = sizes_at(ffcv_writer.LONG_SIDE, max, labelled)
    recode = partial(limits.decode_and_encode, pixels=resized_pixels(contents))

    def check(out: Path) -> str:
        return size_error(sizes_of_tars(out), short)

    return [
        *stack.enter_context(ours(tree, setting, check, RESIZE)),
        *resizers(tree, setting, check, stack),
        ffcv(tree, setting, partial(size_error, expected=long), stack),
        limit("decode + encode", recode, contents, threads),
        limit("decode + resize + encode", limits.resize, contents, threads),
        stack.enter_context(least_loop(tree, setting)),
    ]


def _fingerprint(tree: Tree, contents: Sequence[bytes]) -> str:
    return fingerprint(zip((label for _, label in tree.files()), contents, strict=True))


ENTRIES: Mapping[str, Callable[[Tree, Setting, ExitStack], Entries]] = {
    "original": original,
    "nocheck": nocheck,
    "resized": resized,
}


@contextmanager
def ours(
    tree: Tree, setting: Setting, check: Check, fields: Mapping[str, Any]
) -> Generator[list[Contender]]:
    """Yield ``coreset pack`` in a process that has started and compiled, and in a new process."""
    settings: dict[str, Any] = {
        "workers": setting.threads,
        "samples_per_shard": setting.samples_per_shard,
        **fields,
    }
    with pool_of(None) as (pool, _):
        runs: dict[str, tuple[Callable[[Path], object], str]] = {
            OURS: (
                lambda out: pool.submit(_pack, tree.path, out / _DATA, settings).result(),
                "process started before the clock",
            ),
            COMMAND: (
                lambda out: run_coreset("pack", tree.path, out / _DATA, *options(settings)),
                "start-up of Python and imports counted",
            ),
        }
        yield [
            Contender(name=name, run=run, role="ours", check=check, note=note)
            for name, (run, note) in runs.items()
        ]


def _pack(source: Path, data: Path, settings: Mapping[str, Any]) -> None:
    choose_display(Display.QUIET)
    Pack(src=source, data=data, **settings).run()


def writer(
    name: str, tree: Tree, setting: Setting, check: Check, decode: Callable[[bytes], None]
) -> Contender:
    """Return ``webdataset.ShardWriter`` in a loop that decodes each file."""
    return Contender(
        name=name,
        run=lambda out: shard_writer.write_files(
            tree.files(), out, decode, setting.samples_per_shard
        ),
        check=check,
        note="one thread, as its users write it",
        versions=shard_writer.versions(),
    )


def limit(
    name: str, work: Callable[[Sequence[bytes]], None], contents: Sequence[bytes], threads: int
) -> Contender:
    """Return one part of the work, on all threads, from memory."""
    return Contender(
        name=name,
        run=lambda _out: limits.on_threads(work, contents, threads),
        role="limit",
        note="from memory",
    )


def copying(files: Sequence[Labelled], setting: Setting) -> Contender:
    """Return a writer of the bytes of all files."""
    return Contender(
        name="copy",
        run=lambda out: limits.copy(files, out, setting.threads, setting.samples_per_shard),
        role="limit",
        note="the same bytes into one file per shard",
    )


def resizers(
    tree: Tree, setting: Setting, check: Check, stack: ExitStack
) -> Iterator[Contender | Absent]:
    """Yield peers that re-encode files in processes; this process writes the results."""
    for name, peer, folder in (
        ("Pillow, processes", pillow_resize, None),
        ("img2dataset, processes", img2dataset_resize, setting.peers / "img2dataset"),
    ):
        try:
            opened = pool_of(folder, setting.threads, peer.versions)
            pool, versions = stack.enter_context(opened)
        except MissingPeerError as error:
            yield Absent(name=name, reason=str(error))
            continue
        yield Contender(
            name=name,
            run=lambda out, pool=pool, peer=peer: shard_writer.write_resized(
                pool, peer.reencode, tree.files(), out, setting.samples_per_shard
            ),
            check=check,
            note="processes started before the clock",
            versions=versions,
        )


@contextmanager
def least_loop(tree: Tree, setting: Setting) -> Generator[Contender]:
    """Yield processes that resize files into shards of their own and do nothing more."""
    files = tree.files()
    starts = range(0, len(files), _FILES_PER_TASK)
    with pool_of(None, setting.threads) as (pool, _):

        def run(out: Path) -> None:
            slices = (files[at : at + _FILES_PER_TASK] for at in starts)
            for _done in pool.map(partial(limits.resize_shard, out), slices, starts):
                pass

        yield Contender(
            name="least loop",
            run=run,
            role="limit",
            note="processes started before the clock; no list of files, no tables, no resuming",
        )


def ffcv(
    tree: Tree, setting: Setting, check: Callable[[Sequence[Size]], str], stack: ExitStack
) -> Contender | Absent:
    """Return FFCV's writer, which starts its own processes out of one that has imported it."""
    name = "FFCV, jpg"
    try:
        opened = pool_of(setting.peers / "ffcv", 1, ffcv_writer.versions)
        pool, versions = stack.enter_context(opened)
    except MissingPeerError as error:
        return Absent(name=name, reason=str(error))

    def write(out: Path) -> None:
        pool.submit(ffcv_writer.write, tree.files(), out / _BETON, setting.threads).result()

    return Contender(
        name=name,
        run=write,
        check=lambda out: check(pool.submit(ffcv_writer.sizes, out / _BETON).result()),
        note=f"long side {ffcv_writer.LONG_SIDE}, it bounds no short side; unchecked",
        versions=versions,
    )
