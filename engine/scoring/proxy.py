"""Proxies: the networks that are trained to score images, and their training examples.

``resnet18`` is trained from scratch as CCS does (``train_imagenet.py``), but images are resized to
8/7 of ``size`` and cut to squares first, so that they fit one tensor and are cropped on the device.
``linear`` and ``concept`` (`feature_proxies`) are trained on features of a frozen backbone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from coreset.engine.data.crops import crops_on_cpu
from coreset.engine.data.geometry import Geometry, Ints, stored_side
from coreset.engine.data.image_cache import keep_images, open_cache
from coreset.engine.data.images import DecodedImages, EpochSource
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import Batch, ImageStream
from coreset.engine.models.features import FeatureSpec
from coreset.engine.models.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_network,
    memory_format_for,
    placed,
)
from coreset.engine.runtime.device import generator_for
from coreset.engine.runtime.distributed import ALONE, Distributed
from coreset.engine.runtime.limits import available_cores
from coreset.engine.scoring.recipes import Recipe
from coreset.engine.training.compilation import WholeBatches, compiled_on_gpu
from coreset.engine.training.trainer import Examples
from coreset.kernels.augment import (
    draw_crops,
    draw_flips,
    horizontal_flip,
    normalised,
    resized_crops,
)
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Folds:
    """Classifiers of folds; each must not train on the samples of its fold."""

    of_samples: Tensor
    classifiers: nn.Linear
    """Classifiers side by side in one layer; their logits follow those of the proxy itself."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A network and the examples of an epoch."""

    network: nn.Module
    examples: Callable[[int, int], Examples]
    """This process's share of an epoch from a batch on, in an order of seed and epoch alone. All
    processes have equally many batches; of nothing but padding, one row stays."""
    originals: Callable[[], Examples]
    """This process's share of all images in order, without augmentation."""
    undecodable: dict[int, str] = field(default_factory=dict[int, str])
    """Samples that were skipped so far, by id, and why."""
    streamed: bool = False
    folds: Folds | None = None


def training_images(
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    decoding: FeatureSpec,
    *,
    share: Ints | None = None,
    scratch: Path | None = None,
) -> EpochSource:
    """Open images to take the crops of ``recipe`` from, kept where `choose_place` says.

    ``share`` are the samples of this process, int64 of shape (n,), or None for all.
    """
    side = stored_side(recipe.size)
    stream = ImageStream(
        dataset,
        Geometry(side, side),
        decoder=decoding.decoder,
        device=device.type,
        workers=decoding.workers,
        ids=share,
        exact=decoding.exact,
        skip_damaged=True,
    )
    pixels = recipe.batch * recipe.size**2
    return keep_images(stream, epochs=recipe.epochs, batch_pixels=pixels, scratch=scratch)


def cached_images(
    path: Path, dataset: Dataset, size: int, device: torch.device, share: Ints | None = None
) -> DecodedImages:
    """Open the images that ``coreset decode`` left in ``path``, to crop ``size`` from."""
    images = open_cache(path, dataset, device=device.type, ids=share)
    if images.size < size:
        raise UsageError(
            f"size must be at most {images.size} (side of the images in {path}), got {size}; "
            f"choose a smaller --size, or decode with --size {stored_side(size)}"
        )
    return images


def convolutional_proxy(
    source: EpochSource,
    n_classes: int,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    total: int = 0,
    ranks: Distributed = ALONE,
) -> Proxy:
    """Build ResNet-18 on random crops of ``source``, of side ``recipe.side_at(e)`` in epoch e.

    Of several ``ranks`` each has the `fixed_share` of ``total`` samples for its source.
    """
    batch, size, smallest = recipe.batch, recipe.size, recipe.side_at(0)
    n, is_shared = total or len(source), ranks.world > 1
    if smallest <= 32 and last_batch(n, batch, ranks.world) == 1:
        raise UsageError(
            f"batch {batch} leaves a batch of one of {n} images, which batch norm cannot "
            f"train on at size {smallest}; use another --batch, or sizes of 33 or more"
        )
    layout = memory_format_for("batch", device)
    network = build_network("resnet18", n_classes, norm="batch", seed=seed)
    network = placed(network, device, layout)
    ordered = partial(
        BatchOrder, batch=batch, rank=ranks.rank, world=ranks.world, total=n if is_shared else 0
    )
    whole_batches = WholeBatches()

    def on_device(part: Batch, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labels = part.labels.to(device, non_blocking=True)
        ids = part.ids.to(device, non_blocking=True)
        return inputs.contiguous(memory_format=layout), labels, ids

    def examples(epoch: int, start_batch: int) -> Examples:
        order = ordered(epoch=epoch, seed=seed, shuffle=True, start=start_batch, pad=is_shared)
        for number, padded in enumerate(source.epoch(order), start_batch):
            is_last = (number + 1) * batch > n // ranks.world
            n_own = max(1, int((padded.ids >= 0).sum())) if is_shared and is_last else batch
            part = Batch(padded.images[:n_own], padded.labels[:n_own], padded.ids[:n_own])
            draws = generator_for(seed, epoch, number, ranks.rank)
            rows, _, height, width = part.images.shape
            boxes = draw_crops(rows, height, width, draws, scale=(recipe.crop_scale, 1.0))
            flips = draw_flips(rows, draws)
            with whole_batches.of(part.images):
                inputs = inputs_on(device, part.images, boxes, flips, recipe.side_at(epoch))
            yield on_device(part, inputs)

    def originals() -> Examples:
        for part in source.epoch(ordered()):
            edge = (part.images.shape[-1] - size) // 2
            images = part.images[..., edge : edge + size, edge : edge + size]
            images = images.to(device, non_blocking=True)
            yield on_device(part, normalised(images, IMAGENET_MEAN, IMAGENET_STD))

    streamed = isinstance(source, ImageStream)
    return Proxy(network, examples, originals, source.undecodable, streamed)


def inputs_on(
    device: torch.device, images: Tensor, boxes: Tensor, flips: Tensor, side: int
) -> Tensor:
    """Crop, resize, mirror and normalise images (uint8, channels last) on the device.

    On a CPU crops are rounded to whole levels, see `crops_on_cpu`.
    """
    if device.type != "cpu":
        drawn = torch.cat((boxes, flips[:, None]), dim=1)  # small arrays in one copy
        moved = (each.to(device, non_blocking=True) for each in (images, drawn))
        return compiled_on_gpu(augmented, device)(*moved, side=side)
    crops = crops_on_cpu(images, boxes, side, workers=available_cores())
    return normalised(horizontal_flip(crops, flips), IMAGENET_MEAN, IMAGENET_STD)


def augmented(images: Tensor, drawn: Tensor, *, side: int) -> Tensor:
    """Do as `inputs_on` with matrices; ``drawn`` are boxes and flips, int64 of shape (b, 5)."""
    crops = horizontal_flip(resized_crops(images, drawn[:, :4], side), drawn[:, 4] > 0)
    return normalised(crops, IMAGENET_MEAN, IMAGENET_STD)


def last_batch(n: int, batch: int, world: int) -> int:
    """Return the rows of the shortest last batch of an epoch over ``world`` processes."""
    batches = -(-n // (world * batch))
    return max(1, n // world - (batches - 1) * batch)
