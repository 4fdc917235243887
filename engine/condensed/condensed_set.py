"""A condensed set on disk: ``set.json`` beside ``ids.npy`` (a coreset) or beside packed shards."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance, open_source, require_same_data
from coreset.engine.artifacts.writer import ArtifactWriter
from coreset.kernels.samplers import Selection
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import (
    build,
    digest_of,
    json_bytes,
    missing,
    parse,
    sha256_of_file,
    write_atomically,
)

SET_NAME = "set.json"
IDS_NAME = "ids.npy"
SELECTION_NAME = "selection.parquet"
FORMAT = "coreset-set"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInfo:
    """Contents of ``set.json``."""

    kind: Literal["coreset", "distilled"]
    method: str
    """Name in tables: random, ccs-aum, kmeans ..."""
    parameters: Mapping[str, Any]
    seed: int
    source_name: str
    source_identity: str
    source_content: str
    n_classes: int
    ipc: int
    per_class: tuple[int, ...]
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Layout, slots, address, licence ... of a set that others made; its source may be unknown."""
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def balance(self) -> str:
        """Say how many images the classes of a set have that was chosen by pseudo-labels."""
        if "labels" not in self.parameters:
            return ""
        present = [n for n in self.per_class if n]
        each = " to ".join(map(str, sorted({min(present), max(present)})))
        return f"images of {len(present)} of {self.n_classes} classes, {each} each"

    @staticmethod
    def read(directory: Path) -> "SetInfo":
        """Read ``set.json``."""
        path, remedy = directory / SET_NAME, "make one with `coreset select`, `distill` or `ingest`"
        if not directory.exists():
            raise missing(directory, remedy)
        if not path.is_file():
            raise UsageError(f"{directory} is not a condensed set (no set.json); {remedy}")
        try:
            info = build(SetInfo, parse(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); make the set again") from error
        if len(info.per_class) != info.n_classes or min(info.per_class, default=-1) < 0:
            raise StoreError(
                f"{path}: per_class does not count {info.n_classes} classes; make the set again"
            )
        if (info.format, info.format_version) != (FORMAT, FORMAT_VERSION):
            raise StoreError(f"{path} is of version {info.format_version}; make the set again")
        return info


@dataclass(frozen=True, slots=True)
class CondensedSet:
    """A condensed set with its images: ``ids`` into ``dataset`` (all of it for a distilled set)."""

    path: Path
    info: SetInfo
    provenance: Provenance
    dataset: Dataset
    ids: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of every image of the set."""
        return self.dataset.labels[self.ids]

    @property
    def ranks(self) -> NDArray[np.int64]:
        """When each was chosen among those of its class or group, from 0; by id if unknown."""
        path, n = self.path / SELECTION_NAME, self.ids.size
        if path.is_file():
            from pyarrow import ArrowException, parquet

            try:
                ranks = parquet.read_table(path, columns=["rank"])["rank"].to_numpy()
            except (ArrowException, OSError, LookupError) as error:
                why = " ".join(str(error).split())
                raise StoreError(f"{path} cannot be read ({why}); make the set again") from error
            if ranks.dtype != np.int64 or ranks.size != n:
                raise StoreError(f"{path} has no rank of each of {n} images; make the set again")
            return ranks
        order = np.argsort(self.labels, kind="stable")
        ranks = np.empty_like(order)
        ranks[order] = np.concatenate([np.arange(n) for n in self.info.per_class])
        return ranks

    @property
    def image_bytes(self) -> int:
        """Stored bytes of the images."""
        return int(self.dataset.ints("bytes")[self.ids].sum())


def open_set(path: Path, *, data: Path | None = None) -> CondensedSet:
    """Open a condensed set with the data set that holds its images; ``data`` if that was moved."""
    info, provenance = SetInfo.read(path), Provenance.read(path)
    if (path / MANIFEST_NAME).is_file():
        dataset = Dataset.open(path)
        ids = np.arange(len(dataset))
    else:
        dataset = open_source(path, data)
        require_same_data(dataset, info.source_identity, f"the coreset {path}")
        ids = _read_ids(path, provenance, len(dataset))
    if _per_class(dataset, ids) != info.per_class:
        raise StoreError(
            f"{path}: {SET_NAME} counts other images of the classes than there are; make it again"
        )
    return CondensedSet(path, info, provenance, dataset, ids)


def _read_ids(path: Path, provenance: Provenance, n: int) -> NDArray[np.int64]:
    """Read the ids of a coreset of ``n`` samples, and refuse those that were not made."""
    try:
        files = _digests(path)
        # Mapped: what the header promises is not read before it is known to be there.
        ids = np.lib.format.open_memmap(path / IDS_NAME, mode="r")
    except (OSError, EOFError, ValueError, OverflowError) as error:
        raise StoreError(f"{path} cannot be read ({error}); make the set again") from error
    if ids.dtype.kind != "i" or ids.ndim != 1 or not 0 < ids.size <= n:
        raise StoreError(
            f"{path / IDS_NAME} holds {ids.dtype} of shape {ids.shape}, expected 1 to {n} whole "
            "numbers; make the set again"
        )
    if ids[0] < 0 or ids[-1] >= n or (ids[1:] <= ids[:-1]).any():
        raise StoreError(
            f"{path / IDS_NAME} must hold ascending ids in [0, {n}); make the set again"
        )
    if digest_of(files) != provenance.digest:
        raise StoreError(
            f"{path}: {IDS_NAME} or {SET_NAME} is not the file that was made; make the set again"
        )
    return ids.astype(np.int64)


def _digests(path: Path) -> dict[str, str]:
    return {name: sha256_of_file(path / name) for name in (IDS_NAME, SET_NAME)}


def ids_within(path: Path, dataset: Dataset) -> NDArray[np.int64]:
    """Read the ids of a coreset of ``dataset``; any other set is refused."""
    condensed = open_set(path, data=dataset.path)
    if condensed.info.kind != "coreset":
        raise UsageError(f"{path} holds images of its own, not images of {dataset.path}")
    return condensed.ids


def _per_class(dataset: Dataset, ids: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(np.bincount(dataset.labels[ids], minlength=len(dataset.classes)).tolist())


def require_same_classes(train: CondensedSet | Dataset, val: Dataset) -> None:
    """Raise ``UsageError`` unless both have the same class list in one order."""
    own = (train if isinstance(train, Dataset) else train.dataset).classes
    classes = val.classes
    if own == classes:
        return
    odd = sorted(set(own) ^ set(classes))
    difference = f"{odd[0]} is in one of them only" if odd else "the same classes in another order"
    raise UsageError(
        f"{train.path} has {len(own)} classes and {val.path} has {len(classes)}: {difference}; "
        "pack both from folders with the same class names"
    )


def write_set(
    work: ArtifactWriter,
    dataset: Dataset,
    ids: NDArray[np.int64] | None,
    *,
    method: str,
    parameters: Mapping[str, Any],
    seed: int,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Describe a set in an artifact in the making, and bind it to the data set it condenses.

    ``ids`` are the samples of a coreset, ascending; None for a set of images of its own, which are
    packed in the artifact. ``dataset`` is what it condenses, or those images if nobody knows.
    """
    manifest, n_classes = dataset.manifest, len(dataset.classes)
    is_unknown = dataset.path == work.scratch
    if ids is None:
        images = Dataset.open(work.scratch)
        per_class = _per_class(images, np.arange(len(images)))
    else:
        np.save(work.scratch / IDS_NAME, ids, allow_pickle=False)
        per_class = _per_class(dataset, ids)
    info = SetInfo(
        kind="distilled" if ids is None else "coreset",
        method=method,
        parameters=parameters,
        seed=seed,
        source_name=manifest.name,
        source_identity="" if is_unknown else manifest.identity,
        source_content="" if is_unknown else manifest.content,
        n_classes=n_classes,
        ipc=int(parameters.get("ipc", max(per_class))),
        per_class=per_class,
        origin=origin or {},
    )
    document = asdict(info)
    if not info.origin:
        del document["origin"]  # sets of ours keep their bytes, by which results know them
    write_atomically(work.scratch / SET_NAME, json_bytes(document))
    binds = {"identity": manifest.identity, "content": manifest.content}
    # Of a coreset by what it is: the table beside it says how it came about.
    digest = "" if ids is None else digest_of(_digests(work.scratch))
    work.provenance = replace(work.provenance, binds=binds, digest=digest)


def write_selection(
    folder: Path,
    dataset: Dataset,
    ids: NDArray[np.int64],
    drawn: Selection,
    scores: NDArray[np.floating] | None,
    *,
    groups: NDArray[np.str_] | None,
) -> None:
    """Write a table of a coreset beside its ids: key, class, group, bin, score, and rank."""
    from pyarrow import parquet, table

    classes, labels = np.array(dataset.classes), dataset.labels[ids]
    columns = {
        "id": ids,
        "key": dataset.table(["key"])["key"].take(ids),
        "class": classes[labels],
        "group": groups,
        "bin": drawn.bins,
        "score": scores,
        "rank": drawn.ranks,
    }
    known = {name: column for name, column in columns.items() if column is not None}
    parquet.write_table(table(known), folder / SELECTION_NAME)
