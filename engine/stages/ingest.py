"""``coreset ingest``: take in a condensed set that others made, as images or as a list."""

import hashlib
import re
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from coreset.engine.artifacts.pack_inputs import spool_of
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact, lock, require_output
from coreset.engine.condensed.condensed_set import SetInfo, write_set
from coreset.engine.condensed.imported import (
    ImportOptions,
    find_images,
    images_digest,
    notes_on,
    set_origin,
)
from coreset.engine.condensed.importers import own_spool, read_ids, unequal_classes
from coreset.engine.runtime.fields import require_at_least, require_between
from coreset.engine.stages.options import Decoding, Flat, Result, SetPath, SourcePath
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import class_list, recognise
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import missing, sha256_of_file
from coreset.shards.layouts import FOLDERS, LAYOUTS, PARQUET, TENSORS, LaidSet
from coreset.shards.packing.pack import list_path, thread_count
from coreset.shards.sources.parquet import is_parquet

_METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_LAYOUTS = (*LAYOUTS, FOLDERS, PARQUET, TENSORS)
_OF_IMAGES = ("classes", "order", "replica", "ipc", "teacher", "address", "licence")
DEFAULT = Decoding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Take in a condensed set that others made: images of any released layout, or a list.

    SRC is a folder, tar or parquet file of images, whose classes and slots its paths tell; their
    bytes are kept. Or a list of samples of --data: a .npy array of ids, a table (.csv, .tsv, .json,
    .parquet), or a text file of one sample a line. A sample is named by id, sample key, source
    path, a longer path that ends in one, or a file name that only one has; in a table, by the
    column path, key or id, or the only one that names samples. For example:

    coreset ingest FADRM_PLUS SET --classes imagenette --method fadrm+
    """

    src: SourcePath
    """The images, or the list; ids are those of --data and of no other packing of its images."""
    condensed: SetPath
    """Directory to make, as `coreset select` and `coreset distill` make it."""
    data: Path | None = None
    """Packed data set: of a list, what it is of; of images, what they condense."""
    method: str | None = None
    """Name in tables; default: listed, or what the layout tells."""
    seed: int = 0
    """Seed that the set was made with, for the tables."""
    layout: Annotated[
        str | None,
        tyro.conf.arg(
            metavar=f"{{{','.join(_LAYOUTS)}}}",
            help="Layout of images; default: recognised. "
            + " ".join(f"{name}: {one.path}." for name, one in LAYOUTS.items())
            + f" {FOLDERS}: a folder per class. {PARQUET}: as on the Hugging Face Hub. {TENSORS}: "
            "a .pt file of images and labels, only if named.",
        ),
    ] = None
    classes: str = ""
    """Classes to take, and what numbers of classes stand for: imagenet1k, imagenet100, imagenette,
    or a file that lists them. Default: those of --data; else folders numbered to 1,000, 100 or 10
    are those of ImageNet-1K, ImageNet-100 or ImageNette. A part of a larger set is marked."""
    order: Literal["sorted", "cmc", "text"] = "sorted"
    """Order in which classes are numbered: by WordNet id; as the list of CMC for ImageNet-100; or
    as loaders that sort the names of folders as texts: 0, 1, 10, 100 ..., 2, 20."""
    replica: str = ""
    """Folder of the set to take, where SRC holds several: dataset_1, or one by its IPC."""
    ipc: int | None = None
    """First images of each class to take; default: all."""
    teacher: str | None = None
    """Classifier to check the order of classes with: NAME=FILE, or a folder of `coreset teach`."""
    address: str = ""
    """Where the set was found, for the record."""
    licence: str = ""
    """Its licence, for the record."""
    allow_short: bool = False
    """Take a set with more images of some classes than of others; its IPC is the largest."""
    decoding: Flat[Decoding] = DEFAULT

    def __post_init__(self) -> None:
        require_between("seed", self.seed, 0, 2**63)
        thread_count(self.decoding.workers)
        if self.ipc is not None:
            require_at_least("ipc", self.ipc, 1)
        if self.layout is not None and self.layout not in _LAYOUTS:
            raise UsageError(f"layout must be one of {', '.join(_LAYOUTS)}, got {self.layout}")
        if self.method is not None and not _METHOD.fullmatch(self.method):
            raise UsageError(
                f"method must be letters, digits and . + _ -, got {self.method!a}; name it shortly"
            )

    def run(self) -> Result:
        """Find the images or samples, check the counts of the classes, publish the set."""
        if not self.src.exists():
            raise missing(self.src, "name a folder, tar or parquet file of images, or a list")
        is_tar = self.src.suffix == ".tar"
        if self.layout or self.src.is_dir() or is_tar or is_parquet(self.src):
            require_output(self.condensed)
            spool, writes = spool_of(self.condensed), self.layout == TENSORS
            held = lock(spool) if writes and not self.condensed.exists() else nullcontext()
            with held, own_spool(self.src, spool):
                return self._images(spool)
        if self.data is None:
            raise UsageError(
                f"{self.src} is a list of samples, or compressed; name their data set with --data, "
                "or unpack it"
            )
        return self._listed(Dataset.open(self.data))

    def _listed(self, dataset: Dataset) -> Result:
        of_images = [field for field in fields(self) if field.name in _OF_IMAGES]
        if told := [
            field.name for field in of_images if getattr(self, field.name) != field.default
        ]:
            raise UsageError(f"a list of samples takes no --{told[0]}; leave it out")
        ids, method = read_ids(self.src, dataset), self.method or "listed"
        digest = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:12]
        sizes = np.bincount(dataset.labels[ids], minlength=len(dataset.classes))
        parameters: dict[str, Any] = {"ipc": int(sizes.max())}
        if sizes.min() < sizes.max():
            if not self.allow_short:
                raise unequal_classes(self.src, dataset.classes, sizes)
            parameters |= {"allow_short": True}
        parameters |= {"ids": digest}
        # The ids and not the name of the list: the same samples make the same set.
        config = {"method": method, "seed": self.seed, "ids": digest}
        provenance = self._provenance(config)
        with create_artifact(self.condensed, provenance, inputs=self._inputs) as work:
            if not work.done:
                write_set(work, dataset, ids, method=method, parameters=parameters, seed=self.seed)
                work.meter.images = ids.size
        return self._result(work, f"{ids.size:,} of {len(dataset):,} images", [])

    def _images(self, spool: Path) -> Result:
        dataset = None if self.data is None else Dataset.open(self.data)
        options = ImportOptions(
            classes=self._classes(dataset), src=self._as_folder(spool), order=self.order,
            layout="rded" if self.layout == TENSORS else self.layout, replica=self.replica,
            ipc=self.ipc, allow_short=self.allow_short,
        )  # fmt: skip
        laid = find_images(options, spool)
        if self.layout == TENSORS:
            laid = replace(laid, layout=TENSORS)
        known = LAYOUTS.get(laid.layout)
        method = self.method or ("imported" if known is None else known.method)
        told = {"method": method, "address": self.address, "licence": self.licence}
        if self.src.is_file():
            told["archive_sha256"] = sha256_of_file(self.src)
        origin = set_origin(laid, told)
        sizes = np.bincount(laid.source.labels)
        config = {"seed": self.seed, "images": images_digest(laid.source), **origin}
        notes = [f"layout {laid.layout}", *laid.source.skipped]
        with create_artifact(self.condensed, self._provenance(config), inputs=self._inputs) as work:
            if not work.done:
                notes += self._make(work, laid, dataset, origin, int(sizes.max()))
        n, n_classes = len(laid.source), len(laid.source.classes)
        return self._result(work, f"{n:,} images of {n_classes:,} classes", notes)

    def _make(
        self,
        work: ArtifactWriter,
        laid: LaidSet,
        dataset: Dataset | None,
        origin: dict[str, Any],
        ipc: int,
    ) -> list[str]:
        from coreset.engine.condensed.synthesis import pack_images

        name = recognise(laid.source.classes) or self.src.stem
        pack_images(
            laid.source,
            work.scratch,
            name=name if dataset is None else dataset.manifest.name,
            meter=work.meter,
            workers=thread_count(self.decoding.workers),
            listed=list_path(self.condensed),
        )
        images = Dataset.open(work.scratch)
        notes = [*notes_on(images), *self._checked_order(images, laid)]
        told_apart = ("replica", "slots", "derived_from")
        parameters = {"ipc": ipc, **{n: origin[n] for n in told_apart if n in origin}}
        write_set(
            work, dataset or images, None, method=origin["method"], parameters=parameters,
            seed=self.seed, origin=origin,
        )  # fmt: skip
        return notes

    def _checked_order(self, images: Dataset, laid: LaidSet) -> list[str]:
        if self.teacher is None:
            return []
        from coreset.engine.condensed.class_order import checked_order

        note = checked_order(
            self.teacher, images, laid, order=self.order, open_stream=self.decoding.stream,
            device=self.decoding.resolved_device(),
        )  # fmt: skip
        return [note]

    def _as_folder(self, spool: Path) -> Path:
        if self.layout != TENSORS:
            return self.src
        from coreset.engine.condensed.tensor_sets import write_tensor_images

        write_tensor_images(self.src, spool)
        return spool

    def _classes(self, dataset: Dataset | None) -> tuple[str, ...]:
        named = class_list(self.classes) if self.classes else ()
        if dataset is None:
            return named
        if named and named != dataset.classes:
            raise UsageError(
                f"--classes {self.classes} are not those of {dataset.path} in their order; leave "
                "out --classes or --data"
            )
        return dataset.classes

    @property
    def _inputs(self) -> list[Path]:
        return [] if self.data is None else [self.data]

    def _provenance(self, config: dict[str, Any]) -> Provenance:
        inputs = {} if self.data is None else {"data": self.data}
        recorded = Provenance.inputs_of(self.condensed, inputs)
        return Provenance(kind="set", stage="ingest", config=config, inputs=recorded)

    def _result(self, work: ArtifactWriter, what: str, notes: list[str]) -> Result:
        info, how = SetInfo.read(self.condensed), "are there already" if work.done else "taken"
        fewest = min(info.per_class)
        each = str(info.ipc) if fewest == info.ipc else f"{fewest} to {info.ipc}"
        made = f"{what} ({info.method}, {each} a class) {how}: {self.condensed}"
        next_line = f"next: coreset train {self.condensed} VAL RESULTS"
        data = {"set": str(self.condensed), "images": sum(info.per_class)}
        return Result((*notes, made, next_line), data)
