"""Who takes part in ``coreset.bench.pack``: ``coreset pack``, its peers, and the limits of both."""

import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from coreset.bench.contenders import Absent, Contender
from coreset.bench.pack_inputs import Labelled, Tree
from coreset.bench.peers import ffcv_writer, limits, shard_writer
from coreset.bench.peers.pools import MissingPeerError, pool_of
from coreset.engine.runtime.progress import Display, choose_display
from coreset.engine.stages.pack import Pack

Complaint: TypeAlias = Callable[[Path], str]
OURS = "coreset pack"
COMMAND = "coreset pack, new process"
CORESET = (sys.executable, "-m", "coreset.engine.cli")
_DATA = "data"
_BETON = "images.beton"
_FILES_PER_TASK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how often."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizer:
    """A peer that re-encodes files in processes."""

    name: str
    versions: Callable[[], dict[str, str]]
    """Imports it in a process; raises ``ImportError`` where its packages are missing."""
    reencode: shard_writer.Reencode
    folder: Path | None = None
    """Its packages, beside those of the project."""


def words(fields: Mapping[str, Any]) -> list[str]:
    """Fields of a stage as options of its command line."""
    options: list[str] = []
    for name, value in fields.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            options += [f"--{option}", str(value)]
    return options


@contextmanager
def ours(
    tree: Tree, setting: Setting, complaint: Complaint, fields: Mapping[str, Any]
) -> Generator[list[Contender]]:
    """``coreset pack`` in a process that has started and compiled, and as a user starts it."""
    settings: dict[str, Any] = {
        "workers": setting.threads,
        "samples_per_shard": setting.samples_per_shard,
        **fields,
    }

    def start(out: Path) -> None:
        command = [*CORESET, "pack", str(tree.path), str(out / _DATA), *words(settings)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    with pool_of(None, 1, dict[str, str]) as (pool, _):

        def call(out: Path) -> None:
            pool.submit(_pack, tree.path, out / _DATA, settings).result()

        yield [
            Contender(
                name=OURS,
                run=call,
                role="ours",
                complaint=complaint,
                note="process started before the clock",
            ),
            Contender(
                name=COMMAND,
                run=start,
                role="ours",
                complaint=complaint,
                note="start-up of Python and imports counted",
            ),
        ]


def _pack(source: Path, data: Path, settings: Mapping[str, Any]) -> None:
    choose_display(Display.QUIET)
    Pack(src=source, data=data, **settings).run()


def writer(
    name: str, tree: Tree, setting: Setting, complaint: Complaint, check: Callable[[bytes], None]
) -> Contender:
    """``webdataset.ShardWriter`` in a loop with a check."""
    return Contender(
        name=name,
        run=lambda out: shard_writer.write_files(
            tree.files(), out, check, setting.samples_per_shard
        ),
        complaint=complaint,
        note="one thread, as its users write it",
        versions=shard_writer.versions(),
    )


def limit(
    name: str, work: Callable[[Sequence[bytes]], None], contents: Sequence[bytes], threads: int
) -> Contender:
    """One part of the work, on all threads, from memory."""
    return Contender(
        name=name,
        run=lambda _out: limits.on_threads(work, contents, threads),
        role="limit",
        note="from memory",
    )


def copying(files: Sequence[Labelled], setting: Setting) -> Contender:
    """The bytes of all files written to the disk."""
    return Contender(
        name="copy",
        run=lambda out: limits.copy(files, out, setting.threads, setting.samples_per_shard),
        role="limit",
        note="the same bytes into one file per shard",
    )


@contextmanager
def resizer(
    peer: Resizer, tree: Tree, setting: Setting, complaint: Complaint
) -> Generator[Contender | Absent]:
    """A resizer in processes, whose results this process writes with ``ShardWriter``."""
    try:
        with pool_of(peer.folder, setting.threads, peer.versions) as (pool, versions):

            def write(out: Path) -> None:
                shard_writer.write_resized(
                    pool, peer.reencode, tree.files(), out, setting.samples_per_shard
                )

            yield Contender(
                name=peer.name,
                run=write,
                complaint=complaint,
                note="processes started before the clock",
                versions=versions,
            )
    except MissingPeerError as error:
        yield Absent(name=peer.name, reason=str(error))


@contextmanager
def least_loop(tree: Tree, setting: Setting) -> Generator[Contender]:
    """What resizes files and nothing more, in processes that each fill shards of their own."""
    files = tree.files()
    starts = range(0, len(files), _FILES_PER_TASK)
    with pool_of(None, setting.threads, dict[str, str]) as (pool, _):

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


@contextmanager
def ffcv(
    tree: Tree, setting: Setting, complaint: Callable[[Sequence[ffcv_writer.Size]], str]
) -> Generator[Contender | Absent]:
    """FFCV's writer, which starts its own processes out of one that has imported it."""
    name = "FFCV, jpg"
    try:
        with pool_of(setting.peers / "ffcv", 1, ffcv_writer.versions) as (pool, versions):

            def write(out: Path) -> None:
                path = out / _BETON
                pool.submit(ffcv_writer.write, tree.files(), path, setting.threads).result()

            yield Contender(
                name=name,
                run=write,
                complaint=lambda out: complaint(
                    pool.submit(ffcv_writer.sizes, out / _BETON).result()
                ),
                note=f"long side {ffcv_writer.LONG_SIDE}, it bounds no short side; unchecked",
                versions=versions,
            )
    except MissingPeerError as error:
        yield Absent(name=name, reason=str(error))
