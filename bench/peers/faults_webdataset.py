"""Plain webdataset over a folder or shards; a program of ``coreset.bench.robustness``.

    python -m coreset.bench.peers.faults_webdataset write FOLDER SHARDS SAMPLES_PER_SHARD
    python -m coreset.bench.peers.faults_webdataset read FOUND TAR...
    python -m coreset.bench.peers.faults_webdataset crop FOUND SIZE RESIZE TAR...

``write`` is the usual loop over an image folder; ``read`` the usual loop over its samples, which
writes the pixels of each into FOUND; ``crop`` the same with torchvision's central crop. Nothing is
caught: what ends a training ends this.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coreset.bench.peers.found import Found


def write(src: Path, out: Path, samples_per_shard: int) -> None:
    """Write shards; labels are positions among the sorted folders, hidden ones included."""
    from webdataset.writer import ShardWriter

    folders = sorted(entry for entry in src.iterdir() if entry.is_dir())
    with ShardWriter(str(out / "shard-%06d.tar"), samples_per_shard, verbose=0) as sink:
        for label, folder in enumerate(folders):
            for path in sorted(folder.iterdir()):
                key = f"{folder.name}_{path.stem}"
                sink.write({"__key__": key, "jpg": path.read_bytes(), "cls": label})


def read(found: Found, tars: Sequence[str]) -> None:
    """Decode with the decoders that webdataset has for each extension."""
    from webdataset.compat import WebDataset

    dataset: Any = WebDataset(list(tars), shardshuffle=False).decode("rgb8")
    for key, image, label in dataset.to_tuple("__key__", "jpg;jpeg;png", "cls"):
        found.add(label, image, key=key)


def crop(found: Found, size: int, resize: int, tars: Sequence[str]) -> None:
    """Cut squares of ``size`` pixels from the middle, with a short side of ``resize`` pixels."""
    import numpy as np
    from torchvision.transforms import v2
    from webdataset.compat import WebDataset

    cut = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])
    dataset: Any = WebDataset(list(tars), shardshuffle=False).decode("pilrgb")
    for key, image, label in dataset.to_tuple("__key__", "jpg;jpeg;png", "cls"):
        found.add(label, np.asarray(cut(image)), key=key)


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "write":
        write(Path(words[0]), Path(words[1]), int(words[2]))
    elif verb == "crop":
        crop(Found(Path(words[0])), int(words[1]), int(words[2]), words[3:])
    else:
        read(Found(Path(words[0])), words[1:])
