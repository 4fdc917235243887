"""Host's work per batch before DALI decodes: image by image as it was, and by one buffer as it is.

DALI's graph ends where it has the bytes and regions, so that nothing is decoded.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Contender, Row, race
from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.decoders.turbo import is_plain_jpeg
from coreset.engine.data.geometry import Geometry, Ints, Pixels
from coreset.engine.data.reader import LazyBytes, ShardReader
from coreset.kernels.jpeg.headers import addresses_of, plain_jpegs
from coreset.shards.format.dataset import Dataset

HOST_BATCH = 256
BY_IMAGE, TOGETHER = "image by image", "ours, one buffer"
CLOCKS = {"wall": time.perf_counter, "the decoding thread alone": time.thread_time}
"""The thread that decodes has others read for it, which a machine of many cores has to spare."""
PHOTOS = Geometry(224, 256)
Regions: TypeAlias = NDArray[np.float32]
Prepare: TypeAlias = Callable[[Any, Ints, Ints, BatchMemory], tuple[list[Pixels], Regions]]


def host_work(dataset: Dataset, *, threads: int, repeats: int, work: Path) -> list[Row]:
    """Race both ways over shuffled batches; the last batch of each is compared."""
    ids = np.random.default_rng(0).permutation(len(dataset))
    about = {"images": len(ids), "source_bytes": int(dataset.ints("bytes").sum())}
    with ShardReader(dataset) as reader:
        reader.read(ids)  # into the page cache
        entries = [
            _contender(TOGETHER, _together, reader, dataset, ids, threads),
            _contender(BY_IMAGE, _by_image, reader, dataset, ids, threads),
        ]
        return [
            row | {"clock": name}
            for name, clock in CLOCKS.items()
            for row in race(entries, repeats=repeats, work=work, clock=clock, **about)
        ]


def _contender(  # noqa: PLR0917 - called twice, in columns
    name: str, prepare: Prepare, reader: ShardReader, dataset: Dataset, ids: Ints, threads: int
) -> Contender:
    pipeline, memory = _taking(threads, no_copy=name == TOGETHER), BatchMemory()
    batches = np.array_split(ids, len(ids) // HOST_BATCH)
    widths, heights = dataset.ints("width"), dataset.ints("height")
    last: list[tuple[list[Pixels], Regions]] = []

    def run(_out: Path) -> None:
        for batch in batches:
            data = reader.fetch(batch)
            encoded, regions = prepare(data, widths[batch], heights[batch], memory)
            last[:] = [(encoded, regions)]
            starts, ends = map(np.ascontiguousarray, regions.swapaxes(0, 1))
            pipeline.run(encoded=encoded, region_start=starts, region_end=ends)

    def check(_out: Path) -> str:
        batch, ((encoded, regions),) = batches[-1], last
        expected, places = _by_image(reader.read(batch), widths[batch], heights[batch], memory)
        same = all(map(np.array_equal, encoded, expected)) and np.array_equal(regions, places)
        return "" if same else "other bytes or regions"

    return Contender(name=name, run=run, role="ours" if name == TOGETHER else "peer", check=check)


def _together(
    data: LazyBytes, widths: Ints, heights: Ints, memory: BatchMemory
) -> tuple[list[Pixels], Regions]:
    encoded = data.read_together(memory)
    lengths = np.array([file.size for file in encoded])
    _require(all(plain_jpegs(addresses_of(encoded), lengths, widths, heights)))
    return encoded, PHOTOS.regions(widths, heights).astype(np.float32)


def _by_image(
    data: Sequence[bytes], widths: Ints, heights: Ints, _memory: BatchMemory
) -> tuple[list[Pixels], Regions]:
    sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
    encoded = [np.frombuffer(data[i], np.uint8) for i in range(len(sizes))]
    _require(all(map(is_plain_jpeg, encoded, sizes)))
    regions: list[list[tuple[float, float]]] = []
    for stored_width, stored_height in sizes:
        _, width, height, (left, top, right, bottom) = PHOTOS.place(stored_width, stored_height)
        corners = (top, left), (bottom, right)
        regions.append([(y * stored_height / height, x * stored_width / width) for y, x in corners])
    return encoded, np.array(regions, np.float32)


def _require(all_plain: bool) -> None:  # noqa: FBT001 - a condition
    if not all_plain:
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
