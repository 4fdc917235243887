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
from coreset.engine.doctor.check import Proof, Subject
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
PROOFS: tuple[Proof, ...] = (
    *(
        Proof(f"{what} of {decoder}", partial(proof, decoder=decoder))
        for decoder in DECODERS
        for what, proof in (("pixels", pixel_contract), ("normalised batches", normalised_batches))
    ),
    Proof("ids", exactly_once),
    Proof("kept pixels", kept_pixels),
    *(
        Proof(f"augmentation: {name}", partial(augmentation, name=name, augment=augment))
        for name, augment in AUGMENTATIONS.items()
    ),
    Proof("scores of a training", training_scores),
    Proof("host reads in a training batch", host_reads),
    Proof("FAISS", similarity),
    Proof(DECODE, decoding),
    Proof(COPY, copying),
    Proof(FORWARD, embedding),
    Proof(TRAIN, training),
    *(Proof(fast_step(side), partial(fast_training, side=side)) for side in FAST_SIDES),
)


def prove(subject: Subject) -> Iterator[Check]:
    """Run every proof and yield what it finds; then the projections from all of that.

    Raises:
        InterruptedRunError: A signal asked to stop.
    """
    found: list[Check] = []
    for proof in PROOFS:
        for check in proof.findings(subject):
            found.append(check)
            yield check
    yield from projections(found)
