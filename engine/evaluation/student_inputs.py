"""What students read: images of the set and for validation, and labels of checked teachers."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.image_cache import keep_images
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.order import first_by_key
from coreset.engine.data.stream import ImageStream
from coreset.engine.data.whole_images import WholeImages
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.evaluation.protocols.soft import SoftLabels as SoftProtocol
from coreset.engine.evaluation.soft_labels import KeptLabels, SoftLabels
from coreset.engine.evaluation.students import Images
from coreset.engine.models.teachers import Teacher, check_on_images, load_teachers
from coreset.engine.runtime.progress import say
from coreset.engine.runtime.text import readable_bytes
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset


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
        checked = check_on_images(
            self.teachers, self.val, self.open_stream, geometry, size=protocol.teacher_size
        )
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
