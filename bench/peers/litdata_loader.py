"""LitData: its own chunks of stored files, decoded with Pillow in the workers of its loader.

``setup.sh`` installs it.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from coreset.bench.peers.loaders import Epoch, Numbered, Task, versions_of
from coreset.bench.peers.transforms import (
    DecodeSample,
    loader_options,
    stored_samples,
    transform_of,
)

versions = partial(versions_of, ["litdata"], ["litdata"])


@contextmanager
def pillow_in_workers(task: Task) -> Generator[Epoch]:
    """Yield ``StreamingDataset`` and ``StreamingDataLoader``."""
    import torch
    from litdata import (  # type: ignore[import-not-found]
        StreamingDataLoader,
        StreamingDataset,
        optimize,
    )

    torch.set_num_threads(1)
    chunks = task.folder / "litdata"
    if not chunks.exists():
        # Left to itself, it empties a folder below that of temporary files.
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(task.folder / "litdata-chunks")
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(task.folder / "litdata-data")
        optimize(
            fn=_stored,
            inputs=stored_samples(task),
            output_dir=str(chunks),
            chunk_bytes="16MB",
            num_workers=1,
            reorder_files=False,
            verbose=False,
        )
    dataset: Any = StreamingDataset(str(chunks), transform=DecodeSample(transform_of(task)))
    loader: Any = StreamingDataLoader(dataset, **loader_options(task))

    def epoch() -> Iterator[Numbered]:
        return ((images, ids.tolist()) for images, ids in loader)

    yield epoch


def _stored(sample: tuple[int, str]) -> dict[str, Any]:
    position, path = sample
    return {"id": position, "image": Path(path).read_bytes()}
