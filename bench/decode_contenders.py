"""Contenders of ``coreset.bench.decode``: loaders in processes of their own, and limits of all."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.bench.decode_inputs import Input, Inputs, difference
from coreset.bench.harness import Absent, Contender, Role
from coreset.bench.peers import (
    coreset_loader,
    dali_loader,
    ffcv_loader,
    limits,
    litdata_loader,
    loaders,
    simplejpeg_torch,
    spdl_loader,
    streaming_loader,
    torchvision_loader,
    webdataset_loader,
)
from coreset.bench.peers.loaders import BATCH, SIZE, Opener, Task
from coreset.bench.processes import MissingPeerError, pool_of

OURS, FAST, DECODED = "coreset", "coreset, fast", "coreset, decoded pixels"
PARTS = "simplejpeg + torch, threads"
DECODE, COPY = "decode", "copy"
_IMAGES_PER_TASK = 32
Versions: TypeAlias = Callable[[], dict[str, str]]
Process: TypeAlias = tuple[ProcessPoolExecutor, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A loader."""

    open: Opener
    versions: Versions
    """Imports it in its process; raises ``ImportError`` where its packages are missing."""
    note: str = ""
    packages: str = ""
    """Folder of its packages among those of peers."""
    role: Role = "peer"
    reopened: bool = False
    """Made anew after each of its turns, because an idle one works on."""
    our_crops: bool = False
    """Takes the random crops of ``coreset.engine.data.geometry``, which can be taken again."""


def _ours(open_: Opener, note: str) -> Entrant:
    return Entrant(open_, coreset_loader.versions, note, role="ours", our_crops=True)


def _torchvision(open_: Opener) -> Entrant:
    return Entrant(open_, torchvision_loader.versions)


def _dali(open_: Opener) -> Entrant:
    return Entrant(open_, dali_loader.versions, reopened=True)


