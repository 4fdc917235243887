"""From a whole data set to a teacher: images, training, and what is published."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.writer import ArtifactWriter
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.image_cache import keep_images
from coreset.engine.data.images import EpochSource
from coreset.engine.data.stream import ImageStream
from coreset.engine.evaluation.protocols.teach import Teach
from coreset.engine.evaluation.students import Images, Student
from coreset.engine.evaluation.training_progress import train_with_progress
from coreset.engine.models.networks import require_trainable
from coreset.engine.models.teachers import TEACHER_NAME, TeacherDocument
from coreset.engine.training.trainer import WEIGHTS_NAME, DivergedError
from coreset.shards.errors import MachineError, ManifestError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import (
    fsync_path,
    json_bytes,
    make_directory,
    remove_tree,
    write_atomically,
)

SCRATCH_NAME = ".training"
OpenStream: TypeAlias = Callable[[Dataset, Geometry], ImageStream]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachingJob:
    """Training of one network on a whole data set."""

    dataset: Dataset
    val: Dataset | None
    protocol: Teach
    arch: str
    seed: int
    device: torch.device
    open_stream: OpenStream

    def require_trainable(self) -> None:
        """Refuse a network that cannot train on the last batch of an epoch, the smallest."""
        protocol, n = self.protocol, len(self.dataset)
        last = n % protocol.batch or protocol.batch
        require_trainable(
            self.arch, protocol.n_classes, images=last, size=protocol.size, option="arch"
        )

    def make(self, work: ArtifactWriter) -> None:
        """Train, or go on with it, and write weights and document; checkpoints do not stay."""
        scratch = work.scratch / SCRATCH_NAME
        make_directory(scratch)
        if not (work.scratch / TEACHER_NAME).exists():  # or a kill has left only the rest to do
            try:
                self._train(work, scratch)
            except (DivergedError, MachineError, ManifestError) as error:
                # Another configuration may help, which is to find no interrupted run of this one.
                if isinstance(error, DivergedError) or Checkpoints(scratch).latest() is None:
                    shutil.rmtree(work.scratch)
                raise
        remove_tree(scratch)

    def _train(self, work: ArtifactWriter, scratch: Path) -> None:
        with ExitStack() as opened:
            student = self._student(scratch, opened)
            if student.note:
                work.meter.notes["note"] = student.note
            title = f"teach {self.arch}"
            history = train_with_progress(student, title, work.meter, scratch, paid=work.scratch)
        student.trainer.save_weights(work.scratch)
        fsync_path(work.scratch / WEIGHTS_NAME)
        document = TeacherDocument(
            arch=self.arch,
            classes=self.dataset.classes,
            accuracy=None if self.val is None else history.last.top1,
        )
        write_atomically(work.scratch / TEACHER_NAME, json_bytes(asdict(document)))

    def _student(self, scratch: Path, opened: ExitStack) -> Student:
        val = None if self.val is None else opened.enter_context(closing(self._seen(self.val)))
        images = Images(opened.enter_context(closing(self._kept(scratch))), val)
        return Student(images, self.protocol, self.arch, seed=self.seed, device=self.device)

    def _kept(self, scratch: Path) -> EpochSource:
        """Open the squares from which crops are taken, decoded once where they fit."""
        protocol = self.protocol
        stream = self.open_stream(self.dataset, Geometry(protocol.resize, protocol.resize))
        pixels = protocol.batch * protocol.size**2
        return keep_images(stream, epochs=protocol.epochs, batch_pixels=pixels, scratch=scratch)

    def _seen(self, val: Dataset) -> ImageStream:
        """Open the validation images, which are seen once."""
        return self.open_stream(val, Geometry(self.protocol.size, self.protocol.resize))
