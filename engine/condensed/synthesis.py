"""Making of a synthetic set: parts built by one process or several, found again, then packed.

Until it is packed, an image is a file ``.images/CLASS/SLOT.png`` in the scratch directory, and a
part whose files are all there is not built again.
"""

import io
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from coreset.engine.artifacts.ledger import Meter, Stopwatch
from coreset.engine.artifacts.pack_inputs import Account
from coreset.engine.artifacts.writer import ArtifactWriter
from coreset.engine.condensed.methods.base import Part, Pixels, Synthesis, Task
from coreset.engine.runtime.distributed import Distributed
from coreset.engine.runtime.progress import progress
from coreset.shards.errors import CoresetError, UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import write_atomically
from coreset.shards.packing.pack import list_path, pack
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.detect import find_folder

JPEG_QUALITY = 75
_CHECKPOINT_SECONDS = 10.0
_SAMPLES_PER_SHARD = 2000


def make_images(
    work: ArtifactWriter, task: Task, prepare: Callable[[Task], Synthesis], ranks: Distributed
) -> None:
    """Build, by all ranks, what is missing of a set, and pack it into the scratch directory."""
    folder, meter = work.scratch / ".images", work.meter
    if not ranks.run_on_main((work.scratch / MANIFEST_NAME).is_file):
        build = partial(_build_missing, task, prepare, folder, meter, ranks)
        try:
            ranks.run_on_all(build, patient=True)
        except CoresetError as error:
            # Only another configuration helps, or there is nothing to continue.
            if ranks.is_main and (isinstance(error, UsageError) or not folder.exists()):
                shutil.rmtree(work.scratch)
            raise
        for seconds, images in ranks.gather((task.seconds, meter.images))[1:]:
            meter.images += images
            for name, spent in seconds.items():
                task.seconds[name] = task.seconds.get(name, 0.0) + spent
    if ranks.is_main:
        meter.notes["ranks"] = ranks.world
        meter.notes["parts"] = {name: round(spent, 3) for name, spent in task.seconds.items()}
        packed = work.scratch / ".packed"
        if folder.is_dir():
            pack_folder(folder, work.scratch, task.dataset)
            folder.rename(packed)  # so that a kill leaves all of it or nothing
        shutil.rmtree(packed, ignore_errors=True)


def _build_missing(
    task: Task,
    prepare: Callable[[Task], Synthesis],
    folder: Path,
    meter: Meter,
    ranks: Distributed,
) -> None:
    synthesis = prepare(task)
    own = synthesis.parts[ranks.rank :: ranks.world]
    watch = Stopwatch()
    with progress("distill", sum(part.n_images for part in own)) as bar:
        for part in own:
            files = _files(folder, task.dataset, part, synthesis.extension)
            if all(path.is_file() for path in files):
                bar.resume(part.n_images)
                continue
            images = synthesis.build(part)
            with task.spend("images"):
                _write(files, images)
            bar.advance(part.n_images)
            if ranks.is_main and watch.seconds > _CHECKPOINT_SECONDS:
                meter.notes["parts"] = task.seconds
                meter.checkpoint(folder.parent)
                watch = Stopwatch()


def _files(folder: Path, dataset: Dataset, part: Part, extension: str) -> list[Path]:
    names = [dataset.classes[label] for label in part.labels]
    return [folder / name / f"{slot:05d}.{extension}" for name in names for slot in part.slots]


def _write(files: list[Path], images: Pixels) -> None:
    for path, image in zip(files, images.reshape(-1, *images.shape[2:]), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = io.BytesIO()
        kind = "JPEG" if path.suffix == ".jpg" else "PNG"
        Image.fromarray(image).save(stored, kind, quality=JPEG_QUALITY)
        write_atomically(path, stored.getvalue())


def pack_folder(folder: Path, out: Path, dataset: Dataset) -> None:
    """Pack a folder per class, whose classes are those of ``dataset``, into ``out``."""
    source = find_folder(folder, SourceOptions(only=dataset.classes))  # whatever they are called
    # The images count once, when they are read or built.
    pack_images(source, out, name=dataset.manifest.name, meter=Meter("distill", ""))


def pack_images(
    source: Source,
    out: Path,
    *,
    name: str,
    meter: Meter,
    workers: int = 1,
    listed: Path | None = None,
) -> None:
    """Pack the images of a set, whose bytes are kept, in the order of classes and slots."""
    plan = Plan(
        source=source,
        labels=source.labels,
        samples_per_shard=_SAMPLES_PER_SHARD,
        name=name,
        split="distilled",
        settings={"order": "source"},
    )
    with progress("pack", len(source)) as bar:
        account = Account(meter, bar, None)
        pack(plan, out, workers=workers, listed=listed or list_path(out), observer=account)
