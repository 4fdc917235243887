"""Optimisation of images until classifiers see their classes, and the statistics of real images.

The loop of SRe2L (Yin, Xing and Shen, NeurIPS 2023), with the curriculum of CDA (Yin and Shen,
2023) and the residuals of FADRM (Cui et al., NeurIPS 2025), as released (VILA-Lab/SRe2L at 8d00cba,
Jiacheng8/FADRM at f445e38) but for this: a teacher gets the pixels by its own mean and spread;
images roll by up to a seventh of their side (32 of 224), where the released number differs by data
set; float32 instead of FADRM's float16; pixels are rounded to 8 bits instead of truncated.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, interpolate

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.teachers import Teacher
from coreset.engine.runtime.device import half_precision
from coreset.engine.runtime.progress import LINE_EVERY_SECONDS, say
from coreset.kernels.augment import draw_crops, draw_flips, normalised
from coreset.kernels.batch_moments import batch_moments
from coreset.shards.errors import UsageError

if TYPE_CHECKING:
    from coreset.engine.condensed.methods.recover import RecoverParameters

FIRST_WEIGHT = 10.0
"""Weight of the first batch norm's loss; the others have 1."""
LEAST_CROP, MOST_ROLL = 0.08, 1 / 7
"""Area of the smallest crop, and longest roll, as shares of the image's area and side."""

