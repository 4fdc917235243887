"""Who takes part in ``bench.decode``: loaders in processes of their own, and the limits of all."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.bench import decode_ours
from coreset.bench.contenders import Absent, Contender, Role
from coreset.bench.decode_inputs import Input, difference
from coreset.bench.peers import (
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
from coreset.bench.peers.pools import MissingPeerError, pool_of

OURS, FAST, DECODED = "coreset", "coreset, fast", "coreset, decoded pixels"
PARTS = "simplejpeg + torch, threads"
DECODE, COPY = "decode", "copy"
_IMAGES_PER_TASK = 32
Process: TypeAlias = tuple[ProcessPoolExecutor, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A loader."""

    name: str
    open: Opener
    versions: Callable[[], dict[str, str]]
    """Imports it in its process; raises ``ImportError`` where its packages are missing."""
    packages: str = ""
    """Folder of its packages among those of peers."""
    role: Role = "peer"
    reopened: bool = False
    """Made anew after each of its turns, because an idle one works on."""
    our_crops: bool = False
    """Random crops are those of ``coreset.engine.data.geometry``, which can be taken again."""
    note: str = ""


ENTRANTS: Mapping[str, Entrant] = {
    one.name: one
    for one in (
        Entrant(
            name=OURS,
            open=decode_ours.exact,
            versions=decode_ours.versions,
            role="ours",
            our_crops=True,
            note="coreset.loader, shuffled",
        ),
        Entrant(
            name=FAST,
            open=decode_ours.fast,
            versions=decode_ours.versions,
            role="ours",
            our_crops=True,
            note="coreset.loader, decoder fast, shuffled",
        ),
        Entrant(
            name=DECODED,
            open=decode_ours.decoded,
            versions=decode_ours.versions,
            role="ours",
            note="coreset decode, shuffled",
        ),
        Entrant(
            name=PARTS,
            open=simplejpeg_torch.in_parts,
            versions=simplejpeg_torch.versions,
            role="ours",
            note="the decoder that coreset has, torch's resize",
        ),
        Entrant(
            name="torchvision.io, threads",
            open=torchvision_loader.io_in_threads,
            versions=torchvision_loader.versions,
        ),
        Entrant(
            name="torchvision.io, workers",
            open=torchvision_loader.io_in_workers,
            versions=torchvision_loader.versions,
        ),
        Entrant(
            name="ImageFolder + Pillow, workers",
            open=torchvision_loader.pillow_in_workers,
            versions=torchvision_loader.versions,
        ),
        Entrant(
            name="webdataset + Pillow, workers",
            open=webdataset_loader.pillow_in_workers,
            versions=webdataset_loader.versions,
        ),
        Entrant(
            name="DALI, shards",
            open=dali_loader.over_shards,
            versions=dali_loader.versions,
            reopened=True,
        ),
        Entrant(
            name="DALI, files",
            open=dali_loader.over_files,
            versions=dali_loader.versions,
            reopened=True,
        ),
        Entrant(
            name="FFCV, jpg",
            open=ffcv_loader.jpegs,
            versions=ffcv_loader.versions,
            packages="ffcv",
            note="its own file, JPEG of quality 90",
        ),
        Entrant(
            name="FFCV, raw",
            open=ffcv_loader.raw,
            versions=ffcv_loader.versions,
            packages="ffcv",
            note="its own file, pixels",
        ),
        Entrant(
            name="SPDL, threads",
            open=spdl_loader.in_threads,
            versions=spdl_loader.versions,
            packages="spdl",
        ),
        Entrant(
            name="LitData + Pillow, workers",
            open=litdata_loader.pillow_in_workers,
            versions=litdata_loader.versions,
            packages="litdata",
        ),
        Entrant(
            name="MosaicML Streaming + Pillow, workers",
            open=streaming_loader.pillow_in_workers,
            versions=streaming_loader.versions,
            packages="streaming",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """A process per loader, started when it is first needed and kept until the end."""

    peers: Path
    """Folder with a folder of packages per peer."""
    stack: ExitStack
    """Ends them."""
    _started: dict[str, Process | str] = field(default_factory=dict[str, Process | str])

    def get(self, entrant: Entrant, name: str) -> Process | str:
        """The process of that name, or why the loader cannot be imported."""
        if name not in self._started:
            folder = self.peers / entrant.packages if entrant.packages else None
            try:
                entered = self.stack.enter_context(pool_of(folder, 1, entrant.versions))
            except MissingPeerError as error:
                entered = str(error)
            self._started[name] = entered
        return self._started[name]


@dataclass(slots=True, kw_only=True)
class Racer:
    """A loader in its process, which has made it for a task."""

    entrant: Entrant
    name: str
    task: Task
    pool: ProcessPoolExecutor
    versions: Mapping[str, str]
    _found: loaders.Delivered | None = None
    _sum: int | None = None
    _error: str = ""

    def contender(self) -> Contender:
        """For ``coreset.bench.contenders.interleave``."""
        return Contender(
            name=self.name,
            run=self._run,
            role=self.entrant.role,
            complaint=self._complaint,
            note=self.entrant.note,
            versions=self.versions,
        )

    def facts(self, images: Input) -> dict[str, Any]:
        """How far its pixels are from Pillow's; nothing where it drew crops of its own."""
        if self.task.crop == "random" and not self.entrant.our_crops:
            return {}
        ids, found = self.pool.submit(loaders.first_pixels).result()
        compared = {"images_compared": len(ids)}
        return compared | difference(found, images.reference(ids, self.task.crop))

    def close(self) -> None:
        """End the loader, keep the process."""
        with suppress(BrokenProcessPool):
            self.pool.submit(loaders.close_loader).result()

    def _run(self, _out: Path) -> None:
        try:
            self._found = self.pool.submit(loaders.run_turn).result()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
            self._error = reason_of(error)

    def _complaint(self, _out: Path) -> str:
        if self._error or self._found is None:
            return self._error
        if self.entrant.reopened:
            self.pool.submit(loaders.reopen_loader).result()
        found, wanted = self._found, len(self.task.files)
        expected = self.task.epochs * wanted, wanted, self.task.pixels
        if (found.images, found.distinct, found.pixels) != expected:
            return f"expected {expected[0]} images of {wanted}, {self.task.pixels}; found {found}"
        first, self._sum = self._sum, found.sum_of_words
        if self.task.crop != "random" and first not in {None, self._sum}:
            return "the pixels of this turn differ from those of the turn before"
        return ""


def racer(entrant: Entrant, task: Task, processes: Processes, *, name: str = "") -> Racer | Absent:
    """Make a loader in its process.

    Args:
        entrant: The loader.
        task: What it has to hand over.
        processes: Where it finds its process.
        name: Other than its own, if it takes part twice.
    """
    name = name or entrant.name
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
    """Decoding alone at stored size, from memory."""
    return Contender(
        name=name,
        run=lambda _out: limits.on_threads(
            limits.decode, task.epochs * images.contents, task.threads, _IMAGES_PER_TASK
        ),
        role="limit",
        note="simplejpeg, from memory, at stored size",
    )


def copy_limit(task: Task) -> Contender:
    """Copying as many bytes as come out, into memory that is there already."""
    batch = np.ones((BATCH, SIZE, SIZE, 3), task.pixels)
    batches = -(-task.epochs * len(task.files) // BATCH)
    shares = [
        (np.ones_like(batch), len(range(thread, batches, task.threads)))
        for thread in range(task.threads)
    ]

    def copy(some: Sequence[tuple[NDArray[Any], int]]) -> None:
        for memory, times in some:
            for _ in range(times):
                np.copyto(memory, batch)

    return Contender(
        name=COPY,
        run=lambda _out: limits.on_threads(copy, shares, task.threads, 1),
        role="limit",
        note="as many bytes as come out, memory to memory",
    )


def reason_of(error: Exception) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
