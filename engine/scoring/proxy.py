"""Proxies: the networks that are trained to score images, and their training examples.

``resnet18`` is the study's proxy: ResNet-18 with batch norm from scratch under the CCS ImageNet
recipe (``train_imagenet.py``: SGD, momentum 0.9, weight decay 1e-4, cosine per iteration from 0.1
to 1e-4, batch 256, 60 epochs, RandomResizedCrop, flip). ``linear`` is a linear classifier on
standardised features of a frozen backbone: thousands of times cheaper. With folds, a classifier per
fold trains beside it on all samples but those of its fold, for which it can then be asked.

Differences from CCS:

- Images are resized to 8/7 of ``size`` and cut to their central square before the random crop
  (torchvision crops from the whole photograph), so that all of them fit one tensor and the crop
  runs on the device; crops follow torchvision's law of area and aspect ratio. Pixels of ``coreset
  decode`` may have any side from ``size`` on.
- Crops may begin smaller and grow (``side_at``), which CCS's do not: progressive resizing (Howard's
  DAWNBench entry of fast.ai, 2018), by the schedule of FFCV's ImageNet recipe
  (libffcv/ffcv-imagenet, ``train_imagenet.py``, ``get_resolution``). Off unless asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coreset.engine.data.batch import Batch
from coreset.engine.data.geometry import Geometry, stored_side
from coreset.engine.data.image_cache import open_cache
from coreset.engine.data.images import DecodedImages, cache_if_fits, crop_rows
from coreset.engine.data.order import PADDING, BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.feature_rows import FeatureRows
from coreset.engine.models.networks import LinearHead, build_network, memory_format_for, placed
from coreset.engine.runtime.distributed import ALONE, Distributed
from coreset.engine.runtime.limits import available_cores
from coreset.engine.runtime.seeding import generator_for
from coreset.engine.training.trainer import Examples
from coreset.kernels.augment import draw_crops, horizontal_flip, normalised, resized_crops
from coreset.kernels.logits import stratified_folds
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset


class EpochExamples(Protocol):
    """One process's share of an epoch, from a batch on.

    All processes get the same number of batches. One that has no image left for the last batch gets
    a row of padding with label and id -1.
    """

    def __call__(self, epoch: int, start_batch: int = 0) -> Examples:
        """Yield batches in an order that depends on seed and epoch alone."""
        ...


@dataclass(frozen=True, slots=True)
class Folds:
    """Classifiers of folds; each must not train on the samples of its fold."""

    of_samples: Tensor
    """Fold of each sample, int64 of shape (n,) on the device."""
    classifiers: nn.Linear
    """Classifiers side by side in one layer; their logits follow those of the proxy itself."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A network and the examples of an epoch."""

    network: nn.Module
    examples: EpochExamples
    originals: Callable[[], Examples]
    """This process's share of all images in order, without augmentation."""
    undecodable: dict[int, str] = field(default_factory=dict[int, str])
    """Samples that were skipped so far, by id, and why."""
    streamed: bool = False
    """Images are decoded again in every epoch."""
    folds: Folds | None = None


def side_at(epoch: int, epochs: int, start_size: int, size: int) -> int:
    """Return the side in pixels of the training crops of an epoch.

    ``start_size`` in epoch 0, ``size`` from half of the epochs on, between them linear and rounded
    to a multiple of 32, so that few sizes have to be compiled. ``start_size`` 0: always ``size``.
    """
    if start_size == 0 or 2 * epoch >= epochs:
        return size
    if epoch == 0:
        return start_size
    linear = start_size + (size - start_size) * 2 * epoch / epochs
    return min(size, max(start_size, 32 * round(linear / 32)))


def training_images(
    dataset: Dataset, size: int, device: torch.device, *, decoder: str, exact: bool, workers: int
) -> ImageStream | DecodedImages:
    """Open images to crop ``size`` from: decoded into memory if they fit, else in each epoch.

    Images that cannot be decoded are skipped.
    """
    side = stored_side(size)
    stream = ImageStream(
        dataset,
        Geometry(side, side),
        decoder=decoder,
        device=device.type,
        workers=workers,
        exact=exact,
        skip_damaged=True,
    )
    images = cache_if_fits(stream)
    if images is not stream:
        stream.close()
    return images


def cached_images(path: Path, dataset: Dataset, size: int, device: torch.device) -> DecodedImages:
    """Open the images that ``coreset decode`` left in ``path``, to crop ``size`` from.

    Raises:
        UsageError: The images are smaller than the crops, or of another data set.
    """
    images = open_cache(path, dataset, device=device.type)
    if images.size < size:
        raise UsageError(
            f"size must be at most {images.size} (side of the images in {path}), got {size}; "
            f"choose a smaller --size, or decode with --size {stored_side(size)}"
        )
    return images


