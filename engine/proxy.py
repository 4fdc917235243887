"""Proxies: what is trained to score the images, and the examples that it is trained on.

``resnet18`` is the study's proxy: ResNet-18 with batch norm from scratch under the CCS ImageNet
recipe (``train_imagenet.py``: SGD, momentum 0.9, weight decay 1e-4, cosine per iteration from 0.1
to 1e-4, batch 256, 60 epochs, RandomResizedCrop, flip). ``linear`` is a linear classifier on
standardised features of a frozen backbone: thousands of times cheaper.

Differences from CCS: images are resized to 8/7 of ``size`` and cut to their central square before
the random crop (torchvision crops from the whole photograph), so that all of them fit one tensor
and the crop runs on the device; crops follow torchvision's law of area and aspect ratio.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.decode.order import batches_of, epoch_ids
from engine.decode.pixels import device_bytes
from engine.decode.source import EpochSource
from engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from engine.models.networks import LinearHead, build_network, memory_format_for, placed
from engine.seeding import generator_for
from engine.training import Examples
from kernels.augment import horizontal_flip, normalised, random_resized_crop
from shards.errors import MachineError, UsageError

ProxyName: TypeAlias = Literal["resnet18", "linear"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A network and the examples of an epoch."""

    network: nn.Module
    examples: Callable[[int], Examples]


def stored_side(size: int) -> int:
    """Side of the square from which crops of ``size`` are taken: 256 for 224."""
    return round(size * 8 / 7)


def convolutional_proxy(
    source: EpochSource,
    n_classes: int,
    *,
    size: int,
    crop_scale: float,
    batch: int,
    seed: int,
    device: torch.device,
) -> Proxy:
    """ResNet-18 on random crops of ``source``, whose images have side ``stored_side(size)``.

    Raises:
        UsageError: A batch would be one image of one pixel to the last batch norm.
    """
    if size <= 32 and (len(source) % batch or batch) == 1:
        raise UsageError(
            f"batch {batch} leaves a batch of one of {len(source)} images, which batch norm cannot "
            f"train on at size {size}; use another --batch, or --size 33 or more"
        )
    layout = memory_format_for("batch", device)
    network = build_network("resnet18", n_classes, norm="batch", seed=seed)
    network = placed(network, device, layout)

    def examples(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        draws = generator_for(seed, epoch)
        for part in source.epoch(batch, epoch=epoch, seed=seed, shuffle=True):
            images = part.images.to(device, non_blocking=True)
            crops = random_resized_crop(images, size, draws, scale=(crop_scale, 1.0))
            inputs = normalised(horizontal_flip(crops, draws), IMAGENET_MEAN, IMAGENET_STD)
            labels = part.labels.to(device, non_blocking=True)
            ids = part.ids.to(device, non_blocking=True)
            yield inputs.contiguous(memory_format=layout), labels, ids

    return Proxy(network, examples)


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
