"""Proxies: what is trained to score the images, and the examples that it is trained on.

``resnet18`` is the study's proxy: ResNet-18 with batch norm from scratch under the CCS ImageNet
recipe (``train_imagenet.py``: SGD, momentum 0.9, weight decay 1e-4, cosine per iteration from 0.1
to 1e-4, batch 256, 60 epochs, RandomResizedCrop, flip). ``linear`` is a linear classifier on
standardised features of a frozen backbone: thousands of times cheaper.

Differences from CCS:

- Images are resized to 8/7 of ``size`` and cut to their central square before the random crop
  (torchvision crops from the whole photograph), so that all of them fit one tensor and the crop
  runs on the device; crops follow torchvision's law of area and aspect ratio. Pixels that were
  decoded before (``coreset decode``) may have any side from ``size`` on.
- Crops may begin smaller and grow (``side_at``), which CCS's do not: progressive resizing (Howard's
  DAWNBench entry of fast.ai, 2018), by the schedule of FFCV's ImageNet recipe
  (libffcv/ffcv-imagenet, ``train_imagenet.py``, ``get_resolution``). Off unless asked for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.decode.geometry import Geometry
from engine.decode.order import batches_of, epoch_ids
from engine.decode.pixels import Pixels, device_bytes, epochs_source
from engine.decode.source import Source
from engine.decode.stored_pixels import open_pixels
from engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from engine.models.networks import LinearHead, build_network, memory_format_for, placed
from engine.seeding import generator_for
from engine.training import Examples
from kernels.augment import horizontal_flip, normalised, random_resized_crop
from shards.dataset import Dataset
from shards.errors import MachineError, UsageError

ProxyName: TypeAlias = Literal["resnet18", "linear"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A network and the examples of an epoch."""

    network: nn.Module
    examples: Callable[[int], Examples]
    undecodable: dict[int, str] = field(default_factory=dict[int, str])
    """Samples that the examples left out so far, by id, and why."""


def stored_side(size: int) -> int:
    """Side of the square from which crops of ``size`` are taken: 256 for 224."""
    return round(size * 8 / 7)


def side_at(epoch: int, epochs: int, start_size: int, size: int) -> int:
    """Side in pixels of the training crops of an epoch.

    ``start_size`` in epoch 0, ``size`` from half of the epochs on, between them linear and rounded
    to a multiple of 32, so that few sizes have to be compiled. ``start_size`` 0: always ``size``.
    """
    if start_size == 0 or 2 * epoch >= epochs:
        return size
    if epoch == 0:
        return start_size
    linear = start_size + (size - start_size) * 2 * epoch / epochs
    return min(size, max(start_size, 32 * round(linear / 32)))


def squares(
    dataset: Dataset, size: int, device: torch.device, *, decoder: str, exact: bool, workers: int
) -> Source | Pixels:
    """Images to take crops of ``size`` from: decoded into memory if they fit, else at each epoch.

    Those that cannot be decoded are left out.
    """
    side = stored_side(size)
    source = Source(
        dataset,
        Geometry(side, side),
        decoder=decoder,
        device=device.type,
        workers=workers,
        exact=exact,
        tolerant=True,
    )
    pixels = epochs_source(source)
    if pixels is not source:
        source.close()
    return pixels


def stored_squares(path: Path, dataset: Dataset, size: int, device: torch.device) -> Pixels:
    """Images to take crops of ``size`` from, as ``coreset decode`` left them in ``path``.

    Raises:
        UsageError: They are smaller than the crops, or of another data set.
    """
    pixels = open_pixels(path, dataset, device=device.type)
    if pixels.size < size:
        raise UsageError(
            f"size must be at most {pixels.size} (side of the images in {path}), got {size}; "
            f"choose a smaller --size, or decode with --size {stored_side(size)}"
        )
    return pixels


def convolutional_proxy(
    source: Source | Pixels,
    n_classes: int,
    *,
    size: int,
    crop_scale: float,
    batch: int,
    seed: int,
    device: torch.device,
    epochs: int = 1,
    start_size: int = 0,
) -> Proxy:
    """ResNet-18 on random crops of ``source``, whose images have at least side ``size``.

    In epoch e of ``epochs`` the crops have side ``side_at(e, epochs, start_size, size)``.

    Raises:
        UsageError: A batch would be one image of one pixel to the last batch norm.
    """
    smallest = side_at(0, epochs, start_size, size)
    if smallest <= 32 and (len(source) % batch or batch) == 1:
        raise UsageError(
            f"batch {batch} leaves a batch of one of {len(source)} images, which batch norm cannot "
            f"train on at size {smallest}; use another --batch, or sizes of 33 or more"
        )
    layout = memory_format_for("batch", device)
    network = build_network("resnet18", n_classes, norm="batch", seed=seed)
    network = placed(network, device, layout)

    def examples(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        draws, side = generator_for(seed, epoch), side_at(epoch, epochs, start_size, size)
        for part in source.epoch(batch, epoch=epoch, seed=seed, shuffle=True):
            images = part.images.to(device, non_blocking=True)
            crops = random_resized_crop(images, side, draws, scale=(crop_scale, 1.0))
            inputs = normalised(horizontal_flip(crops, draws), IMAGENET_MEAN, IMAGENET_STD)
            labels = part.labels.to(device, non_blocking=True)
            ids = part.ids.to(device, non_blocking=True)
            yield inputs.contiguous(memory_format=layout), labels, ids

    return Proxy(network, examples, source.undecodable)


def linear_proxy(
    features: NDArray[np.float16],
    labels: NDArray[np.int64],
    n_classes: int,
    *,
    batch: int,
    seed: int,
    device: torch.device,
) -> Proxy:
    """Linear classifier on features, standardised by column and held on the device.

    Raises:
        MachineError: The device has no room for them (8 n d bytes while they are standardised).
    """
    needed, available = 8 * features.size, device_bytes(device)
    if needed > available:
        raise MachineError(
            f"features of {len(features)} images need {needed / 1e9:.2f} GB on {device}, which has "
            f"{available / 1e9:.2f} GB available; use a backbone with fewer features"
        )
    columns = torch.from_numpy(features).to(device).float()
    spread = columns.std(0)
    # A constant column says nothing; divided by a tiny number, the rounding of its mean would.
    columns = (columns - columns.mean(0)) / spread.where(spread > 1e-6, 1.0)
    labels_n = torch.from_numpy(labels).to(device)

    def examples(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = epoch_ids(len(labels), seed=seed, epoch=epoch)
        for part in batches_of(order, batch):
            ids = torch.from_numpy(part).to(device)
            yield rows_of(columns, ids), labels_n[ids], ids

    return Proxy(LinearHead(features.shape[1], n_classes).to(device), examples)


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a tensor; by NumPy on a CPU, whose torch kernel collapses when the cores are busy."""
    if table.device.type == "cpu":
        return torch.from_numpy(np.take(table.numpy(), ids.numpy(), axis=0))
    return table[ids]
