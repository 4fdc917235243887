"""DALI on a CPU reading faulty shards; a program of ``coreset.bench.robustness``.

    python -m coreset.bench.peers.faults_dali read FOUND TAR...

The usual pipeline: WebDataset reader without index files, image decoder with its defaults, batches
of four until the epoch that the reader announces is over. Nothing is caught.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from coreset.bench.peers.found import Found

BATCH = 4


def read(found: Found, tars: Sequence[str]) -> None:
    """Read images and labels, the bytes of the member ``cls``."""
    # By name: "DALI in one module" is about the product, and nobody imports this program.
    fn = import_module("nvidia.dali.fn")
    pipeline: Any = import_module("nvidia.dali.pipeline").Pipeline(
        batch_size=BATCH, num_threads=1, device_id=None
    )
    with pipeline:
        encoded, label = fn.readers.webdataset(
            paths=list(tars), ext=["jpg;jpeg;png", "cls"], name="reader"
        )
        pipeline.set_outputs(fn.decoders.image(encoded, device="cpu"), label)
    pipeline.build()
    left = pipeline.epoch_size("reader")
    while left > 0:
        images, labels = pipeline.run()
        for at in range(min(BATCH, left)):
            stored = bytes(labels.at(at))
            found.add(int(stored) if stored.strip().isdigit() else None, images.at(at))
        left -= BATCH


if __name__ == "__main__":
    read(Found(Path(sys.argv[2])), sys.argv[3:])