Watched: TypeAlias = tuple[Teacher, list[Tensor]]
"""A teacher, and the losses of its batch norms in its last forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Optimisation of a batch of images, of which each is of another class."""

    teachers: Sequence[Teacher]
    """Checked teachers, which take turns."""
    parameters: "RecoverParameters"
    sizes: tuple[int, ...]
    """Side of the images in each stage; a stage begins with a new optimiser."""
    alpha: float = 1.0
    """Share of the images when a stage mixes them with what they began as."""
    curriculum: bool = False
    """Begin with whole images, and shrink the smallest crop by a cosine."""

    def run(
        self, labels: Tensor, generator: torch.Generator, mosaics: Tensor | None = None
    ) -> Tensor:
        """Return images of the labels, uint8 of shape (b, 3, s, s), begun as mosaics or as noise.

        Mosaics are uint8 of shape (b, 3, m, m); the generator is one of the CPU.
        """
        if mosaics is None:
            shape = len(labels), 3, self.sizes[0], self.sizes[0]
            start = torch.randn(shape, generator=generator).to(labels.device)
        else:
            start = normalised(mosaics, IMAGENET_MEAN, IMAGENET_STD)
        images, n_stages = start, len(self.sizes)
        ends = [self.parameters.iterations * at // n_stages for at in range(n_stages + 1)]
        with ExitStack() as stack:
            watched = [(t, stack.enter_context(batch_norm_losses(t))) for t in self.teachers]
            for stage, size in enumerate(self.sizes):
                images = resized(images, size)
                if stage:
                    images = torch.lerp(resized(start, size), images, self.alpha)
                steps = range(ends[stage], ends[stage + 1])
                images = self._optimised(images, labels, steps, generator, watched)
        return (255 * _unit_range(images)).round().clamp(0, 255).to(torch.uint8)

    def _optimised(
        self,
        images: Tensor,
        labels: Tensor,
        steps: range,
        generator: torch.Generator,
        watched: Sequence[Watched],
    ) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        black, white = (
            normalised(images.new_full((1, 3, 1, 1), level), IMAGENET_MEAN, IMAGENET_STD)
            for level in (0.0, 1.0)
        )
        optimiser, watch = torch.optim.Adam([images], betas=(0.5, 0.9), eps=1e-8), Stopwatch()
        for step in steps:
            fall = _cosine(step / self.parameters.iterations)
            optimiser.param_groups[0]["lr"] = self.parameters.lr * fall
            # As in CDA's released sets: --easy2hard-mode cosine --milestone 1.
            least_crop = LEAST_CROP + (1 - LEAST_CROP) * fall * self.curriculum
            seen = augmented(images, generator, least_crop)
            loss = self.loss(watched[step % len(watched)], seen, labels)
            images.grad = None
            loss.backward(inputs=[images])
            optimiser.step()
            images.detach().clamp_(black, white)
            if watch.seconds > LINE_EVERY_SECONDS:
                done = f"{step + 1} of {self.parameters.iterations} iterations"
                say(f"recover: {done}, loss {loss.item():.3g}")
                watch = Stopwatch()
        return images.detach()

    def loss(self, watched: Watched, seen: Tensor, labels: Tensor) -> Tensor:
        """Return cross entropy plus weighted statistics of augmented images, one number.

        Of a published head with more classes the outputs of the set's count alone.
        """
        teacher, losses = watched
        losses.clear()
        with half_precision(seen.device, wanted=self.parameters.precision == "bfloat16"):
            outputs = teacher.network(_as_taught(seen, teacher))
        logits = outputs.float()[:, teacher.orders[0]]
        return cross_entropy(logits, labels) + self.parameters.r_bn * torch.stack(losses).sum()


def augmented(images: Tensor, generator: torch.Generator, least_crop: float) -> Tensor:
    """Crop all images alike, resize to their size, mirror half of the time, and roll.

    No crop is larger than its result, so that torchvision's antialiasing would change nothing.
    """
    size = images.shape[-1]
    box = draw_crops(1, size, size, generator, scale=(least_crop, 1.0))
    left, top, right, bottom = box[0].tolist()
    seen = resized(images[:, :, top:bottom, left:right], size)
    if draw_flips(1, generator):
        seen = seen.flip(3)
    shifts = torch.randint(round(size * MOST_ROLL) + 1, (2,), generator=generator)
    return seen.roll(shifts.tolist(), (2, 3))


def resized(images: Tensor, size: int) -> Tensor:
    """Resize bilinearly to a square, without antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return interpolate(images, size=(size, size), mode="bilinear")


def batch_norms(teacher: Teacher) -> list[nn.BatchNorm2d]:
    """List the layers with running statistics in the order of ``modules()``, or refuse a teacher.

    Those of timm, with an activation, are among them. Raises ``UsageError`` if there are none.
    """
    layers = (layer for layer in teacher.network.modules() if isinstance(layer, nn.BatchNorm2d))
    if kept := [layer for layer in layers if layer.running_mean is not None]:
        return kept
    raise UsageError(
        f"teacher {teacher.name} has no batch norm, and so no statistics of real images; name "
        "one that has, such as resnet18 or mobilenet_v2"
    )


@contextmanager
def batch_norm_losses(teacher: Teacher) -> Generator[list[Tensor]]:
    """Let each forward pass in the block append the loss of each batch norm to the list.

    It is the distance (L2 over channels) of the mean of the layer's input from the running mean,
    plus that of the biased variance from the running one; times `FIRST_WEIGHT` in the first layer.
    """
    losses = list[Tensor]()

    def append(weight: float, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        mean, variance = batch_moments(inputs[0])
        running = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        losses.append(
            weight * (vector_norm(mean - running[0]) + vector_norm(variance - running[1]))
        )

    with ExitStack() as stack:
        for place, layer in enumerate(batch_norms(teacher)):
            hook = partial(append, 1.0 if place else FIRST_WEIGHT)
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield losses


def _unit_range(images: Tensor) -> Tensor:
    """Undo the normalisation by ImageNet's mean and spread."""
    std, mean = (images.new_tensor(row)[:, None, None] for row in (IMAGENET_STD, IMAGENET_MEAN))
    return images * std + mean


def _as_taught(images: Tensor, teacher: Teacher) -> Tensor:
    if (teacher.mean, teacher.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return images
    return normalised(_unit_range(images), teacher.mean, teacher.std)


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2
