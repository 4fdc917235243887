"""webdataset over the same shards: Pillow in the workers of torch's ``DataLoader``.

webdataset is a dependency of the project: nothing to install. Batches are made in the workers, as
its documentation advises.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from coreset.bench.peers.loaders import BATCH, Epoch, Numbered, Task, versions_of
from coreset.bench.peers.transforms import loader_options, transform_of

versions = partial(versions_of, ["webdataset"], ["webdataset.compat"])


@contextmanager
def pillow_in_workers(task: Task) -> Generator[Epoch]:
    """Yield the usual pipeline."""
    import torch
    from torch.utils.data import DataLoader
    from webdataset.compat import WebDataset

    torch.set_num_threads(1)
    shards = [str(path) for path in sorted(task.data.glob("*.tar"))]
    dataset: Any = (
        WebDataset(shards, shardshuffle=False)
        .decode("pilrgb")
        .to_tuple("jpg;jpeg;png", "__key__")
        .map_tuple(transform_of(task), int)  # keys are sample ids
        .batched(BATCH)
    )
    options: dict[str, Any] = {**loader_options(task), "batch_size": None}
    loader: DataLoader[Any] = DataLoader(dataset, **options)

    def epoch() -> Iterator[Numbered]:
        return ((images, [int(one) for one in ids]) for images, ids in loader)

    yield epoch
