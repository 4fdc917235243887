"""Program for child processes, which damaged JPEGs may end: decode data sets by every fast way.

``python decode_damaged.py TIMES SIZE FOLDER...`` decodes the images of each data set, all of
``SIZE`` pixels a side, so many times by both kernels, then once by a loader.
"""

import sys
from pathlib import Path

import numpy as np

import coreset
from coreset.engine.data import stream as source
from coreset.engine.data.decoders.base import EncodedBatch
from coreset.engine.data.decoders.batched import crop_batch
from coreset.engine.data.decoders.regions import decode_region
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.kernels.jpeg.batch import factors_of
from coreset.shards.format.dataset import Dataset


def decode_by_kernels(files: list[bytes], side: int) -> None:
    for data in files:
        decode_region(data, (side // 4, side // 4, side // 2, side // 2))
    sides = np.full(len(files), side)
    for size in (side, side // 2 + 1):
        n_decoded = []
        for floats in (False, True):
            squares = crop_batch(EncodedBatch(files, sides, sides), Geometry(size, side))
            assert squares is not None
            shape = (3, size, size) if floats else (size, size, 3)
            images = np.empty((len(files), *shape), np.float32 if floats else np.uint8)
            factors = factors_of((0.5,) * 3, (0.5,) * 3) if floats else None
            squares.run(images, factors, coarse=floats)
            n_decoded.append(len(files) - len(squares.left()))
        assert n_decoded[0] == n_decoded[1]


def main(times: int, side: int, folders: list[str]) -> None:
    source.MOST_LEFT_OUT = sys.maxsize  # more damaged images than a loader takes for chance
    for folder in folders:
        dataset = Dataset.open(Path(folder))
        with ShardReader(dataset) as reader:
            files = list(reader.fetch(np.arange(len(dataset))))
        for _ in range(times):
            decode_by_kernels(files, side)
        with coreset.loader(folder, batch=32, size=side, resize=side, workers=2) as loader:
            for _ in loader:
                pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
