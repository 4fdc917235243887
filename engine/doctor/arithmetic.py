"""Proofs about arithmetic: on equal inputs and draws the device computes what the CPU computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from coreset.engine.data.decoders.base import DecoderName
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.doctor.check import Context, result
from coreset.engine.doctor.machine import Check
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.runtime.seeding import generator_for
from coreset.engine.scoring.proxy import convolutional_proxy
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.augment import (
    color_jitter,
    cutmix,
    horizontal_flip,
    lighting,
    normalised,
    random_resized_crop,
    unit_range,
)
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.logits import NonFiniteGuard

Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

CROP_SIZE = 160
N_CLASSES, EPOCHS = 100, 3
AUGMENTATION_TOLERANCE = 1e-4
"""Of pixels in 0..1: float32 sums in another order; TF32 would be ten times farther."""
SCORE_TOLERANCE = 1e-4
"""Of scores of a few units, summed in float32 over the epochs."""

AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "normalisation": lambda images, _: normalised(images, IMAGENET_MEAN, IMAGENET_STD),
        "random resized crop": lambda images, draws: random_resized_crop(images, CROP_SIZE, draws),
        "flip": lambda images, draws: horizontal_flip(unit_range(images), draws),
        "colour jitter": lambda images, draws: color_jitter(unit_range(images), draws),
        "lighting": lambda images, draws: lighting(unit_range(images), draws),
        "CutMix": lambda images, draws: cutmix(unit_range(images), draws).images,
    }
)


def augmentation(context: Context, name: str, augment: Augmentation) -> Iterator[Check]:
    """Augment the same images with the same draws on the CPU and on the device."""
    ids = context.ids[: context.batch]
    with context.source(Geometry(CROP_SIZE), ids, DecoderName.TURBO) as source:
        images = next(source.epoch(BatchOrder(batch=ids.size))).images
    expected, found = (
        augment(images.to(device), generator_for(0)).cpu()
        for device in (torch.device("cpu"), context.device)
    )
    largest = float((found - expected).abs().max())
    yield result(
        f"augmentation: {name}",
        f"largest difference {largest:.1g}",
        holds=largest <= AUGMENTATION_TOLERANCE,
        facts={"largest": largest, "allowed": AUGMENTATION_TOLERANCE, "images": len(images)},
    )


def training_scores(context: Context) -> Iterator[Check]:
    """Accumulate the scores of the same logits on the CPU and on the device."""
    expected, found = (
        _scores(context.ids.size, device) for device in (torch.device("cpu"), context.device)
    )
    largest = {name: float(np.abs(found[name] - expected[name]).max()) for name in expected}
    worst = max(largest, key=largest.__getitem__)
    yield result(
        "scores of a training",
        f"largest difference {largest[worst]:.1g} ({worst})",
        # A comparison with NaN is false: scores that are missing on one side do not pass.
        holds=all(value <= SCORE_TOLERANCE for value in largest.values()),
        facts={"largest": largest, "allowed": SCORE_TOLERANCE},
    )


def _scores(n: int, device: torch.device) -> dict[str, np.ndarray]:
    draws = generator_for(1)
    labels = torch.randint(N_CLASSES, (n,), generator=draws)
    dynamics = Dynamics(n, device, el2n_epochs=EPOCHS, window=EPOCHS)
    for epoch in range(EPOCHS):
        logits = 5 * torch.randn((n, N_CLASSES), generator=draws)
        order = torch.randperm(n, generator=draws)
        rows = order.to(device)
        dynamics.begin_epoch(epoch)
        dynamics.update(logits[order].to(device), labels[order].to(device), rows)
        dynamics.end_epoch(epoch)
    return dynamics.scores()


def host_reads(context: Context) -> Iterator[Check]:
    """Train and score one batch, and count what makes the host wait for the device."""
    pixels = context.pixels(Geometry(CROP_SIZE))
    proxy = convolutional_proxy(
        pixels, N_CLASSES, size=CROP_SIZE, crop_scale=0.5, batch=len(pixels), seed=0,
        device=context.device,
    )  # fmt: skip
    optimiser = sgd(proxy.network, lr=0.1, weight_decay=0.0)
    trainer = Trainer(proxy.network, optimiser, lambda _: 0.1, context.device)
    ids = torch.arange(len(pixels), device=context.device)
    dynamics = Dynamics(len(pixels), context.device)
    guard = NonFiniteGuard(len(pixels), context.device)
    ((inputs, _, _),) = proxy.examples(0)
    with HostReads() as reads:
        logits = trainer.step(inputs, partial(cross_entropy, target=ids % N_CLASSES))
        guard.check(dynamics.update(logits, ids % N_CLASSES, ids).loss, ids, 0)
    yield result(
        "host reads in a training batch",
        ", ".join(sorted(set(reads.found))) or "none",
        holds=not reads.found,
        facts={"found": reads.found},
    )


def similarity(_context: Context) -> Iterator[Check]:
    """Say what is not proved, and why: FAISS has no GPU path here."""
    yield Check("FAISS", "skipped: similarity is searched on the CPU, whatever the device")


WAITING = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"})


INDEXING = frozenset({"index", "index_put", "index_put_"})


class HostReads(TorchDispatchMode):
    """Names of the operations in its block that need a value, or a size, from the device.

    They are reads of one number (``item``, ``float``, ``if tensor``), sizes that depend on values
    (``nonzero``, boolean masks) and copies to the host. On a CPU no copy is one, but the rest shows
    there as well; tensors on ``meta``, which have no values, show the copies too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator overload
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the operator returns
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if (
            name in WAITING
            or (name in INDEXING and _has_mask(args))
            or (_leaves_the_device(args) and _is_on_the_host(result))
        ):
            self.found.append(name)
        return result


def _has_mask(args: Sequence[Any]) -> bool:
    """Test whether an index is a boolean mask, whose number of true values decides a size."""
    return any(one is not None and one.dtype in {torch.bool, torch.uint8} for one in args[1])


def _leaves_the_device(args: Sequence[Any]) -> bool:
    return any(isinstance(one, torch.Tensor) and one.device.type != "cpu" for one in args)


def _is_on_the_host(result: object) -> bool:
    return isinstance(result, torch.Tensor) and result.device.type == "cpu"
