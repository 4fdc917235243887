"""Speeds of a device on samples of a packed data set, and their projection to ImageNet."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.data.decoders.tuning import best_load, keep_best_load
from coreset.engine.data.geometry import Geometry, stored_side
from coreset.engine.data.images import DecodedImages, EpochSource, load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.residency import Capacity, choose_place
from coreset.engine.data.stream import Batch, ImageStream
from coreset.engine.doctor.machine import Check
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, build_network, placed
from coreset.engine.runtime.device import has_fast_bfloat16
from coreset.engine.runtime.limits import decoded_bytes
from coreset.engine.runtime.text import readable_bytes
from coreset.engine.scoring.proxy import Proxy, convolutional_proxy
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.compilation import CompileMode, compile_where_it_pays
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.augment import normalised
from coreset.kernels.dynamics import Dynamics
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

SIZE = 224
"""Side in pixels of decoded images and of what networks see: the default of `embed` and `score`."""
BATCHES = {"cpu": 64, "cuda": 256}
"""Images per step of the networks: a CPU takes seconds for a batch of the GPU's."""
FAST_BATCHES = {"cpu": 64, "cuda": 1024}
"""Images per step of the fast recipe: a CPU takes a minute for its own."""
BATCHES_PER_EPOCH = 16
"""Batches of decoding: enough for reading ahead to settle between the beginnings of epochs."""
IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
SCORING_EPOCHS = 60
FAST = RECIPES["fast"]
FAST_EPOCHS = Counter(FAST.side_at(epoch) for epoch in range(FAST.epochs))
DECODE, COPY = "decode", "images kept on the host"
FORWARD, TRAIN = "ResNet-18 forward", "ResNet-18 forward and backward"
ENGINES = "share of the JPEG engines"
HW_LOADS = (0.0, 0.5, 0.65, 0.8, 0.95)
BESIDE = "decode beside training"
FAST_STEPS = {side: f"fast recipe at {side} px" for side in sorted(FAST_EPOCHS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A device and the samples that it is tried on."""

    dataset: Dataset
    device: torch.device
    ids: NDArray[np.int64]
    seconds: float

    @property
    def batch(self) -> int:
        """Images per step of the networks."""
        return min(BATCHES[self.device.type], self.ids.size)

    def source(
        self, geometry: Geometry, ids: NDArray[np.int64] | None = None, decoder: str = "auto"
    ) -> ImageStream:
        """Decode samples (all of ``ids`` by default) for the device as stages decode them."""
        chosen = self.ids if ids is None else ids
        device = str(self.device)
        return ImageStream(self.dataset, geometry, decoder=decoder, device=device, ids=chosen)

    def pixels(self, geometry: Geometry) -> DecodedImages:
        """Decode one batch of images onto the device."""
        with self.source(geometry, self.ids[: self.batch]) as source:
            return load_into_memory(source)


def context_of(dataset: Dataset, device: torch.device, *, samples: int, seconds: float) -> Context:
    """Take up to ``samples`` samples, spread evenly over the data set."""
    n = len(dataset)
    if n == 0:
        raise UsageError(f"{dataset.path} has no samples; name a data set that has some")
    ids = np.arange(min(n, samples), dtype=np.int64) * n // min(n, samples)
    return Context(dataset=dataset, device=device, ids=ids, seconds=seconds)


def decoding(context: Context) -> Iterator[Check]:
    """Time reading and decoding, to where batches are handed over."""
    with closing(_decoded(context)) as batches:
        per_second = rate(lambda: len(next(batches).ids), context)
    mean_bytes = round(float(context.dataset.ints("bytes")[context.ids].mean()))
    yield _speed(DECODE, per_second, f"{SIZE} px, files of {mean_bytes / 1000:,.0f} kB")


def jpeg_engines(context: Context) -> Iterator[Check]:
    """Find the share of images for the GPU's JPEG engines that decodes fastest, and keep it."""
    if context.device.type != "cuda":
        yield Check(ENGINES, "skipped: a CPU has none")
        return
    gpu = torch.cuda.get_device_name(context.device)
    best, speeds = best_load(gpu), dict[float, float]()
    try:
        for load in HW_LOADS:
            keep_best_load(gpu, load)
            (check,) = decoding(context)
            speeds[load] = check.facts["images_per_second"]
        best = max(speeds, key=speeds.__getitem__)
    finally:
        file = keep_best_load(gpu, best)
    shown = ", ".join(f"{load:g}: {rounded(speed)}" for load, speed in speeds.items())
    facts = {"best": best, "images_per_second_by_share": list(speeds.items())}
    yield Check(ENGINES, f"{best:g}, kept in {file} (images/s by share: {shown})", facts=facts)


def _decoded(context: Context) -> Generator[Batch]:
    ids = np.resize(context.ids, BATCHES_PER_EPOCH * context.batch)
    with context.source(Geometry(SIZE), ids) as source:
        yield from _endless(source, context)


def _endless(source: EpochSource, context: Context) -> Generator[Batch]:
    for epoch in count():
        yield from source.epoch(BatchOrder(batch=context.batch, epoch=epoch, shuffle=True))


def copying(context: Context) -> Iterator[Check]:
    """Time batches of images kept on the host, as `score` gathers them and copies them ahead."""
    side = stored_side(SIZE)
    kept = context.pixels(Geometry(side))
    rows = np.resize(np.arange(len(kept)), BATCHES_PER_EPOCH * len(kept))
    images = kept.images.cpu().permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    on_host = DecodedImages(images, kept.labels[rows], kept.ids[rows], device=context.device)
    with closing(on_host), closing(_endless(on_host, context)) as endless:
        per_second = rate(lambda: len(next(endless).ids), context)
    yield _speed(COPY, per_second, f"uint8, {side} px, gathered and copied ahead")


def decoding_beside_training(context: Context) -> Iterator[Check]:
    """Time steps of `score` that each come with a decoded batch: how far the two overlap."""
    train = _full_step(context)
    with closing(_decoded(context)) as batches:

        def step() -> int:
            next(batches)
            return train()

        per_second = rate(step, context)
    yield _speed(BESIDE, per_second, f"{SIZE} px, a batch of each in turn")


def residency(context: Context) -> Iterator[Check]:
    """Say where this machine would keep ImageNet for `score`; what a run writes lies beside it."""
    for recipe in (RECIPES["full"], FAST):
        side = stored_side(recipe.size)
        n_bytes, pixels = decoded_bytes(IMAGENET_IMAGES, side), recipe.batch * recipe.size**2
        capacity = Capacity.of(context.device, Path())
        place = choose_place(n_bytes, capacity, epochs=recipe.epochs, batch_pixels=pixels)
        value = f"{readable_bytes(n_bytes)} of {side} px, kept {place} ({capacity})"
        facts = {"bytes": n_bytes, "place": place.name, **capacity._asdict()}
        yield Check(f"ImageNet for the {recipe.name} recipe", value, facts=facts)


def embedding(context: Context) -> Iterator[Check]:
    """Time the forward pass as `embed` computes it, in float32, on pixels on the device."""
    network = build_network("resnet18", IMAGENET_CLASSES, norm="batch", seed=0).eval()
    network = placed(network, context.device, torch.channels_last)
    images = context.pixels(Geometry(SIZE)).images

    @torch.inference_mode()
    def step() -> int:
        network(normalised(images, IMAGENET_MEAN, IMAGENET_STD))
        return len(images)

    yield _speed(FORWARD, rate(step, context), f"{SIZE} px, float32")


def training(context: Context) -> Iterator[Check]:
    """Time the steps of `score`, crops included, on pixels on the device, compiled on a GPU."""
    precision = "bfloat16" if has_fast_bfloat16(context.device) else "float32"
    per_second = rate(_full_step(context), context)
    how = "compiled" if context.device.type == "cuda" else "not compiled"
    yield _speed(TRAIN, per_second, f"{SIZE} px, {precision}, {how}")


def fast_training(context: Context, side: int) -> Iterator[Check]:
    """Time the fast recipe's steps at one side; on a GPU compiled, without and with CUDA graphs."""
    modes: Mapping[CompileMode, str] = {"off": "not compiled"}
    if context.device.type == "cuda":
        modes = {"on": "compiled", "graphs": "compiled, CUDA graphs"}
    pixels = context.pixels(Geometry(stored_side(FAST.size), stored_side(FAST.size)))
    batch = min(FAST.batch, FAST_BATCHES[context.device.type])
    rows = np.resize(np.arange(len(pixels)), batch)
    images = pixels.images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    repeated = DecodedImages(images, pixels.labels[rows], pixels.ids[rows])
    build = partial(proxy_in_training, context, repeated, size=side, crop_scale=FAST.crop_scale)
    for mode, how in modes.items():
        dynamics = Dynamics(batch, context.device, compiled=mode != "off")
        step = partial(_step, *build(mode=mode), dynamics)
        name = FAST_STEPS[side] + (", CUDA graphs" if mode == "graphs" else "")
        yield _speed(name, rate(step, context), f"batches of {batch}, {how}")


def _full_step(context: Context) -> Callable[[], int]:
    """Build a step of `score` by the full recipe, on one batch of images on the device."""
    pixels = context.pixels(Geometry(stored_side(SIZE), stored_side(SIZE)))
    return partial(_step, *proxy_in_training(context, pixels, size=SIZE, crop_scale=0.08))


def _step(proxy: Proxy, trainer: Trainer, dynamics: Dynamics | None = None) -> int:
    """Train on the one batch, and return how many images it has."""
    ((inputs, labels, _),) = proxy.examples(trainer.steps, 0)
    logits = trainer.step(inputs, partial(cross_entropy, target=labels))
    if dynamics is not None:
        dynamics.update(logits, labels, torch.arange(len(labels), device=labels.device))
    return len(labels)


def proxy_in_training(
    context: Context, images: DecodedImages, *, size: int, crop_scale: float,
    mode: CompileMode = "auto",
) -> tuple[Proxy, Trainer]:  # fmt: skip
    """Build the proxy of `score` for one batch of images, and its trainer, compiled on a GPU."""
    recipe = replace(RECIPES["full"], size=size, crop_scale=crop_scale, batch=len(images))
    n_classes = max(IMAGENET_CLASSES, len(context.dataset.classes))
    proxy = convolutional_proxy(images, n_classes, recipe, seed=0, device=context.device)
    compile_where_it_pays(proxy.network, mode, context.device, image_passes=0, size=size)
    optimiser = sgd(proxy.network, lr=0.1, weight_decay=1e-4)
    return proxy, Trainer(proxy.network, optimiser, lambda _: 0.1, context.device)


def rate(step: Callable[[], int], context: Context) -> float:
    """Measure images per second of ``step``, which returns their number; one call warms up."""
    step()
    settle = partial(torch.get_device_module(context.device).synchronize, context.device)
    settle()  # a GPU has done what it was given
    watch, images = Stopwatch(), 0
    while images == 0 or watch.seconds < context.seconds:
        images += step()
    settle()
    return images / watch.seconds


def _speed(name: str, per_second: float, what: str) -> Check:
    value = f"{rounded(per_second)} images/s ({what})"
    return Check(name, value, facts={"images_per_second": per_second, "what": what})


def rounded(per_second: float) -> str:
    """Render a speed."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
