"""Every proof, in the order of the table."""

from collections.abc import Iterator
from functools import partial

from coreset.engine.data.decoders.base import DecoderName
from coreset.engine.doctor.arithmetic import (
    AUGMENTATIONS,
    augmentation,
    host_reads,
    similarity,
    training_scores,
)
from coreset.engine.doctor.check import Context, DeviceCheck
from coreset.engine.doctor.decoding import (
    exactly_once,
    kept_pixels,
    normalised_batches,
    pixel_contract,
)
from coreset.engine.doctor.machine import Check
from coreset.engine.doctor.speeds import (
    COPY,
    DECODE,
    FAST_SIDES,
    FORWARD,
    TRAIN,
    copying,
    decoding,
    embedding,
    fast_step,
    fast_training,
    projections,
    training,
)

DECODERS = (DecoderName.DALI, DecoderName.TURBO)
PROOFS: tuple[DeviceCheck, ...] = (
    *(
        DeviceCheck(f"{what} of {decoder}", partial(proof, decoder=decoder))
        for decoder in DECODERS
        for what, proof in (("pixels", pixel_contract), ("normalised batches", normalised_batches))
    ),
    DeviceCheck("ids", exactly_once),
    DeviceCheck("kept pixels", kept_pixels),
    *(
        DeviceCheck(f"augmentation: {name}", partial(augmentation, name=name, augment=augment))
        for name, augment in AUGMENTATIONS.items()
    ),
    DeviceCheck("scores of a training", training_scores),
    DeviceCheck("host reads in a training batch", host_reads),
    DeviceCheck("FAISS", similarity),
    DeviceCheck(DECODE, decoding),
    DeviceCheck(COPY, copying),
    DeviceCheck(FORWARD, embedding),
    DeviceCheck(TRAIN, training),
    *(DeviceCheck(fast_step(side), partial(fast_training, side=side)) for side in FAST_SIDES),
)


def prove(context: Context) -> Iterator[Check]:
    """Run every proof and yield what it finds; then the projections from all of that.

    Raises:
        InterruptedRunError: A signal asked to stop.
    """
    found: list[Check] = []
    for proof in PROOFS:
        for check in proof.findings(context):
            found.append(check)
            yield check
    yield from projections(found)
