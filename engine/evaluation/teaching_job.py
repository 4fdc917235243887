"""From a whole data set to a teacher: images, training, and what is published."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.writer import ArtifactWriter
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.image_cache import keep_images
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachingJob:
    """Training of one network on a whole data set."""

    dataset: Dataset
    val: Dataset | None
    protocol: Teach
    arch: str
    seed: int
    device: torch.device
    open_stream: Callable[[Dataset, Geometry], ImageStream]

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
            history = train_with_progress(
                student, f"teach {self.arch}", work.meter, scratch, paid=work.scratch
            )
        student.trainer.save_weights(work.scratch)
        fsync_path(work.scratch / WEIGHTS_NAME)
        document = TeacherDocument(
            arch=self.arch,
            classes=self.dataset.classes,
            accuracy=None if self.val is None else history.last.top1,
        )
        write_atomically(work.scratch / TEACHER_NAME, json_bytes(asdict(document)))

    def _student(self, scratch: Path, opened: ExitStack) -> Student:
        """Open squares from which crops are taken, and validation images, which are seen once."""
        protocol = self.protocol
        val = None
        if self.val is not None:
            stream = self.open_stream(self.val, Geometry(protocol.size, protocol.resize))
            val = opened.enter_context(closing(stream))
        squares = self.open_stream(self.dataset, Geometry(protocol.resize, protocol.resize))
        pixels = protocol.batch * protocol.size**2
        train = keep_images(squares, epochs=protocol.epochs, batch_pixels=pixels, scratch=scratch)
        images = Images(opened.enter_context(closing(train)), val)
        return Student(images, protocol, self.arch, seed=self.seed, device=self.device)
