"""What students read: images of the set and for validation, and labels of checked teachers."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.image_cache import keep_images
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.data.whole_images import WholeImages
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.evaluation.protocols.soft import SoftLabels as SoftProtocol
from coreset.engine.evaluation.soft_labels import KeptLabels, SoftLabels
from coreset.engine.evaluation.students import EVALUATION_BATCH, Images
from coreset.engine.models.teachers import Teacher, check_teachers, load_teachers
from coreset.engine.runtime.progress import say
from coreset.engine.runtime.text import readable_bytes
from coreset.kernels.augment import unit_range
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

CHECKED_PER_CLASS = 10
"""Validation images of each class on which teachers are checked."""


@dataclass(frozen=True)
class StudentInputs:
    """What the students of a condensed set have under a protocol, whatever network they are."""

    condensed: CondensedSet
    val: Dataset
    protocol: Protocol
    device: torch.device
    open_stream: Callable[[Dataset, Geometry, Ints | None], ImageStream]
    workers: int
    teachers: tuple[Teacher, ...]
    labels: Path | None
    """Folder of kept labels."""

    @property
    def n_images(self) -> int:
        """Images of the set."""
        return self.condensed.ids.size

    @property
    def n_val(self) -> int:
        """Validation images."""
        return len(self.val) if self.validation_ids is None else self.validation_ids.size

    @property
    def label_shape(self) -> tuple[int, int, int]:
        """Epochs, images, classes: shape of the labels of one student."""
        return self.protocol.epochs, self.n_images, self.protocol.n_classes

    @cached_property
    def protocol_digest(self) -> str:
        """Digest of all settings and of the teachers."""
        return self.protocol.digest([teacher.digest for teacher in self.teachers])

    @cached_property
    def validation_ids(self) -> Ints | None:
        """Validation images, ascending; None: all."""
        most = self.protocol.val_per_class
        return None if most is None else first_by_key(self.val, most)

    @cached_property
    def images(self) -> Images:
        """Open the images, decoded once where they fit, and check the teachers that label them."""
        protocol, condensed, labels = self.protocol, self.condensed, None
        geometry = Geometry(protocol.size, protocol.resize)
        if isinstance(protocol, SoftProtocol):
            labels = self._soft_labels(protocol, geometry)
            train = WholeImages(
                condensed.dataset, condensed.ids, size=protocol.size, device=self.device,
                workers=self.workers, shuffle_factor=protocol.shuffle, transform=protocol.transform,
            )  # fmt: skip
        else:
            with closing(self.open_stream(condensed.dataset, geometry, condensed.ids)) as chosen:
                train = load_into_memory(chosen)
        seen = self.open_stream(self.val, geometry, self.validation_ids)
        pixels = protocol.batch * protocol.size**2
        val = keep_images(seen, epochs=protocol.evaluations, batch_pixels=pixels)
        return Images(train, val, labels)

    def _soft_labels(self, protocol: SoftProtocol, geometry: Geometry) -> SoftLabels:
        some = first_by_key(self.val, CHECKED_PER_CLASS)
        with closing(self.open_stream(self.val, geometry, some)) as stream:
            examples = (
                (unit_range(batch.images), batch.labels.to(self.device))
                for batch in stream.epoch(BatchOrder(batch=EVALUATION_BATCH))
            )
            checked = check_teachers(self.teachers, examples, size=protocol.teacher_size)
        for one in checked:
            say(f"teacher {one.name}: top-1 {one.accuracy:.1f} % of {some.size} validation images")
        kept = None if self.labels is None else self._kept(self.labels)
        half = protocol.precision == "bfloat16"
        return SoftLabels(checked, self.device, protocol.teacher_size, half, kept)

    def _kept(self, folder: Path) -> KeptLabels:
        key = {
            "set": self.condensed.provenance.digest,
            "teachers": [teacher.digest for teacher in self.teachers],
            "protocol": self.protocol_digest,
        }
        kept = KeptLabels(folder, key, self.label_shape)
        kept.require_own()
        epochs, n, classes = self.label_shape
        what = f"{n:,} images x {epochs} epochs x {classes:,} classes x 2 bytes"
        say(f"labels kept in {folder}: {readable_bytes(kept.n_bytes)} a seed ({what})")
        return kept


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
