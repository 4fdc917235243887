"""``loader`` over a packed data set; a program of ``coreset.bench.robustness``.

    python -m coreset.bench.robustness.loading FOUND SIZE RESIZE EPOCHS DATA

The samples of the last epoch are written into FOUND, and those that were left out are printed.
"""

import sys
from pathlib import Path

import coreset
from coreset.bench.peers.found import Found
from coreset.shards.format.dataset import Dataset


def load(found: Found, size: int, resize: int, epochs: int, data: str) -> None:
    """Iterate over some epochs in one thread."""
    keys = Dataset.open(Path(data)).keys
    with coreset.loader(data, batch=4, size=size, resize=resize, device="cpu", workers=1) as loader:
        for _ in range(epochs - 1):
            for _ in loader:
                pass
        for batch in loader:
            images = batch.images.permute(0, 2, 3, 1).numpy()
            for image, label, sample in zip(images, batch.labels, batch.ids, strict=True):
                found.add(int(label), image, key=keys[sample])
        for sample, reason in loader.undecodable.items():
            print(f"left out: {keys[sample]} ({reason})")


if __name__ == "__main__":
    size, resize, epochs = (int(word) for word in sys.argv[2:5])
    load(Found(Path(sys.argv[1])), size, resize, epochs, sys.argv[5])
