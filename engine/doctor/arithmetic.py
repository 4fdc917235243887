"""Proofs about arithmetic: on equal inputs and draws the device computes what the CPU computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from coreset.engine.data.decoders import DecoderName
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.doctor.machine import Check, Verdict
from coreset.engine.doctor.speeds import Context, proxy_in_training
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.runtime.device import generator_for
from coreset.kernels.augment import (
    cutmix,
    draw_cutmix,
    draw_flips,
    draw_jitter,
    draw_lighting,
    horizontal_flip,
    normalised,
    random_resized_crop,
    recoloured,
    unit_range,
)
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.logits import NonFiniteGuard

Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

REPORT = "report it with the output of --json"
CPU = torch.device("cpu")
CROP_SIZE = 160
N_CLASSES, EPOCHS = 100, 3
AUGMENTATION_TOLERANCE = 1e-4
"""Tolerance of pixels in 0..1: float32 sums in another order; TF32 would be ten times farther."""
SCORE_TOLERANCE = 1e-4
"""Tolerance of scores of a few units, summed in float32 over the epochs."""
WAITING = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"})
INDEXING = frozenset({"index", "index_put", "index_put_"})


AUGMENTATIONS: dict[str, Augmentation] = {
    "normalisation": lambda images, _: normalised(images, IMAGENET_MEAN, IMAGENET_STD),
    "random resized crop": lambda images, draws: random_resized_crop(images, CROP_SIZE, draws),
    "flip": lambda images, draws: _flipped(unit_range(images), draws),
    "colours": lambda images, draws: _recoloured(unit_range(images), draws),
    "CutMix": lambda images, draws: _mixed(unit_range(images), draws),
}


def _flipped(images: Tensor, draws: torch.Generator) -> Tensor:
    return horizontal_flip(images, draw_flips(len(images), draws).to(images.device))


def _recoloured(images: Tensor, draws: torch.Generator) -> Tensor:
    both = (draw(len(images), draws).to(images.device) for draw in (draw_jitter, draw_lighting))
    amounts, offsets = both
    return recoloured(images, amounts, offsets, IMAGENET_MEAN, IMAGENET_STD)


def _mixed(images: Tensor, draws: torch.Generator) -> Tensor:
    partner, box, _ = draw_cutmix(len(images), (CROP_SIZE, CROP_SIZE), draws)
    return cutmix(images, partner.to(images.device), box.to(images.device))


def augmentation(context: Context, name: str, augmented: Augmentation) -> Iterator[Check]:
    """Augment the same images with the same draws on the CPU and on the device."""
    ids = context.ids[: context.batch]
    with context.source(Geometry(CROP_SIZE), ids, DecoderName.TURBO) as source:
        images = next(source.epoch(BatchOrder(batch=ids.size))).images
    expected, actual = (
        augmented(images.to(device), generator_for(0)).cpu() for device in (CPU, context.device)
    )
    yield near(f"augmentation: {name}", actual, expected, AUGMENTATION_TOLERANCE)


def near(name: str, actual: Tensor, expected: Tensor, allowed: float) -> Check:
    """Hold the largest difference of two tensors to what is allowed."""
    largest = float((actual - expected).abs().max())
    judged = Verdict.FAIL.unless(largest <= allowed, REPORT)
    facts = {"largest": largest, "allowed": allowed, "images": len(actual)}
    return Check(name, f"largest difference {largest:.1g}", *judged, facts)


def training_scores(context: Context) -> Iterator[Check]:
    """Accumulate the scores of the same logits on the CPU and on the device."""
    expected, actual = (_scores(context.ids.size, device) for device in (CPU, context.device))
    largest = {name: float(np.abs(actual[name] - expected[name]).max()) for name in expected}
    worst = max(largest, key=largest.__getitem__)
    # A comparison with NaN is false: scores that are missing on one side do not pass.
    holds = all(value <= SCORE_TOLERANCE for value in largest.values())
    value = f"largest difference {largest[worst]:.1g} ({worst})"
    facts = {"largest": largest, "allowed": SCORE_TOLERANCE}
    yield Check("scores of a training", value, *Verdict.FAIL.unless(holds, REPORT), facts)


def _scores(n: int, device: torch.device) -> dict[str, np.ndarray]:
    draws = generator_for(1)
    labels = torch.randint(N_CLASSES, (n,), generator=draws)
    dynamics = Dynamics(n, device, el2n_epochs=EPOCHS, window=EPOCHS)
    for epoch in range(EPOCHS):
        logits = 5 * torch.randn((n, N_CLASSES), generator=draws)
        order = torch.randperm(n, generator=draws)
        dynamics.begin_epoch(epoch)
        dynamics.update(logits[order].to(device), labels[order].to(device), order.to(device))
        dynamics.end_epoch(epoch)
    return dynamics.scores()


def host_reads(context: Context) -> Iterator[Check]:
    """Train and score one batch, and count what makes the host wait for the device."""
    pixels = context.pixels(Geometry(CROP_SIZE))
    # Compiled code would hide its operations from the count.
    proxy, trainer = proxy_in_training(context, pixels, size=CROP_SIZE, crop_scale=0.5, mode="off")
    ids = torch.arange(len(pixels), device=context.device)
    dynamics = Dynamics(len(pixels), context.device)
    guard = NonFiniteGuard(len(pixels), context.device)
    ((inputs, _, _),) = proxy.examples(0, 0)
    with HostReads() as reads:
        logits = trainer.step(inputs, partial(cross_entropy, target=ids % N_CLASSES))
        guard.check(dynamics.update(logits, ids % N_CLASSES, ids).loss, ids, 0)
    value = ", ".join(sorted(set(reads.found))) or "none"
    judged = Verdict.FAIL.unless(not reads.found, REPORT)
    yield Check("host reads in a training batch", value, *judged, {"found": reads.found})


class HostReads(TorchDispatchMode):
    """Names of the operations in its block that need a value, or a size, from the device.

    They are reads of one number, sizes that depend on values, and copies to the host, which only
    tensors on another device (``meta`` will do) can show.
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
        sources = {tensor.device.type for tensor in args if isinstance(tensor, Tensor)}
        is_copy = isinstance(result, Tensor) and result.device == CPU and sources - {"cpu"}
        if name in WAITING or (name in INDEXING and _has_mask(args)) or is_copy:
            self.found.append(name)
        return result


def _has_mask(args: Sequence[Any]) -> bool:
    """Test whether an index is a boolean mask, whose number of true values decides a size."""
    return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
