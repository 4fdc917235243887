"""Packed images for the data pipelines of others: a map-style ``Dataset``, and ``webdataset``.

``webdataset`` silently takes a cut tar for a shorter one, and its decoders run code in members that
are named like pickles. Here each shard is counted, and only members of `coreset pack` are read.
"""

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from tarfile import TarError
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from coreset.engine.data.geometry import Ints
from coreset.engine.data.reader import Ids, Images, ShardReader, open_images
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Manifest
from coreset.shards.format.tar import MEMBER_NAME
from coreset.shards.images.probe import FORMAT_OF_EXTENSION, as_rgb, opened

if TYPE_CHECKING:
    from webdataset.compat import FluidWrapper

Transform: TypeAlias = Callable[[Image.Image], Any]
Sample: TypeAlias = dict[str, Any]


class ImageDataset(TorchDataset[tuple[Any, int]]):
    """Images of a packed data set or of a coreset, one at a time by position.

    ``ds[i]`` is an (image, label) pair with the pixels of Pillow. Each worker of a ``DataLoader``,
    forked or spawned, opens the shards for itself.
    """

    def __init__(
        self, data: Images, *, ids: Ids | None = None, transform: Transform | None = None
    ) -> None:
        """Open a packed data set.

        Args:
            data: Directory of a packed data set or of a condensed set, or an open set.
            ids: Samples to read, int64 of shape (n,); None means all.
            transform: Takes an RGB ``PIL.Image`` of the stored size and returns the image of a
                pair. Without it images are uint8 tensors of shape (3, height, width).

        """
        self.dataset, chosen = open_images(data, ids)
        self.ids: Ints = np.arange(len(self.dataset)) if chosen is None else chosen
        self.labels: Ints = self.dataset.labels[self.ids]
        self.transform = transform
        self._readers: dict[int, ShardReader] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        return self.dataset.classes

    def __len__(self) -> int:
        return self.ids.size

    def __getitem__(self, position: int) -> tuple[Any, int]:
        """Read and decode one image, or raise ``ManifestError``."""
        process, sample = os.getpid(), int(self.ids[position])
        if process not in self._readers:  # a process forked from this one does not share the reader
            self._readers = {process: ShardReader(self.dataset)}
        reader = self._readers[process]
        image = _rgb(reader.read_one(sample), reader.name_of(sample), self.dataset.path)
        return (self.transform or as_tensor)(image), int(self.labels[position])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}


def as_tensor(image: Image.Image) -> Tensor:
    """Return the pixels as a uint8 tensor of shape (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def as_webdataset(
    data: str | Path, *, shuffle: int = 0, seed: int = 0, decode: bool = True
) -> "FluidWrapper":
    """Read a packed data set through ``webdataset``.

    Shards are split by node and by worker of a ``DataLoader``; together they read every sample
    once. The pipeline has the methods of ``webdataset.WebDataset``: ``map_tuple``, ``batched`` ...

    Args:
        data: Directory that `coreset pack` made.
        shuffle: Samples in the shuffle buffer, behind a permutation of the shards; 0 keeps the
            stored order.
        seed: Of the shuffle, with epochs; workers need ``persistent_workers=True`` to count theirs.
        decode: Yield (RGB ``PIL.Image``, label, sample id) tuples. Without it dicts of
            ``webdataset``, to be decoded by its own stages: the stored bytes as ``jpg``, ``png`` or
            ``webp``, the label's digits as ``cls``, ``__key__`` (the member's nine digits),
            ``__id__`` (the sample id, int) and ``__url__``.

    Raises:
        UsageError: ``data`` is not a packed data set.
        ManifestError: (While iterating) a shard or an image cannot be read in full.
    """
    from webdataset.compat import FluidWrapper
    from webdataset.filters import detshuffle
    from webdataset.pipeline import DataPipeline
    from webdataset.shardlists import SimpleShardList, split_by_node, split_by_worker

    entries = Manifest.read(Path(data)).shards
    first_ids = accumulate((entry.samples for entry in entries), initial=0)
    shards = {
        str(Path(data) / entry.name): (first, entry.samples)
        for entry, first in zip(entries, first_ids, strict=False)
    }
    stages = (
        SimpleShardList(list(shards)),
        # Before the split, where the order must be the same in every process.
        detshuffle(len(shards), len(shards), seed) if shuffle else None,
        split_by_node,
        split_by_worker,
        partial(whole_shards, shards=shards),
        detshuffle(shuffle, seed=seed) if shuffle else None,
        decoded if decode else None,
    )
    return FluidWrapper(DataPipeline(*stages))  # which passes over None


def whole_shards(
    urls: Iterable[Mapping[str, str]], shards: Mapping[str, tuple[int, int]]
) -> Generator[Sample]:
    """Yield the samples of shards of given first ids and sizes, with ``__id__``, and count them."""
    for url in (entry["url"] for entry in urls):
        try:
            yield from _samples(url, *shards[url])
        except (OSError, TarError, ValueError) as error:
            raise ManifestError(
                f"{url} cannot be read ({type(error).__name__}); {_remedy(url)}"
            ) from error


def _samples(url: str, first_id: int, expected: int) -> Generator[Sample]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    n_read = 0
    with Path(url).open("rb") as stream:  # webdataset does not close the files that it opens
        source = {"url": url, "stream": stream}
        members = tar_file_expander([source], select_files=lambda n: bool(MEMBER_NAME.fullmatch(n)))
        for sample in group_by_keys(members):
            if "cls" not in sample:  # cut between an image and its label
                break
            yield sample | {"__id__": first_id + n_read}
            n_read += 1
    if n_read != expected:
        raise ManifestError(f"{url} holds {n_read} of its {expected} samples; {_remedy(url)}")


def decoded(samples: Iterable[Sample]) -> Generator[tuple[Image.Image, int, int]]:
    """Turn samples into image, label and id; pixels are those of ``decode_with_pillow``."""
    for sample in samples:
        data = next(sample[kind] for kind in FORMAT_OF_EXTENSION if kind in sample)
        key, url = sample["__key__"], sample["__url__"]
        image = _rgb(data, f"{key} in {url}", Path(url).parent)
        yield image, int(sample["cls"]), sample["__id__"]


def _rgb(data: bytes, name: str, folder: Path) -> Image.Image:
    """Decode an image, or raise ``ManifestError`` that names it."""
    try:
        with opened(data) as image:
            return as_rgb(image)
    except ValueError as error:
        raise ManifestError(
            f"{name} cannot be decoded ({error}); run `coreset verify {folder}`"
        ) from error


def _remedy(url: str) -> str:
    return f"run `coreset verify {Path(url).parent}`"
