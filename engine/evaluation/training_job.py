"""From a condensed set to rows of results: images, teachers, students, and what each came to."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from coreset.engine.artifacts.ledger import Meter, peak_rss_bytes
from coreset.engine.artifacts.provenance import versions
from coreset.engine.artifacts.writer import lock
from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.image_cache import keep_images
from coreset.engine.data.images import EpochSource, load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.data.whole_images import WholeImages
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.evaluation.protocols.soft import SoftLabels as SoftProtocol
from coreset.engine.evaluation.result_tables import CURVES, PER_CLASS, STUDENTS
from coreset.engine.evaluation.results import Results, Row
from coreset.engine.evaluation.soft_labels import KeptLabels, SoftLabels
from coreset.engine.evaluation.students import EVALUATION_BATCH, History, Images, Student
from coreset.engine.evaluation.training_progress import train_with_progress
from coreset.engine.models.networks import require_trainable
from coreset.engine.models.teachers import Teacher, check_teachers, load_teachers
from coreset.engine.runtime.device import deterministic_kernels, runtime_of
from coreset.engine.runtime.progress import say
from coreset.engine.runtime.text import readable_bytes
from coreset.engine.training.trainer import CompileMode
from coreset.kernels.augment import unit_range
from coreset.shards.errors import InterruptedRunError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of, make_directory, remove_tree

SCRATCH_NAME = ".students"
CHECKED_PER_CLASS = 10
"""Validation images of each class on which teachers are checked."""
COLUMNS = ("epochs", "evaluations", "size", "batch", "precision")
OpenStream: TypeAlias = Callable[[Dataset, Geometry, Ints | None], ImageStream]


@dataclass(frozen=True)
class TrainingJob:
    """Students of one network on one condensed set under one protocol, which differ by seed."""

    condensed: CondensedSet
    val: Dataset
    results: Results
    protocol: Protocol
    student: str
    device: torch.device
    open_stream: OpenStream
    workers: int = 0
    teachers: tuple[Teacher, ...] = ()
    labels: Path | None = None
    """Folder of kept labels."""
    compile_mode: CompileMode = "auto"
    deterministic: bool = False

    def key(self, seed: int) -> str:
        """Digest everything that goes into a student."""
        manifest = self.val.manifest
        inputs = {
            "set": self.condensed.provenance.digest,
            "val": [manifest.identity, manifest.content],
        }
        own = {"protocol": self.protocol_digest, "student": self.student, "seed": seed}
        return digest_of(inputs | own)

    @cached_property
    def protocol_digest(self) -> str:
        """Digest of all settings and of the teachers."""
        return self.protocol.digest([teacher.digest for teacher in self.teachers])

    @cached_property
    def validation_ids(self) -> Ints | None:
        """Validation images, ascending; None: all."""
        most = self.protocol.val_per_class
        return None if most is None else first_by_key(self.val, most)

    def require_trainable(self) -> None:
        """Refuse a student that cannot train on the last batch of an epoch, the smallest."""
        n, protocol = len(self.condensed.ids), self.protocol
        last = n % protocol.batch or protocol.batch
        require_trainable(self.student, protocol.n_classes, images=last, size=protocol.size)

    def open(self) -> None:
        """Open images and teachers, and record where the set comes from."""
        _ = self.images
        self.results.record_lineage(self.condensed)

    @cached_property
    def images(self) -> Images:
        """Open the images, decoded once where they fit, and check the teachers that label them."""
        protocol, condensed = self.protocol, self.condensed
        geometry = Geometry(protocol.size, protocol.resize)
        if isinstance(protocol, SoftProtocol):
            labels = self._soft_labels(protocol, geometry)
            train = WholeImages(
                condensed.dataset, condensed.ids, size=protocol.size, device=self.device,
                workers=self.workers, shuffle_factor=protocol.shuffle, transform=protocol.transform,
            )  # fmt: skip
            return Images(train, self._validation_images(geometry), labels)
        with closing(self.open_stream(condensed.dataset, geometry, condensed.ids)) as chosen:
            train = load_into_memory(chosen)
        return Images(train, self._validation_images(geometry))

    def _validation_images(self, geometry: Geometry) -> EpochSource:
        stream = self.open_stream(self.val, geometry, self.validation_ids)
        pixels = self.protocol.batch * self.protocol.size**2
        return keep_images(stream, epochs=self.protocol.evaluations, batch_pixels=pixels)

    def _soft_labels(self, protocol: SoftProtocol, geometry: Geometry) -> SoftLabels:
        labels = SoftLabels(
            self.teachers, self.device, protocol.teacher_size, protocol.precision == "bfloat16"
        )
        if self.labels is not None:
            labels = replace(labels, kept=self._kept(protocol, self.labels))
        some = first_by_key(self.val, CHECKED_PER_CLASS)
        with closing(self.open_stream(self.val, geometry, some)) as stream:
            examples = (
                (unit_range(batch.images), batch.labels.to(self.device), batch.ids)
                for batch in stream.epoch(BatchOrder(batch=EVALUATION_BATCH))
            )
            checked = check_teachers(self.teachers, examples, size=protocol.teacher_size)
        for one in checked:
            say(f"teacher {one.name}: top-1 {one.accuracy:.1f} % of {some.size} validation images")
        return replace(labels, teachers=checked)

    def _kept(self, protocol: SoftProtocol, folder: Path) -> KeptLabels:
        shape = protocol.epochs, len(self.condensed.ids), protocol.n_classes
        key = {
            "set": self.condensed.provenance.digest,
            "teachers": [teacher.digest for teacher in self.teachers],
            "protocol": self.protocol_digest,
        }
        kept = KeptLabels(folder, key, shape)
        kept.require_own()
        what = f"{shape[1]:,} images x {shape[0]} epochs x {shape[2]:,} classes x 2 bytes"
        say(f"labels kept in {folder}: {readable_bytes(kept.n_bytes)} a seed ({what})")
        return kept

    def train(self, seed: int) -> str:
        """Train the student of a seed, or go on with it, and append its row; return a note."""
        key = self.key(seed)
        scratch = self.results.path / SCRATCH_NAME / key[:24]
        make_directory(scratch.parent)
        meter = Meter("train", key, str(self.device))
        with lock(scratch), deterministic_kernels(self.device, wanted=self.deterministic):
            make_directory(scratch)
            student = self._student(seed)
            try:
                title = f"train {self.condensed.path.resolve().name}, seed {seed}"
                history = train_with_progress(student, title, meter, scratch)
            except InterruptedRunError:
                self.results.append(STUDENTS, [], [meter.line(interrupted=True)])
                raise
            for table, rows in _tables(key, history, self.val.classes).items():
                self.results.append(table, rows, [])
            row = self._row(key, seed, history)
            self.results.append(STUDENTS, [row], [meter.line()])
            remove_tree(scratch)
        return student.note

    def _student(self, seed: int) -> Student:
        return Student(
            self.images, self.protocol, self.student,
            seed=seed, device=self.device, compile_mode=self.compile_mode,
        )  # fmt: skip

    def _row(self, key: str, seed: int, history: History) -> Row:
        """Make the row of a student."""
        condensed, protocol = self.condensed, self.protocol
        names = [(teacher.name, teacher.digest) for teacher in self.teachers]
        n_val = len(self.val) if self.validation_ids is None else self.validation_ids.size
        n_labels = KeptLabels(Path(), {}, (protocol.epochs, len(condensed.ids), protocol.n_classes))
        return {
            **self.results.input_columns(condensed, self.val),
            **{name: getattr(protocol, name) for name in COLUMNS},
            "n_val": n_val,
            "key": key,
            "protocol": protocol.stamp,
            "protocol_digest": self.protocol_digest,
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
            "image_bytes": condensed.image_bytes,
            "label_bytes": 0 if self.labels is None else n_labels.n_bytes,
            "device": str(self.device),
            "runtime": json.dumps(
                {**runtime_of(self.device), "precision": protocol.precision, "versions": versions()}
            ),
        }


def open_teachers(
    specs: tuple[str, ...], protocol: Protocol, classes: tuple[str, ...], device: torch.device
) -> tuple[tuple[Teacher, ...], Protocol]:
    """Load the teachers of a protocol, which is stamped if their architectures are others."""
    if not isinstance(protocol, SoftProtocol):
        if specs:
            raise UsageError(f"protocol {protocol.stamp} has no teachers; leave out --teachers")
        return (), protocol
    if not specs:
        wanted = " ".join(protocol.teachers)
        raise UsageError(
            f"protocol {protocol.stamp} needs teachers; name them with --teachers ({wanted}), as "
            "NAME=FILE or as a folder of `coreset teach`"
        )
    teachers = load_teachers(specs, classes, device)
    names = tuple(teacher.name for teacher in teachers)
    if sorted(names) != sorted(protocol.teachers):
        protocol = protocol.changed("teachers", teachers=names)
    return teachers, protocol


def first_by_key(dataset: Dataset, most: int) -> Ints:
    """Return ids of the first samples of each class in the order of their keys, ascending."""
    keys = np.array(dataset.table(["key"])["key"].to_pylist())
    order = np.lexsort((keys, dataset.labels))
    labels = dataset.labels[order]
    rank = np.arange(order.size) - np.searchsorted(labels, labels)
    return np.sort(order[rank < most])


def _tables(key: str, history: History, classes: tuple[str, ...]) -> Mapping[str, list[Row]]:
    """Return the rows of a student in the tables beside ``students``, which come before its own."""
    curve = [
        {"key": key, "epoch": at.epoch, "loss": at.loss, "top1": at.top1, "lr": at.lr}
        for at in history.curve
    ]
    return {CURVES: curve, PER_CLASS: list(_class_rows(key, history, classes))}


def _class_rows(key: str, history: History, classes: tuple[str, ...]) -> Iterator[Row]:
    for name, (right, n) in zip(classes, history.best.by_class, strict=True):
        yield {"key": key, "class": name, "top1": 100 * right / n if n else None, "n": n}
