"""Students of one network, seed by seed: which were trained, which go on, and their rows."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from coreset.engine.artifacts.ledger import Meter, peak_rss_bytes
from coreset.engine.artifacts.provenance import versions
from coreset.engine.artifacts.writer import lock
from coreset.engine.evaluation.history import History
from coreset.engine.evaluation.result_tables import STUDENTS
from coreset.engine.evaluation.results import Results, Row
from coreset.engine.evaluation.soft_labels import label_bytes
from coreset.engine.evaluation.student_inputs import StudentInputs
from coreset.engine.evaluation.students import Student
from coreset.engine.evaluation.training_progress import train_with_progress
from coreset.engine.models.networks import require_trainable
from coreset.engine.runtime.device import deterministic_kernels, runtime_of
from coreset.engine.training.compilation import CompileMode
from coreset.shards.errors import InterruptedRunError
from coreset.shards.format.files import digest_of, make_directory, remove_tree

SCRATCH_NAME = ".students"
COLUMNS = ("epochs", "evaluations", "size", "batch", "precision")


@dataclass(frozen=True)
class TrainingJob:
    """Students of one network on one condensed set under one protocol, which differ by seed."""

    inputs: StudentInputs
    results: Results
    student: str
    compile_mode: CompileMode
    deterministic: bool

    def key(self, seed: int) -> str:
        """Digest everything that goes into a student."""
        manifest = self.inputs.val.manifest
        return digest_of(
            {
                "set": self.inputs.condensed.provenance.digest,
                "val": [manifest.identity, manifest.content],
                "protocol": self.inputs.protocol_digest,
                "student": self.student,
                "seed": seed,
            }
        )

    def open(self) -> None:
        """Open images and teachers, and record where the set comes from, or refuse the student."""
        protocol, n = self.inputs.protocol, self.inputs.n_images
        smallest = n % protocol.batch or protocol.batch
        require_trainable(self.student, protocol.n_classes, images=smallest, size=protocol.size)
        _ = self.inputs.images
        self.results.record_lineage(self.inputs.condensed)

    def train(self, seed: int) -> str:
        """Train the student of a seed, or go on with it, and append its row; return a note."""
        key, device = self.key(seed), self.inputs.device
        scratch = self.results.path / SCRATCH_NAME / key[:24]
        make_directory(scratch.parent)
        meter = Meter("train", key, str(device))
        with lock(scratch), deterministic_kernels(device, wanted=self.deterministic):
            make_directory(scratch)
            student = Student(
                self.inputs.images, self.inputs.protocol, self.student,
                seed=seed, device=device, compile_mode=self.compile_mode,
            )  # fmt: skip
            title = f"train {self.inputs.condensed.path.resolve().name}, seed {seed}"
            try:
                history = train_with_progress(student, title, meter, scratch)
            except InterruptedRunError:
                self.results.append(STUDENTS, [], [meter.line(interrupted=True)])
                raise
            self.results.append_student(
                self._row(key, seed, history),
                curve=[asdict(epoch) for epoch in history.curve],
                per_class=_class_rows(history, self.inputs.val.classes),
                ledger=[meter.line()],
            )
            remove_tree(scratch)
        with suppress(OSError):  # checkpoints of others are there
            scratch.parent.rmdir()
        return student.note

    def _row(self, key: str, seed: int, history: History) -> Row:
        inputs, protocol = self.inputs, self.inputs.protocol
        how = {"precision": protocol.precision, "versions": versions()}
        names = [(teacher.name, teacher.digest) for teacher in inputs.teachers]
        return {
            **self.results.input_columns(inputs.condensed, inputs.val),
            **{name: getattr(protocol, name) for name in COLUMNS},
            "n_val": inputs.n_val,
            "key": key,
            "protocol": protocol.stamp,
            "protocol_digest": inputs.protocol_digest,
            "teachers": json.dumps(names) if names else None,
            "student": self.student,
            "seed": seed,
            "top1_best": history.best.top1,
            "top5_best": history.best.top5,
            "epoch_best": history.epoch_best,
            "top1_last": history.last.top1,
            "top5_last": history.last.top5,
            "steps": history.steps,
            "train_seconds": history.train_seconds,
            "evaluation_seconds": history.evaluation_seconds,
            "peak_rss_bytes": peak_rss_bytes(),
            "image_bytes": inputs.condensed.image_bytes,
            "label_bytes": 0 if inputs.labels is None else label_bytes(inputs.label_shape),
            "device": str(inputs.device),
            "runtime": json.dumps(runtime_of(inputs.device) | how),
        }


def _class_rows(history: History, classes: tuple[str, ...]) -> Iterator[Row]:
    for name, (right, n) in zip(classes, history.best.by_class, strict=True):
        yield {"class": name, "top1": 100 * right / n if n else None, "n": n}
