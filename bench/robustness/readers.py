"""Programs that others would write, on faulty data; each run is a process of its own.

    python -m coreset.bench.robustness.readers webdataset-write FOLDER SHARDS SAMPLES_PER_SHARD
    python -m coreset.bench.robustness.readers webdataset FOUND TAR...
    python -m coreset.bench.robustness.readers dali FOUND TAR...

Nothing is caught: what ends a training ends the program. Samples are written into FOUND one by one,
so that a crash leaves what came before it.
"""

import json
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

LIST_NAME = "samples.jsonl"
_KEPT_BYTES = 1 << 24
_DALI_BATCH = 4


@dataclass(frozen=True, slots=True)
class Found:
    """Folder with ``samples.jsonl`` and an array of pixels per sample."""

    folder: Path

    def add(self, label: object, image: Any, *, key: str = "") -> None:  # noqa: ANN401 - whatever a reader gives
        """Write one sample: its label, its pixels if it has any, its key if the reader knows it."""
        self.folder.mkdir(exist_ok=True)
        row: dict[str, Any] = {"label": label if isinstance(label, int) else None, "key": key}
        with (self.folder / LIST_NAME).open("a") as file:
            if image is not None:
                row["shape"] = list(image.shape)
                if image.nbytes <= _KEPT_BYTES:
                    row["pixels"] = f"{file.tell():09d}.npy"
                    np.save(self.folder / row["pixels"], image)
            file.write(json.dumps(row) + "\n")


def write_shards(src: str, out: str, samples_per_shard: str) -> None:
    """Write shards in the usual loop; labels are positions among the sorted folders."""
    from webdataset.writer import ShardWriter

    folders = sorted(entry for entry in Path(src).iterdir() if entry.is_dir())
    with ShardWriter(f"{out}/shard-%06d.tar", int(samples_per_shard), verbose=0) as sink:
        for label, folder in enumerate(folders):
            for path in sorted(folder.iterdir()):
                key = f"{folder.name}_{path.stem}"
                sink.write({"__key__": key, "jpg": path.read_bytes(), "cls": label})


def read_with_webdataset(folder: str, *tars: str) -> None:
    """Decode with the decoders that webdataset has for each extension."""
    from webdataset.compat import WebDataset

    dataset: Any = WebDataset(list(tars), shardshuffle=False).decode("rgb8")
    for key, image, label in dataset.to_tuple("__key__", "jpg;jpeg;png", "cls"):
        Found(Path(folder)).add(label, image, key=key)


def read_with_dali(folder: str, *tars: str) -> None:
    """Read shards without index files and decode on the CPU, in batches of four."""
    # By name: "DALI in one module" is about the product, and nobody imports this program.
    fn = import_module("nvidia.dali.fn")
    pipeline: Any = import_module("nvidia.dali.pipeline").Pipeline(
        batch_size=_DALI_BATCH, num_threads=1, device_id=None
    )
    with pipeline:
        encoded, label = fn.readers.webdataset(
            paths=list(tars), ext=["jpg;jpeg;png", "cls"], name="reader"
        )
        pipeline.set_outputs(fn.decoders.image(encoded, device="cpu"), label)
    pipeline.build()
    for left in range(pipeline.epoch_size("reader"), 0, -_DALI_BATCH):
        images, labels = pipeline.run()
        for at in range(min(_DALI_BATCH, left)):
            stored = bytes(labels.at(at))
            known = int(stored) if stored.strip().isdigit() else None
            Found(Path(folder)).add(known, images.at(at))


PROGRAMS = {
    "webdataset-write": write_shards,
    "webdataset": read_with_webdataset,
    "dali": read_with_dali,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