ENTRANTS: Mapping[str, Entrant] = {
    OURS: _ours(coreset_loader.exact, "coreset.loader, shuffled"),
    FAST: _ours(coreset_loader.fast, "coreset.loader, decoder fast, shuffled"),
    DECODED: _ours(coreset_loader.decoded, "coreset decode, shuffled"),
    PARTS: Entrant(
        simplejpeg_torch.in_parts,
        simplejpeg_torch.versions,
        "the decoder that coreset has, torch's resize",
        role="ours",
    ),
    "torchvision.io, threads": _torchvision(torchvision_loader.io_in_threads),
    "torchvision.io, workers": _torchvision(torchvision_loader.io_in_workers),
    "ImageFolder + Pillow, workers": _torchvision(torchvision_loader.pillow_in_workers),
    "webdataset + Pillow, workers": Entrant(
        webdataset_loader.pillow_in_workers, webdataset_loader.versions
    ),
    "DALI, shards": _dali(dali_loader.over_shards),
    "DALI, files": _dali(dali_loader.over_files),
    "FFCV, jpg": Entrant(
        ffcv_loader.jpegs, ffcv_loader.versions, "its own file, JPEG of quality 90", "ffcv"
    ),
    "FFCV, raw": Entrant(ffcv_loader.raw, ffcv_loader.versions, "its own file, pixels", "ffcv"),
    "SPDL, threads": Entrant(spdl_loader.in_threads, spdl_loader.versions, packages="spdl"),
    "LitData + Pillow, workers": Entrant(
        litdata_loader.pillow_in_workers, litdata_loader.versions, packages="litdata"
    ),
    "MosaicML Streaming + Pillow, workers": Entrant(
        streaming_loader.pillow_in_workers, streaming_loader.versions, packages="streaming"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Processes of loaders, each started when it is first needed and kept until the end."""

    peers: Path
    """Folder with a folder of packages per peer."""
    stack: ExitStack
    """Ends them."""
    _started: dict[str, Process | str] = field(default_factory=dict[str, Process | str])

    def get(self, entrant: Entrant, name: str) -> Process | str:
        """Return the process of that name, or why the loader cannot be imported."""
        if name not in self._started:
            folder = self.peers / entrant.packages if entrant.packages else None
            try:
                process = self.stack.enter_context(pool_of(folder, 1, entrant.versions))
            except MissingPeerError as error:
                process = str(error)
            self._started[name] = process
        return self._started[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Place, inputs and repetitions."""

    work: Path
    inputs: Inputs
    processes: Processes
    threads: int
    repeats: int


@dataclass(slots=True, kw_only=True)
class Racer:
    """A loader that its process has made for a task."""

    entrant: Entrant
    name: str
    task: Task
    pool: ProcessPoolExecutor
    versions: Mapping[str, str]
    _delivered: loaders.Delivered | None = None
    _sum: int | None = None
    _error: str = ""

    def contender(self) -> Contender:
        """Return it for ``harness.interleave``."""
        return Contender(
            name=self.name,
            run=self._run,
            role=self.entrant.role,
            check=self._check,
            note=self.entrant.note,
            versions=self.versions,
        )

    def difference(self, images: Input) -> dict[str, Any]:
        """Compare its pixels with Pillow's; empty where it drew crops of its own."""
        if self.task.crop == "random" and not self.entrant.our_crops:
            return {}
        ids, pixels = self.pool.submit(loaders.first_pixels).result()
        compared = {"images_compared": len(ids)}
        return compared | difference(pixels, images.reference(ids, self.task.crop))

    def close(self) -> None:
        """End the loader, keep the process."""
        with suppress(BrokenProcessPool):
            self.pool.submit(loaders.close_loader).result()

    def _run(self, _out: Path) -> None:
        try:
            self._delivered = self.pool.submit(loaders.run_turn).result()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
            self._error = reason_of(error)

    def _check(self, _out: Path) -> str:
        if self._error or self._delivered is None:
            return self._error
        if self.entrant.reopened:
            self.pool.submit(loaders.reopen_loader).result()
        delivered, files = self._delivered, len(self.task.files)
        expected = self.task.epochs * files, files, self.task.pixels
        if (delivered.images, delivered.distinct, delivered.pixels) != expected:
            return f"expected {expected[0]} images of {files}, {expected[2]}; found {delivered}"
        first, self._sum = self._sum, delivered.sum_of_words
        if self.task.crop != "random" and first not in {None, self._sum}:
            return "the pixels of this turn differ from those of the turn before"
        return ""


def racer(name: str, task: Task, processes: Processes, *, called: str = "") -> Racer | Absent:
    """Make a loader in its process.

    Args:
        name: Name of the loader.
        task: What it has to hand over.
        processes: Holds its process.
        called: Name that it takes part by, if it does so twice.
    """
    entrant, name = ENTRANTS[name], called or name
    process = processes.get(entrant, name)
    if isinstance(process, str):
        return Absent(name=name, reason=process)
    pool, versions = process
    try:
        pool.submit(loaders.open_loader, entrant.open, task).result()
    except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
        return Absent(name=name, reason=reason_of(error))
    return Racer(entrant=entrant, name=name, task=task, pool=pool, versions=versions)


def decode_limit(images: Input, task: Task, *, name: str = DECODE) -> Contender:
    """Return decoding alone at stored size, from memory."""
    return Contender(
        name=name,
        run=lambda _out: limits.on_threads(
            limits.decode, task.epochs * images.contents, task.threads, _IMAGES_PER_TASK
        ),
        role="limit",
        note="simplejpeg, from memory, at stored size",
    )


def copy_limit(task: Task) -> Contender:
    """Return copying as many bytes as come out, into memory that is allocated before."""
    batch = np.ones((BATCH, SIZE, SIZE, 3), task.pixels)
    batches = -(-task.epochs * len(task.files) // BATCH)
    shares = [
        (np.ones_like(batch), len(range(thread, batches, task.threads)))
        for thread in range(task.threads)
    ]

    def copy(shares: Sequence[tuple[NDArray[Any], int]]) -> None:
        for memory, times in shares:
            for _ in range(times):
                np.copyto(memory, batch)

    return Contender(
        name=COPY,
        run=lambda _out: limits.on_threads(copy, shares, task.threads, 1),
        role="limit",
        note="as many bytes as come out, memory to memory",
    )


def reason_of(error: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
