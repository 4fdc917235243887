"""Packed images as a map-style ``Dataset`` of torch, for loops that have a ``DataLoader``."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from coreset.engine.data.image_set import Ids, Images, open_images
from coreset.engine.data.reader import ShardReader
from coreset.shards.errors import ManifestError
from coreset.shards.images.pillow import as_rgb, opened

Transform: TypeAlias = Callable[[Image.Image], Any]


class ImageDataset(TorchDataset[tuple[Any, int]]):
    """Images of a packed data set or of a coreset, one at a time by position.

    ``ds[i]`` is an (image, label) pair with the pixels of Pillow. Workers of a ``DataLoader`` may
    have it, forked or spawned: each opens the shards for itself.
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

        Raises:
            UsageError: ``data`` is not a packed data set, or has no such ``ids``.
            ManifestError: The data set is damaged.
        """
        self.dataset, chosen = open_images(data, ids)
        self.ids: NDArray[np.int64] = np.arange(len(self.dataset)) if chosen is None else chosen
        """Sample id of every position, int64 of shape (n,)."""
        self.labels: NDArray[np.int64] = self.dataset.labels[self.ids]
        """Label of every position, int64 of shape (n,)."""
        self.transform = transform
        self._readers: dict[int, ShardReader] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        return self.dataset.classes

    def __len__(self) -> int:
        return self.ids.size

    def __getitem__(self, position: int) -> tuple[Any, int]:
        """Read and decode one image.

        Raises:
            ManifestError: The image cannot be read or decoded.
        """
        sample, reader = int(self.ids[position]), self._reader()
        try:
            with opened(reader.read_one(sample)) as stored:
                image = as_rgb(stored)
        except ValueError as error:
            raise ManifestError(
                f"{reader.name_of(sample)} cannot be decoded ({error}); "
                f"run `coreset verify {self.dataset.path}`"
            ) from error
        return (self.transform or as_tensor)(image), int(self.labels[position])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}

    def _reader(self) -> ShardReader:
        """Return the reader of this process, which a process forked from it does not share."""
        process = os.getpid()
        if process not in self._readers:
            self._readers = {process: ShardReader(self.dataset)}
        return self._readers[process]


def as_tensor(image: Image.Image) -> Tensor:
    """Return the pixels as a uint8 tensor of shape (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