def convolutional_proxy(
    source: ImageStream | DecodedImages,
    n_classes: int,
    *,
    size: int,
    crop_scale: float,
    batch: int,
    seed: int,
    device: torch.device,
    epochs: int = 1,
    start_size: int = 0,
    ranks: Distributed = ALONE,
) -> Proxy:
    """Build ResNet-18 on random crops of ``source``, whose images have at least side ``size``.

    In epoch e of ``epochs`` the crops have side ``side_at(e, epochs, start_size, size)``.

    Raises:
        UsageError: The last batch norm would get a batch of one pixel.
    """
    smallest = side_at(0, epochs, start_size, size)
    if smallest <= 32 and last_batch(len(source), batch, ranks.world) == 1:
        raise UsageError(
            f"batch {batch} leaves a batch of one of {len(source)} images, which batch norm cannot "
            f"train on at size {smallest}; use another --batch, or sizes of 33 or more"
        )
    layout = memory_format_for("batch", device)
    network = build_network("resnet18", n_classes, norm="batch", seed=seed)
    network = placed(network, device, layout)
    share: dict[str, Any] = {"rank": ranks.rank, "world": ranks.world}

    def on_device(part: Batch, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
        labels = part.labels.to(device, non_blocking=True)
        ids = part.ids.to(device, non_blocking=True)
        return inputs.contiguous(memory_format=layout), labels, ids

    def examples(epoch: int, start_batch: int = 0) -> Examples:
        side = side_at(epoch, epochs, start_size, size)
        order = BatchOrder(
            batch=batch, epoch=epoch, seed=seed, shuffle=True, start=start_batch,
            pad=ranks.world > 1, **share,
        )  # fmt: skip
        for number, part in enumerate(source.epoch(order), start_batch):
            if ranks.world > 1 and (number + 1) * batch > len(source) // ranks.world:
                part = without_padding(part)  # noqa: PLW2901 - the last batch of the epoch
            draws = generator_for(seed, epoch, number, ranks.rank)
            n, _, height, width = part.images.shape
            boxes = draw_crops(n, height, width, draws, scale=(crop_scale, 1.0))
            crops = crops_on(device, part.images, boxes, side)
            yield on_device(part, horizontal_flip(crops, draws))

    def originals() -> Examples:
        for part in source.epoch(BatchOrder(batch=batch, **share)):
            edge = (part.images.shape[-1] - size) // 2
            images = part.images[..., edge : edge + size, edge : edge + size]
            yield on_device(part, images.to(device, non_blocking=True))

    streamed = isinstance(source, ImageStream)
    return Proxy(network, examples, originals, source.undecodable, streamed)


def crops_on(device: torch.device, images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Crop squares and resize them on the device.

    On a CPU by ``kernels.jpeg.resize``, fifteen times as fast there as the matrices that suit a
    GPU; it rounds to whole levels.

    Args:
        device: Device of the training.
        images: uint8 of shape (b, 3, h, w), stored channels last.
        boxes: int64 of shape (b, 4) on the host: left, top, right, bottom.
        side: Side of the crops in pixels.

    Returns:
        Crops of shape (b, 3, side, side): uint8 on a CPU, float32 in 0..1 on a GPU.
    """
    if device.type != "cpu":
        return resized_crops(images.to(device, non_blocking=True), boxes, side)
    images_nhwc = images.permute(0, 2, 3, 1).contiguous().numpy()
    crops = np.empty((len(images_nhwc), side, side, 3), np.uint8)
    rows = np.arange(len(images_nhwc))
    crop_rows(images_nhwc, rows, boxes.numpy(), crops, workers=available_cores())
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def last_batch(n: int, batch: int, world: int) -> int:
    """Return the rows of the shortest last batch of an epoch over ``world`` processes."""
    batches = -(-n // (world * batch))
    return max(1, n // world - (batches - 1) * batch)


def without_padding(batch: Batch) -> Batch:
    """Return a batch without its padding; of nothing but padding, one row stays."""
    n = max(1, int((batch.ids >= 0).sum()))
    return Batch(batch.images[:n], batch.labels[:n], batch.ids[:n])


def linear_proxy(
    features: FeatureRows,
    labels: NDArray[np.int64],
    n_classes: int,
    *,
    batch: int,
    seed: int,
    device: torch.device,
    n_folds: int = 0,
    ranks: Distributed = ALONE,
) -> Proxy:
    """Build a linear classifier on standardised features, and one more per fold."""
    labels_n = torch.from_numpy(labels).to(device)
    share: dict[str, Any] = {"rank": ranks.rank, "world": ranks.world}

    def examples(epoch: int, start_batch: int = 0) -> Examples:
        order = BatchOrder(
            batch=batch, epoch=epoch, seed=seed, shuffle=True, start=start_batch,
            pad=ranks.world > 1, **share,
        )  # fmt: skip
        for part in order.batches(len(labels)):
            yield at(part[: max(1, (part != PADDING).sum())])

    def originals() -> Examples:
        return (at(part) for part in BatchOrder(batch=batch, **share).batches(len(labels)))

    def at(part: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.from_numpy(part).to(device)
        labels_b = torch.where(ids < 0, PADDING, labels_n[ids.clamp(min=0)])
        return features.rows(np.maximum(part, 0)), labels_b, ids

    network = LinearHead(features.width, n_classes, n_folds).to(device)
    if network.folds is None:
        return Proxy(network, examples, originals)
    of_samples = stratified_folds(labels, n_folds, derived_seed(seed, Stream.FOLDS))
    folds = Folds(torch.from_numpy(of_samples).to(device), network.folds)
    return Proxy(network, examples, originals, folds=folds)
