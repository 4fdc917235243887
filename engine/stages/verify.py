"""``coreset verify``: check a packed data set, find images that occur twice, repair a shard."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.pack_inputs import Account, plan_again
from coreset.engine.artifacts.writer import lock, output_folder, require_output
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import DataPath, Result
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import new_directory
from coreset.shards.packing.pack import repair_shard, shard_number, thread_count
from coreset.shards.verify import duplicates, verify, write_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Compare every file of a packed data set with its manifest.

    By default every byte is read. Also tells of images that occur twice, and, with --against, of
    images that another data set has too, such as validation images among the training images.
    """

    data: DataPath
    """Packed data set."""
    fast: bool = False
    """Compare sizes and counts only; reads no shard."""
    deep: bool = False
    """Also decode every image and compare its content hash and its row."""
    repair: str = ""
    """Name or number of a damaged shard, to be built again from the source before the check."""
    src: Path | None = None
    """New path of the source, if it was moved after it was packed."""
    against: Path | None = None
    """Another packed data set, to look for the same images in it."""
    pairs: Path | None = None
    """CSV file to list the images in that occur twice."""
    workers: int = 0
    """Threads; 0 is one per core."""

    def __post_init__(self) -> None:
        if self.fast and self.deep:
            raise UsageError("fast and deep exclude each other; choose one")
        if self.src is not None and not self.repair:
            raise UsageError("src is used by --repair only; name the shard to build again")

    def run(self) -> Result:
        """Repair the named shard, check the data set, look for images that occur twice."""
        if self.pairs is not None:
            require_output(self.pairs)
        dataset = Dataset.open(self.data)
        manifest = dataset.manifest
        lines = [self._repair(dataset)] if self.repair else []
        with progress("verify", 0 if self.fast else manifest.n_samples) as bar:
            n_bytes = verify(
                dataset,
                fast=self.fast,
                deep=self.deep,
                workers=thread_count(self.workers),
                on_shard=lambda entry: bar.advance(entry.samples),
            )
        counts = f"{manifest.n_samples:,} samples in {len(manifest.shards):,} shards"
        note = "every byte read: add --deep to decode every image"
        if self.fast:
            note = "sizes and counts only: leave out --fast to read every byte"
        elif self.deep:
            note = "every image decodes"
        lines.append(f"{self.data} is whole: {counts}, {n_bytes:,} bytes read; {note}")
        if not self.fast:
            lines += self._duplicates(dataset)
        return Result(tuple(lines), {"data": str(self.data), "samples": manifest.n_samples})

    def _repair(self, dataset: Dataset) -> str:
        number = shard_number(dataset, self.repair)
        plan, _ = plan_again(self.data, self.src)
        scratch = self.data.with_name(f".{self.data.name}.repair.partial")
        with lock(self.data), progress("repair", len(plan.positions(number))) as bar:
            new_directory(scratch)
            try:
                observer = Account(Meter("verify", ""), bar, None)
                repair_shard(dataset, plan, number, scratch, observer=observer)
            finally:
                shutil.rmtree(scratch)
        return f"built again from {plan.source.place}: {dataset.manifest.shards[number].name}"

    def _duplicates(self, dataset: Dataset) -> Iterator[str]:
        reference = dataset if self.against is None else Dataset.open(self.against)
        pairs = duplicates(dataset, reference)
        first, second = pairs
        if first.size:
            classes, others = np.array(dataset.classes), np.array(reference.classes)
            differ = classes[dataset.labels[first]] != others[reference.labels[second]]
            where = f"of {reference.path} are in {dataset.path} too"
            yield (
                f"warning: {first.size:,} of {len(reference):,} images "
                f"{where if self.against else 'are copies'}, {differ.sum():,} under another label, "
                f"such as {dataset.keys[first[0]]} and {reference.keys[second[0]]}"
            )
        if self.pairs is not None:
            with output_folder(self.pairs):
                write_pairs(self.pairs, pairs, dataset, reference)
            yield f"listed: {first.size:,} pairs, {self.pairs}"
