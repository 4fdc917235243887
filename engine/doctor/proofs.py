"""Proofs of decoding: pixels near the reference, every sample once; and the run of all proofs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from coreset.engine.data.decoders import (
    TOLERANCES,
    DecoderName,
    EncodedBatch,
    Normalisation,
    make_decoder,
)
from coreset.engine.data.geometry import Crops, Geometry
from coreset.engine.data.images import DecodedImages, load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.reader import ShardReader
from coreset.engine.data.stream import Batch, ImageStream
from coreset.engine.doctor import speeds
from coreset.engine.doctor.arithmetic import (
    AUGMENTATIONS,
    REPORT,
    augmentation,
    host_reads,
    near,
    training_scores,
)
from coreset.engine.doctor.machine import Check, Verdict, complete, failure
from coreset.engine.doctor.projections import projections
from coreset.engine.doctor.speeds import SIZE, Context
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.runtime.device import memory_shortage
from coreset.kernels.augment import normalised
from coreset.kernels.neighbours import nearest, search_device
from coreset.shards.errors import DataError

PHOTOS = Geometry(SIZE, 256)
ODD_BATCH = 37
"""Divides hardly any number of samples, so that last batches are short."""
IMAGENET = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
SEARCHED = 2000
"""Rows among which neighbours are searched."""
NORMALISED_TOLERANCE = 1e-4
"""Tolerance of values of a few units; one level is 0.017."""


def pixel_contract(context: Context, decoder: DecoderName) -> Iterator[Check]:
    """Compare a decoder with Pillow, with the central crop and with random resized crops."""
    whole = _encoded(context)
    boxes = Crops().boxes(context.ids, whole.widths, whole.heights, seed=0, epoch=0)
    on_gpu = decoder is DecoderName.DALI and context.device.type == "cuda"
    for crops, batch in (("central", whole), ("random", replace(whole, crops=boxes))):
        images = _decoded(decoder, batch, str(context.device))
        expected = _decoded(DecoderName.PILLOW, batch, "cpu")
        name = f"pixels of {decoder}, {crops} crops"
        yield compared(name, images, expected, decoder, coarse=on_gpu)


def compared(
    name: str,
    images: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    decoder: DecoderName,
    *,
    coarse: bool,
) -> Check:
    """Hold decoded images, shape (b, s, s, 3), to the decoder's tolerance.

    ``coarse`` softens a failure to a warning if they are as near as `fast` must be: for nvJPEG.
    """
    tolerance, like_fast = TOLERANCES[decoder], TOLERANCES[DecoderName.FAST]
    difference = tolerance.difference(images, expected)
    exceeded = tolerance.exceeded_by(difference)
    overall = float(np.abs(images.astype(np.int16) - expected).mean())
    facts = {**difference, "mean_of_all": overall, "images": len(images)}
    remedy = f"{'; '.join(exceeded)}: use --decoder-exact, and {REPORT}"
    verdict, remedy = Verdict.FAIL.unless(not exceeded, remedy)
    if exceeded and coarse and not like_fast.exceeded_by(like_fast.difference(images, expected)):
        verdict = Verdict.WARN
        remedy = "coarser than on a CPU (docs/pixels.md); --decoder turbo avoids it"
    value = f"largest {difference['largest']}, mean {overall:.2f} of 255, {len(images)} images"
    return Check(name, value, verdict, remedy, facts | {"allowed": asdict(tolerance)})


def normalised_batches(context: Context, decoder: DecoderName) -> Iterator[Check]:
    """Compare the float32 batches of a decoder with its uint8 ones, normalised on the CPU."""
    whole, device = _encoded(context), str(context.device)
    ready = make_decoder(decoder, PHOTOS, device=device, workers=0, normalisation=IMAGENET)
    with closing(ready):
        actual = ready.decode(whole).cpu()
    images = torch.from_numpy(_decoded(decoder, whole, device)).permute(0, 3, 1, 2)
    expected = normalised(images, IMAGENET.mean, IMAGENET.std)
    yield near(f"normalised batches of {decoder}", actual, expected, NORMALISED_TOLERANCE)


def exactly_once(context: Context) -> Iterator[Check]:
    """Visit the samples in shuffled epochs of 1, 2 and 3 ranks, and count them."""
    with context.source(Geometry(64)) as source:
        for world in (1, 2, 3):
            order = BatchOrder(batch=ODD_BATCH, epoch=world, shuffle=True, world=world)
            orders = (replace(order, rank=rank) for rank in range(world))
            batches = [batch for each in orders for batch in source.epoch(each)]
            yield counted(f"ids, ranks: {world}", batches, context.ids, source.labels)


def counted(
    name: str, batches: list[Batch], ids: NDArray[np.int64], labels: NDArray[np.int64]
) -> Check:
    """Check that each of ``ids`` (sorted, shape (n,)) came once with its label (shape (n,))."""
    seen = np.concatenate([batch.ids.cpu().numpy() for batch in batches])
    seen_labels = np.concatenate([batch.labels.cpu().numpy() for batch in batches])
    known = np.isin(seen, ids)
    right = labels[np.searchsorted(ids, seen[known])] == seen_labels[known]
    faults = {
        "lost": int(np.setdiff1d(ids, seen).size),
        "repeated": seen.size - int(np.unique(seen).size),
        "unknown": int((~known).sum()),
        "mislabelled": int((~right).sum()),
    }
    value = ", ".join(f"{n} {fault}" for fault, n in faults.items() if n)
    judged = Verdict.FAIL.unless(not value, REPORT)
    facts = {"samples": ids.size, **faults}
    return Check(name, value or f"{ids.size} samples once each", *judged, facts)


def kept_pixels(context: Context) -> Iterator[Check]:
    """Compare an epoch of kept pixels with one decoded anew, and the ways to keep them."""
    on_gpu = context.device.type == "cuda"
    with context.source(Geometry(SIZE)) as source:
        anew, resident = _shuffled(source), load_into_memory(source)
        device, labels, ids = source.device, source.labels, source.ids
    kept, on_host = _shuffled(resident), resident.images.cpu()
    yield same_images("kept pixels, decoded on the device", kept, anew, coarse=on_gpu)
    copied = on_host.to(device)
    for where, pixels in (
        ("copied to the device", DecodedImages(copied, labels, ids)),
        ("left on the host", DecodedImages(on_host, labels, ids, device=device)),
    ):
        yield same_images(f"kept pixels, {where}", _shuffled(pixels), kept, coarse=False)


def _shuffled(source: ImageStream | DecodedImages) -> list[Batch]:
    return list(source.epoch(BatchOrder(batch=ODD_BATCH, seed=1, shuffle=True)))


def same_images(
    name: str, actual: Sequence[Batch], expected: Sequence[Batch], *, coarse: bool
) -> Check:
    """Compare two epochs, which must be bit-equal.

    ``coarse`` softens a failure to a warning if ids and labels agree and pixels nearly do: a GPU
    may decode a file otherwise in another batch.
    """
    pairs, differing = list(zip(actual, expected, strict=True)), 0
    for own, kept in pairs:
        differ = (own.images != kept.images).flatten(1).any(1)
        differ |= (own.ids != kept.ids) | (own.labels != kept.labels)
        differing += int(differ.sum())
    n = sum(len(batch.ids) for batch in expected)
    verdict, remedy = Verdict.FAIL.unless(not differing, f"do not keep pixels there, and {REPORT}")
    if differing and coarse and all(_nearly_equal(*pair) for pair in pairs):
        verdict = Verdict.WARN
        remedy = "a file decodes otherwise in another batch; --decoder turbo avoids it"
    facts = {"images": n, "differing": differing}
    return Check(name, f"{differing} of {n} images differ", verdict, remedy, facts)


def _nearly_equal(actual: Batch, expected: Batch) -> bool:
    """Test ids and labels, and that pixels are as near as `fast` must be to the reference."""
    images = (each.images.permute(0, 2, 3, 1).cpu().numpy() for each in (actual, expected))
    tolerance = TOLERANCES[DecoderName.FAST]
    near = not tolerance.exceeded_by(tolerance.difference(*images))
    return near and actual.ids.equal(expected.ids) and actual.labels.equal(expected.labels)


def _encoded(context: Context) -> EncodedBatch:
    with ShardReader(context.dataset) as reader:
        data = reader.read(context.ids)
    sizes = (context.dataset.ints(side)[context.ids] for side in ("width", "height"))
    return EncodedBatch(data, *sizes)


def _decoded(decoder: DecoderName, batch: EncodedBatch, device: str) -> NDArray[np.uint8]:
    with closing(make_decoder(decoder, PHOTOS, device=device, workers=0)) as ready:
        return ready.decode(batch).permute(0, 2, 3, 1).cpu().numpy()


def neighbours(context: Context) -> Iterator[Check]:
    """Compare the largest inner products that FAISS finds on the device with those of the CPU."""
    rng, device = np.random.default_rng(0), str(context.device)
    rows = rng.standard_normal((SEARCHED, 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    actual, expected = (
        np.einsum("nd,nkd->nk", rows, rows[nearest(rows, rows, 5, where)], dtype=np.float64)
        for where in (device, "cpu")
    )
    where = f"by FAISS on {search_device(device)}"
    check = near("neighbours", torch.from_numpy(actual), torch.from_numpy(expected), 1e-6)
    yield replace(check, value=f"{check.value}, {where}", facts={**check.facts, "device": where})


PROOFS: dict[str, Callable[[Context], Iterator[Check]]] = {
    **{
        f"{what} of {decoder}": partial(proof, decoder=decoder)
        for decoder in (DecoderName.DALI, DecoderName.TURBO)
        for what, proof in (("pixels", pixel_contract), ("normalised batches", normalised_batches))
    },
    "ids": exactly_once,
    "kept pixels": kept_pixels,
    **{
        f"augmentation: {name}": partial(augmentation, name=name, augmented=augmented)
        for name, augmented in AUGMENTATIONS.items()
    },
    "scores of a training": training_scores,
    "host reads in a training batch": host_reads,
    "neighbours": neighbours,
    "ImageNet": speeds.residency,
    speeds.ENGINES: speeds.jpeg_engines,
    speeds.DECODE: speeds.decoding,
    speeds.COPY: speeds.copying,
    speeds.FORWARD: speeds.embedding,
    speeds.TRAIN: speeds.training,
    speeds.BESIDE: speeds.decoding_beside_training,
    **{name: partial(speeds.fast_training, side=side) for side, name in speeds.FAST_STEPS.items()},
}
"""In the order of the table, by the name of their failure, should they break down."""


def prove(context: Context) -> Iterator[Check]:
    """Run every proof and yield what it finds; then the projections from all of that."""
    checks: list[Check] = []
    for name, proof in PROOFS.items():
        for check in complete(name, proof(context), partial(_explained, context)):
            checks.append(check)
            yield check
    yield from projections(checks)


def _explained(context: Context, name: str, error: Exception) -> Check:
    check = failure(name, error, REPORT)
    if isinstance(error, DataError):
        return replace(check, remedy=f"run `coreset verify {context.dataset.path}`")
    if (shortage := memory_shortage(error)) is not None:
        remedy = "end other programs on it, or use fewer --samples"
        return replace(check, value=shortage[0], remedy=remedy)
    return check
