"""Labels of teachers: their mean logits, computed for each batch, and kept for other students.

A folder of kept labels holds, for each seed, ``seed-0.f16`` (float16 of shape (epochs, images,
classes), rows in the order of the epoch's batches) and ``seed-0.json`` (how many epochs it holds);
``labels.json`` says by which teachers, on what, under which protocol. Draws depend on the seed
alone, so that every student of that seed sees the images that were labelled.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.artifacts.writer import lock, output_folder
from coreset.engine.models.teachers import Teacher, mean_logits
from coreset.engine.runtime.device import half_precision
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.files import json_bytes, parse, write_atomically

KEY_NAME = "labels.json"
Rows: TypeAlias = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class KeptLabels:
    """Folder of kept labels of one set, by the same teachers, under one protocol."""

    folder: Path
    key: Mapping[str, Any]
    """What the labels depend on, but the seed."""
    shape: tuple[int, int, int]
    """Epochs, images, classes."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the labels of one seed."""
        return label_bytes(self.shape)

    def require_own(self) -> None:
        """Claim the folder, or refuse it if it holds labels of something else."""
        path = self.folder / KEY_NAME
        if not path.exists():
            with output_folder(path):
                write_atomically(path, json_bytes(dict(self.key)))
        found = _read(path)
        odd = [name for name in sorted(self.key) if found.get(name) != self.key[name]]
        if odd:
            raise UsageError(
                f"labels {self.folder} are of another {odd[0]} ({str(found.get(odd[0]))[:12]}, "
                f"here {str(self.key[odd[0]])[:12]}); choose another folder for --labels"
            )

    def epochs_of(self, seed: int) -> int:
        """Return of how many epochs the labels of a seed are there."""
        path = self.folder / f"seed-{seed}.json"
        done = _read(path).get("epochs") if path.exists() else 0
        file = self._file(seed)
        n_bytes = file.stat().st_size if file.exists() else 0
        if not isinstance(done, int) or (done and n_bytes != self.n_bytes):
            what = f"{file} has {n_bytes:,} bytes, {self.n_bytes:,} expected"
            raise StoreError(f"{what}; remove {path} and it, run again")
        return done

    def rows(self, seed: int, epoch: int, *, write: bool) -> Rows:
        """Map the labels of an epoch, float16 of shape (images, classes)."""
        file = self._file(seed)
        mode = "r" if not write else "r+" if file.exists() else "w+"
        return np.memmap(file, np.float16, mode=mode, shape=self.shape)[epoch]

    def count(self, seed: int, epochs: int) -> None:
        """Record that so many epochs are on the disk."""
        document = json_bytes({"seed": seed, "epochs": epochs})
        write_atomically(self.folder / f"seed-{seed}.json", document)

    def _file(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.f16"


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """Labels for the batches of an epoch."""

    teachers: Sequence[Teacher]
    device: torch.device
    size: int
    """Least side of what teachers see."""
    half: bool = False
    """Teachers run in bfloat16."""
    kept: KeptLabels | None = None

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """Return mean logits, float32 of shape (b, classes), of images (b, 3, s, s) in 0..1."""
        with half_precision(self.device, wanted=self.half):
            return mean_logits(self.teachers, images, size=self.size)

    @contextmanager
    def of_epoch(self, epoch: int, seed: int) -> Generator[Callable[[Tensor], Tensor]]:
        """Yield what labels the batches of an epoch one after another: kept rows, or teachers."""
        kept = self.kept
        if kept is None:
            yield self.of_images
            return
        done = kept.epochs_of(seed)
        if epoch < done:
            yield _in_order(kept.rows(seed, epoch, write=False), self._read)
        elif epoch > done:  # a student goes on whose labels were removed: the first are missing
            yield lambda images: self.of_images(images).half().float()
        else:
            with lock(kept.folder / f"seed-{seed}"):
                rows = kept.rows(seed, epoch, write=True)
                yield _in_order(rows, self._write)
                rows.flush()  # pyright: ignore[reportAttributeAccessIssue] - of a memory map
                kept.count(seed, epoch + 1)

    def _read(self, _images: Tensor, rows: Rows) -> Tensor:
        """Return stored labels, whatever the images."""
        return torch.from_numpy(rows.astype(np.float32)).to(self.device, non_blocking=True)

    def _write(self, images: Tensor, rows: Rows) -> Tensor:
        """Store what is returned, rounded to float16 for all students."""
        labels = self.of_images(images).half()
        rows[...] = labels.cpu().numpy()
        return labels.float()


def label_bytes(shape: tuple[int, int, int]) -> int:
    """Return the bytes of kept labels of (epochs, images, classes)."""
    return math.prod(shape) * np.dtype(np.float16).itemsize


def _in_order(rows: Rows, label: Callable[[Tensor, Rows], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a labeller of one batch after another, each with the rows that come next."""
    done = 0

    def label_next(images: Tensor) -> Tensor:
        nonlocal done
        done += len(images)
        return label(images, rows[done - len(images) : done])

    return label_next


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); remove it, run again") from error
