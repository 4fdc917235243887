"""Images and loaders of ``coreset.bench.decode``, each loader in a process of its own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Contender, Role, Row, absent
from coreset.bench.inputs import SHORT_SIDE, Tree
from coreset.bench.peers import native_loaders as native
from coreset.bench.peers import torch_loaders as by_torch
from coreset.bench.peers.loaders import (
    SIZE,
    Crop,
    Delivered,
    Opener,
    Task,
    call_session,
)
from coreset.bench.processes import Process, open_peer
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Crops, Geometry
from coreset.shards.format.dataset import Dataset

OURS, FAST, CACHED = "coreset", "coreset, fast", "coreset, decoded pixels"


@dataclass(frozen=True, slots=True)
class Entrant:
    """A loader."""

    open: Opener
    versions: Callable[[], dict[str, str]]
    """Imports it in its process; raises ``ImportError`` where its packages are missing."""
    note: str = ""
    packages: str = ""
    """Folder of its packages among those of peers."""
    role: Role = "peer"
    reopened: bool = False
    """Made anew after each of its turns, because an idle one works on."""


def _ours(opener: Opener, note: str) -> Entrant:
    return Entrant(opener, native.coreset_versions, note, role="ours")


def _torchvision(opener: Opener) -> Entrant:
    return Entrant(opener, by_torch.torchvision_versions)


def _ffcv(mode: str, note: str) -> Entrant:
    return Entrant(partial(native.ffcv, mode), native.ffcv_versions, note, "ffcv")


ENTRANTS: Mapping[str, Entrant] = {
    OURS: _ours(partial(native.coreset, "turbo"), "coreset.loader, shuffled"),
    FAST: _ours(partial(native.coreset, "fast"), "coreset.loader, decoder fast, shuffled"),
    CACHED: _ours(native.coreset_cached, "coreset decode, shuffled"),
    "torchvision.io, threads": _torchvision(by_torch.threads),
    "ImageFolder + Pillow, workers": _torchvision(by_torch.image_folder),
    "webdataset + Pillow, workers": Entrant(by_torch.webdataset, by_torch.webdataset_versions),
    "DALI, shards": Entrant(native.dali, native.dali_versions, reopened=True),
    "FFCV, jpg": _ffcv("jpg", "its own file, JPEG of quality 90"),
    "FFCV, raw": _ffcv("raw", "its own file, pixels"),
    "SPDL, threads": Entrant(native.spdl, native.spdl_versions, packages="spdl"),
    "LitData + Pillow, workers": Entrant(
        by_torch.litdata, by_torch.litdata_versions, packages="litdata"
    ),
    "MosaicML Streaming + Pillow, workers": Entrant(
        by_torch.streaming, by_torch.streaming_versions, packages="streaming"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Images of a race of loaders."""

    tree: Tree
    dataset: Dataset
    folder: Path
    """For what loaders write."""

    @property
    def note(self) -> str:
        """Description of the images."""
        size = self.dataset.ints("bytes").mean() / 1000
        return f"{self.tree.note}; {size:.1f} kB each as packed"

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Files of the tree in the order of the sample ids."""
        sources = self.dataset.table(["source"])["source"].to_pylist()
        return tuple(self.tree.path / source for source in sources)

    @cached_property
    def contents(self) -> list[bytes]:
        """Bytes of every stored image, by id."""
        columns = [self.dataset.ints(name).tolist() for name in ("shard", "offset", "bytes")]
        shards = [path.read_bytes() for path in self.dataset.shard_paths()]
        return [shards[at][start : start + n] for at, start, n in zip(*columns, strict=True)]

    def reference(self, ids: Sequence[int], crop: Crop) -> NDArray[np.float32]:
        """Decode stored images with Pillow by torchvision's rules, float32 (n, s, s, 3).

        Random crops are those that ``coreset`` takes in epoch 0 of seed 0.
        """
        geometry = Geometry(SIZE, SHORT_SIDE if crop == "centre" else None)
        chosen = np.array(ids)
        boxes = [None] * len(ids)
        if crop == "random":
            sizes = (self.dataset.ints(name)[chosen] for name in ("width", "height"))
            boxes = map(tuple, Crops().boxes(chosen, *sizes, seed=0, epoch=0).tolist())
        images = [
            decode_with_pillow(self.contents[sample], geometry, crop=box)
            for sample, box in zip(ids, boxes, strict=True)
        ]
        return np.stack(images).astype(np.float32)


@dataclass(slots=True, kw_only=True)
class Racer:
    """A loader that its process has made for a task."""

    entrant: Entrant
    task: Task
    pool: ProcessPoolExecutor
    delivered: Delivered | None = None
    error: str = ""
    _sum: int | None = None

    def run(self, _out: Path) -> None:
        """Deliver the epochs of a turn."""
        try:
            self.delivered = self.pool.submit(call_session, "run").result()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
            self.error = reason_of(error)

    def check(self, _out: Path) -> str:
        """Compare what was delivered with the task and with the turn before."""
        if self.error or self.delivered is None:
            return self.error
        if self.entrant.reopened:
            self.pool.submit(call_session, "open", self.entrant.open, self.task).result()
        n = len(self.task.files)
        expected = self.task.epochs * n, n, self.task.pixels
        if self.delivered[:3] != expected:
            return f"expected {expected[0]} images of {n}, {expected[2]}; found {self.delivered}"
        before, self._sum = self._sum, self.delivered.sum_of_words
        if self.task.crop != "random" and before not in {None, self._sum}:
            return "the pixels of this turn differ from those of the turn before"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Racers:
    """Processes of loaders, each started when it is first needed, and the loaders of a race."""

    peers: Path
    """Folder with a folder of packages per peer."""
    stack: ExitStack
    """Ends the processes."""
    _processes: dict[str, Process | str] = field(default_factory=dict[str, Process | str])
    _racers: dict[str, Racer] = field(default_factory=dict[str, Racer])

    def enter(self, name: str, task: Task) -> Contender | Row:
        """Make a loader in its process; return it, or why it is absent."""
        entrant = ENTRANTS[name]
        if name not in self._processes:
            self._processes[name] = open_peer(
                self.stack, self.peers, entrant.packages, entrant.versions
            )
        process = self._processes[name]
        if isinstance(process, str):
            return absent(name, process)
        pool, versions = process
        try:
            pool.submit(call_session, "open", entrant.open, task).result()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
            return absent(name, reason_of(error))
        racer = self._racers[name] = Racer(entrant=entrant, task=task, pool=pool)
        return Contender(
            name=name,
            run=racer.run,
            role=entrant.role,
            check=racer.check,
            note=entrant.note,
            versions=versions,
        )

    def first_pixels(self, row: Row, crop: Crop) -> tuple[list[int], NDArray[np.float32]]:
        """Return ids and pixels of a contender's first images, none of crops of its own."""
        racer = self._racers.get(row["contender"])
        if racer is None or "failed" in row or (crop == "random" and row["role"] != "ours"):
            return [], np.empty(0, np.float32)
        return racer.pool.submit(call_session, "first_pixels").result()

    def close(self) -> None:
        """End the loaders, keep the processes."""
        for racer in self._racers.values():
            with suppress(BrokenProcessPool):
                racer.pool.submit(call_session, "close").result()
        self._racers.clear()


def difference(pixels: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """Return the largest and the mean absolute difference of two batches, in levels."""
    distance = np.abs(pixels - expected)
    return {
        "images_compared": len(pixels),
        "pixels_max": round(float(distance.max()), 2),
        "pixels_mean": round(float(distance.mean()), 3),
    }


def reason_of(error: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
