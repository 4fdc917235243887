"""Proofs about decoding: pixels near the reference, every sample once, kept pixels the same."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coreset.engine.data.batch import Batch
from coreset.engine.data.decoders import make_decoder
from coreset.engine.data.decoders.base import TOLERANCES, DecoderName, EncodedBatch, Normalisation
from coreset.engine.data.geometry import Crops, Geometry
from coreset.engine.data.image_cache import loaded
from coreset.engine.data.images import DecodedImages, load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.reader import ShardReader
from coreset.engine.data.stream import ImageStream
from coreset.engine.doctor.check import REPORT, SIZE, Context, result
from coreset.engine.doctor.machine import Check, Verdict
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.kernels.augment import normalised

PHOTOS = Geometry(SIZE, 256)
"""Short side to 256, central 224: ImageNet's validation transform."""
SMALL = Geometry(64)
ODD_BATCH = 37
"""Divides hardly any number of samples, so that last batches are short."""
WORLDS = (1, 2, 3)
IMAGENET = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
NORMALISED_TOLERANCE = 1e-4
"""Of values of a few units; one level is 0.017."""


def pixel_contract(context: Context, decoder: DecoderName) -> Iterator[Check]:
    """Compare a decoder with Pillow, with the central crop and with random resized crops."""
    whole = _encoded(context)
    boxes = Crops().boxes(context.ids, whole.widths, whole.heights, seed=0, epoch=0)
    for what, batch in (("central", whole), ("random", replace(whole, crops=boxes))):
        images = _decoded(decoder, batch, str(context.device))
        expected = _decoded(DecoderName.PILLOW, batch, "cpu")
        on_gpu = decoder is DecoderName.DALI and context.device.type == "cuda"
        yield compared(
            f"pixels of {decoder}, {what} crops", images, expected, decoder, coarse=on_gpu
        )


def compared(
    name: str,
    images: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    decoder: DecoderName,
    *,
    coarse: bool,
) -> Check:
    """Hold decoded images, shape (b, s, s, 3), to the decoder's tolerance.

    ``coarse`` softens a failure to a warning if the images are no farther from the reference than
    those of `fast`: nvJPEG has arithmetic of its own, and is not held to what DALI does on a CPU.
    """
    found = TOLERANCES[decoder].difference(images, expected)
    exceeded = TOLERANCES[decoder].exceeded_by(found)
    overall = np.abs(images.astype(np.int16) - expected).mean()
    value = f"largest {found.largest}, mean {overall:.2f} of 255, {len(images)} images"
    facts = {**asdict(found), "mean_of_all": float(overall), "images": len(images)}
    facts["allowed"] = asdict(TOLERANCES[decoder])
    if not exceeded:
        return Check(name, value, facts=facts)
    like_fast = TOLERANCES[DecoderName.FAST]
    if coarse and not like_fast.exceeded_by(like_fast.difference(images, expected)):
        remedy = "coarser than on a CPU (docs/pixels.md); --decoder turbo avoids it"
        return Check(name, value, Verdict.WARN, remedy, facts)
    remedy = f"{'; '.join(exceeded)}: use --decoder-exact, and {REPORT}"
    return Check(name, value, Verdict.FAIL, remedy, facts)


def normalised_batches(context: Context, decoder: DecoderName) -> Iterator[Check]:
    """Compare the float32 batches of a decoder with its uint8 ones, normalised on the CPU."""
    whole, device = _encoded(context), str(context.device)
    ready = make_decoder(decoder, PHOTOS, device=device, workers=0, normalisation=IMAGENET)
    with closing(ready):
        found = ready.decode(whole).cpu()
    images = torch.from_numpy(_decoded(decoder, whole, device)).permute(0, 3, 1, 2)
    largest = float((found - normalised(images, IMAGENET.mean, IMAGENET.std)).abs().max())
    yield result(
        f"normalised batches of {decoder}",
        f"largest difference {largest:.1g}",
        holds=largest <= NORMALISED_TOLERANCE,
        facts={"largest": largest, "allowed": NORMALISED_TOLERANCE, "images": len(images)},
    )


def exactly_once(context: Context) -> Iterator[Check]:
    """Visit the samples in shuffled epochs of 1, 2 and 3 ranks, and count them."""
    with context.source(SMALL) as source:
        for world in WORLDS:
            batches = [
                batch
                for rank in range(world)
                for batch in source.epoch(
                    BatchOrder(batch=ODD_BATCH, epoch=world, shuffle=True, rank=rank, world=world)
                )
            ]
            yield counted(f"ids, ranks: {world}", batches, context.ids, source.labels)


