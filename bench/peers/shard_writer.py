"""``webdataset.ShardWriter`` in the usual loop: one file after the other, written in one process.

webdataset is a dependency of the project: nothing to install. Each shard is made durable when it is
closed, as ours are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import simplejpeg

from coreset.bench.inputs import QUALITY, SHORT_SIDE, Labelled
from coreset.shards.format.files import fsync_path
from coreset.shards.images.probe import probe

_FILES_PER_TASK = 50
Reencode = Callable[[Sequence[Path], int, int], list[bytes]]
"""Paths, short side, quality to JPEGs."""


def versions() -> dict[str, str]:
    """Return the version of webdataset."""
    return {"webdataset": version("webdataset")}


def no_check(_data: bytes) -> None:
    """Take the file as it is."""


def check_as_ours(data: bytes) -> None:
    """Check as ``coreset pack`` does: read every bit of the file."""
    probe(data)


def check_in_full(data: bytes) -> None:
    """Decode at full size as a user would, with recoverable damage as an error."""
    simplejpeg.decode_jpeg(data, "RGB", strict=True)


def write_files(
    files: Iterable[Labelled], out: Path, check: Callable[[bytes], None], samples_per_shard: int
) -> None:
    """Read, check and write every file."""
    write_samples(_checked(files, check), out, samples_per_shard)


def write_resized(
    pool: ProcessPoolExecutor,
    reencode: Reencode,
    files: Sequence[Labelled],
    out: Path,
    samples_per_shard: int,
) -> None:
    """Re-encode the files in processes, write what they send back in this one."""
    paths = [path for path, _ in files]
    tasks = [
        pool.submit(reencode, paths[at : at + _FILES_PER_TASK], SHORT_SIDE, QUALITY)
        for at in range(0, len(paths), _FILES_PER_TASK)
    ]
    images = (image for task in tasks for image in task.result())
    write_samples(zip(images, (label for _, label in files), strict=True), out, samples_per_shard)


def write_samples(samples: Iterable[tuple[bytes, int]], out: Path, samples_per_shard: int) -> None:
    """Write (image, label) pairs into durable shards in ``out``."""
    from webdataset.writer import ShardWriter

    pattern = str(out / "shard-%06d.tar")
    with ShardWriter(pattern, samples_per_shard, verbose=0, post=_make_durable) as sink:
        for position, (image, label) in enumerate(samples):
            sink.write({"__key__": f"{position:09d}", "jpg": image, "cls": label})
    fsync_path(out)


def _make_durable(shard: str) -> None:
    fsync_path(Path(shard))


def _checked(
    files: Iterable[Labelled], check: Callable[[bytes], None]
) -> Iterator[tuple[bytes, int]]:
    for path, label in files:
        data = path.read_bytes()
        check(data)
        yield data, label
