"""MosaicML Streaming: MDS shards, decoded with Pillow in the workers of torch's ``DataLoader``.

``setup.sh`` installs it.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from coreset.bench.peers.loaders import BATCH, Epoch, Numbered, Task, versions_of
from coreset.bench.peers.transforms import (
    DecodeSample,
    loader_options,
    stored_samples,
    transform_of,
)

versions = partial(versions_of, ["mosaicml-streaming"], ["streaming"])


@contextmanager
def pillow_in_workers(task: Task) -> Generator[Epoch]:
    """Yield ``StreamingDataset``."""
    import torch
    from streaming import MDSWriter, StreamingDataset  # type: ignore[import-not-found]
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    shards = task.folder / "mds"
    if not shards.exists():
        with MDSWriter(out=str(shards), columns={"id": "int", "image": "bytes"}) as writer:
            for position, path in stored_samples(task):
                writer.write({"id": position, "image": Path(path).read_bytes()})
    clean_stale_shared_memory()
    stored: Any = StreamingDataset(local=str(shards), shuffle=False, batch_size=BATCH)
    decoded: Any = _Decoded(stored, DecodeSample(transform_of(task)))
    loader: DataLoader[Any] = DataLoader(_iterable(decoded), **loader_options(task))

    def epoch() -> Iterator[Numbered]:
        return ((images, ids.tolist()) for images, ids in loader)

    yield epoch


@dataclass(frozen=True, slots=True)
class _Decoded:
    stored: Any
    decode: DecodeSample

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return map(self.decode, self.stored)


def _iterable(samples: _Decoded) -> Any:  # noqa: ANN401 - a class of torch's, made here
    from torch.utils.data import IterableDataset

    class Decoded(IterableDataset[Any]):
        """Torch asks for this type."""

        def __iter__(self) -> Iterator[tuple[Any, int]]:
            return iter(samples)

    return Decoded()