def counted(
    name: str, batches: list[Batch], ids: NDArray[np.int64], labels: NDArray[np.int64]
) -> Check:
    """Check that each of ``ids`` (sorted, shape (n,)) came once with its label (shape (n,))."""
    seen = np.concatenate([batch.ids.cpu().numpy() for batch in batches])
    seen_labels = np.concatenate([batch.labels.cpu().numpy() for batch in batches])
    known = np.isin(seen, ids)
    right = labels[np.searchsorted(ids, seen[known])] == seen_labels[known]
    facts = {
        "samples": ids.size,
        "lost": int(np.setdiff1d(ids, seen).size),
        "repeated": seen.size - int(np.unique(seen).size),
        "unknown": int((~known).sum()),
        "mislabelled": int((~right).sum()),
    }
    faults = {fault: n for fault, n in facts.items() if n and fault != "samples"}
    value = ", ".join(f"{n} {fault}" for fault, n in faults.items())
    return result(name, value or f"{ids.size} samples once each", holds=not faults, facts=facts)


def kept_pixels(context: Context) -> Iterator[Check]:
    """Compare an epoch of kept pixels with one decoded anew, and the ways to keep them."""
    with context.source(Geometry(SIZE)) as source:
        anew = _shuffled(source)
        kept = {where: _shuffled(pixels) for where, pixels in _keepers(source).items()}
    on_gpu = context.device.type == "cuda"
    first, *others = kept
    yield same_images(f"kept pixels, {first}", kept[first], anew, coarse=on_gpu)
    for where in others:
        yield same_images(f"kept pixels, {where}", kept[where], kept[first], coarse=False)


def _shuffled(source: ImageStream | DecodedImages) -> list[Batch]:
    return list(source.epoch(BatchOrder(batch=ODD_BATCH, seed=1, shuffle=True)))


def _keepers(source: ImageStream) -> dict[str, DecodedImages]:
    """List the ways to have decoded images on a device again and again."""
    resident = load_into_memory(source)
    on_host = resident.images.cpu()
    labels, ids = source.labels, source.ids
    copied = loaded(on_host.permute(0, 2, 3, 1), source.device).permute(0, 3, 1, 2)
    return {
        "decoded on the device": resident,
        "copied to the device": DecodedImages(copied, labels, ids),
        "left on the host": DecodedImages(on_host, labels, ids, device=source.device),
    }


def same_images(
    name: str, found: Sequence[Batch], expected: Sequence[Batch], *, coarse: bool
) -> Check:
    """Compare two epochs, which must be bit-equal.

    ``coarse`` softens a failure to a warning if ids and labels agree and the pixels nearly do: a
    GPU decodes part of each batch by its JPEG engines and part by its cores, so that a file in
    another batch may decode otherwise.
    """
    pairs = list(zip(found, expected, strict=True))
    differing = sum(differing_images(*pair) for pair in pairs)
    n = sum(len(batch.ids) for batch in expected)
    value, facts = f"{differing} of {n} images differ", {"images": n, "differing": differing}
    if not differing:
        return Check(name, value, facts=facts)
    if coarse and all(_nearly_equal(*pair) for pair in pairs):
        remedy = "a file decodes otherwise in another batch; --decoder turbo avoids it"
        return Check(name, value, Verdict.WARN, remedy, facts)
    return Check(name, value, Verdict.FAIL, f"do not keep pixels there, and {REPORT}", facts)


def differing_images(one: Batch, other: Batch) -> int:
    """Count the rows of two batches that differ in a pixel, the label or the id."""
    differ = (one.images != other.images).flatten(1).any(1)
    differ |= (one.ids != other.ids) | (one.labels != other.labels)
    return int(differ.sum())


def _nearly_equal(one: Batch, other: Batch) -> bool:
    """Ids and labels equal, pixels no farther apart than `fast` may be from the reference."""
    images, expected = (batch.images.permute(0, 2, 3, 1).cpu().numpy() for batch in (one, other))
    tolerance = TOLERANCES[DecoderName.FAST]
    near = not tolerance.exceeded_by(tolerance.difference(images, expected))
    return near and torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels)


def _encoded(context: Context) -> EncodedBatch:
    with ShardReader(context.dataset) as reader:
        data = reader.read(context.ids)
    sizes = (context.dataset.ints(side)[context.ids] for side in ("width", "height"))
    return EncodedBatch(data, *sizes)


def _decoded(decoder: DecoderName, batch: EncodedBatch, device: str) -> NDArray[np.uint8]:
    with closing(make_decoder(decoder, PHOTOS, device=device, workers=0)) as ready:
        return ready.decode(batch).permute(0, 2, 3, 1).cpu().numpy()
