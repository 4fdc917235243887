"""Host's work per batch before DALI decodes: image by image as it was, and by one buffer as it is.

DALI's graph ends where it has the bytes and regions, so that nothing is decoded.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Contender, Row, race
from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.decoders.turbo import is_plain_jpeg
from coreset.engine.data.geometry import Geometry, Ints, Pixels
from coreset.engine.data.reader import LazyBytes, ShardReader
from coreset.shards.format.dataset import Dataset

HOST_BATCH = 256
BY_IMAGE, TOGETHER = "image by image", "ours, one buffer"
CLOCKS = {"wall": time.perf_counter, "the decoding thread alone": time.thread_time}
"""The thread that decodes has others read for it, which a machine of many cores has to spare."""
PHOTOS = Geometry(224, 256)
Regions: TypeAlias = NDArray[np.float32]


def host_work(dataset: Dataset, *, threads: int, repeats: int, work: Path) -> list[Row]:
    """Race both ways over shuffled batches; the last batch of each is compared."""
    ids = np.random.default_rng(0).permutation(len(dataset))
    batches = np.array_split(ids, len(ids) // HOST_BATCH)
    with ShardReader(dataset) as reader:
        reader.read(ids)  # into the page cache
        ours = _Run(reader, dataset, batches, threads, _together)
        before = _Run(reader, dataset, batches, threads, _by_image)
        entries = [
            Contender(name=TOGETHER, run=ours, role="ours", check=ours.check),
            Contender(name=BY_IMAGE, run=before, check=before.check),
        ]
        n_bytes = int(dataset.ints("bytes").sum())
        return [
            row | {"clock": name}
            for name, clock in CLOCKS.items()
            for row in race(
                entries,
                repeats=repeats,
                work=work,
                images=len(ids),
                source_bytes=n_bytes,
                clock=clock,
            )
        ]


class _Run:
    def __init__(
        self,
        reader: ShardReader,
        dataset: Dataset,
        batches: list[Ints],
        threads: int,
        prepare: Callable[..., tuple[list[Pixels], Regions]],
    ) -> None:
        self._reader, self._dataset, self._batches = reader, dataset, batches
        self._prepare, self._memory = prepare, BatchMemory()
        self._pipeline = _taking(threads, no_copy=prepare is _together)
        self._last: tuple[list[Pixels], Regions] = [], np.empty(0, np.float32)

    def __call__(self, _out: Path) -> None:
        widths, heights = self._dataset.ints("width"), self._dataset.ints("height")
        for ids in self._batches:
            data = self._reader.fetch(ids)
            self._last = self._prepare(data, widths[ids], heights[ids], self._memory)
            encoded, regions = self._last
            starts, ends = map(np.ascontiguousarray, regions.swapaxes(0, 1))
            self._pipeline.run(encoded=encoded, region_start=starts, region_end=ends)

    def check(self, _out: Path) -> str:
        ids, (encoded, regions) = self._batches[-1], self._last
        expected = _by_image(
            self._reader.read(ids), self._dataset.ints("width")[ids],
            self._dataset.ints("height")[ids], self._memory,
        )  # fmt: skip
        same = all(map(np.array_equal, encoded, expected[0]))
        return "" if same and np.array_equal(regions, expected[1]) else "other bytes or regions"


def _together(
    data: LazyBytes, widths: Ints, heights: Ints, memory: BatchMemory
) -> tuple[list[Pixels], Regions]:
    encoded = data.read_together(memory)
    _require_plain(encoded, widths, heights)
    return encoded, PHOTOS.regions(widths, heights).astype(np.float32)


def _by_image(
    data: Any,  # noqa: ANN401 - bytes, or samples that are read when they are asked for
    widths: Ints,
    heights: Ints,
    _memory: BatchMemory,
) -> tuple[list[Pixels], Regions]:
    encoded = [np.frombuffer(data[i], np.uint8) for i in range(len(widths))]
    _require_plain(encoded, widths, heights)
    return encoded, np.array(list(_regions(widths, heights)), np.float32)


def _regions(widths: Ints, heights: Ints) -> Iterator[list[tuple[float, float]]]:
    for size in zip(widths.tolist(), heights.tolist(), strict=True):
        _, width, height, (left, top, right, bottom) = PHOTOS.place(*size)
        corners = (top, left), (bottom, right)
        yield [(y * size[1] / height, x * size[0] / width) for y, x in corners]


def _require_plain(encoded: list[Pixels], widths: Ints, heights: Ints) -> None:
    sizes = zip(widths.tolist(), heights.tolist(), strict=True)
    if not all(map(is_plain_jpeg, encoded, sizes)):
        raise ValueError("the sample holds an image that is no plain JPEG")


def _taking(threads: int, *, no_copy: bool) -> Any:  # noqa: ANN401 - DALI's
    """Build a graph that takes what DALI's decoder would, and gives back lengths."""
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.types import DALIDataType

    pipeline = Pipeline(HOST_BATCH, threads, None, prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(
            name="encoded", dtype=DALIDataType.UINT8, ndim=1, no_copy=no_copy
        )
        edges = [fn.external_source(name=f"region_{edge}", ndim=1) for edge in ("start", "end")]
        pipeline.set_outputs(encoded.shape(), *edges)
    pipeline.build()
    return pipeline
