"""Sets of images that others made: classes, checks, and packing of their very bytes."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.importers import unequal_classes
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import IMAGENET_100_CMC_WNIDS, class_list, recognise
from coreset.shards.format.dataset import Dataset
from coreset.shards.layouts import FOLDERS, LAYOUTS, PARQUET, LaidSet, Wanted, find_set
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.detect import find
from coreset.shards.sources.parquet import is_parquet

Ints = NDArray[np.int64]
LEAST_SPREAD = 5.0
"""Standard deviation of the grey levels below which an image is of nearly one colour."""
_PLAIN_BYTES_PER_PIXEL = 0.06  # a JPEG or PNG of one colour takes half of it
KNOWN_SIZES = {10: "imagenette", 100: "imagenet-100", 1000: "imagenet-1k"}


def in_text_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return the class of each number where folders 0, 1, 10, 100 ... were counted as sorted."""
    return tuple(names[int(number)] for number in sorted(map(str, range(len(names)))))


def _in_cmc_order(names: Sequence[str]) -> tuple[str, ...]:
    if sorted(names) != sorted(IMAGENET_100_CMC_WNIDS):
        raise UsageError(
            f"order cmc is one of the classes of ImageNet-100, got {len(names)} other classes; use "
            "--order sorted or text"
        )
    return IMAGENET_100_CMC_WNIDS


ORDERS: dict[str, Callable[[Sequence[str]], tuple[str, ...]]] = {
    "sorted": tuple,
    "cmc": _in_cmc_order,
    "text": in_text_order,
}
"""Orders in which codes number classes, from the sorted ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Part of a released set to take in."""

    src: Path
    classes: tuple[str, ...] = ()
    """Names in the order of the labels; empty: those that are there."""
    order: str = "sorted"
    layout: str | None = None
    replica: str = ""
    ipc: int | None = None
    allow_short: bool = False

    def numbering(self, n: int) -> tuple[str, ...]:
        """Return the class of each of n numbers, of the list named or of one that it is part of."""
        known = self.classes
        if len(known) < n:
            size = min((size for size in KNOWN_SIZES if size >= n), default=0)
            whole = class_list(KNOWN_SIZES[size]) if size else ()
            if not whole or not set(known) <= set(whole) or (not known and size != n):
                named = (
                    f"the list of --classes names {len(known)}" if known else "no list says which"
                )
                raise UsageError(
                    f"{self.src} numbers its classes 0 to {n - 1}, and {named}; name them with "
                    "--classes or --data"
                )
            known = whole
        return ORDERS[self.order](known)


def find_images(options: ImportOptions, spool: Path) -> LaidSet:
    """Find the images of a released set, and refuse one that is not whole."""
    parquet = is_parquet(options.src)
    if options.layout == PARQUET and not parquet:
        raise UsageError(f"{options.src} has no parquet file with images; leave out --layout")
    if parquet:
        laid = _as_packed(options, PARQUET, spool)
    else:
        wanted = Wanted(
            numbering=options.numbering, classes=options.classes, ipc=options.ipc,
            layout=options.layout, replica=options.replica,
        )  # fmt: skip
        laid = find_set(options.src, wanted) or _as_packed(options, FOLDERS, spool)
    _require_whole(laid, options)
    return laid


def _as_packed(options: ImportOptions, layout: str, spool: Path) -> LaidSet:
    """Find a folder per class, or parquet files, as `coreset pack` does; slots are as sorted."""
    names = ORDERS[options.order](options.classes) if options.classes else None
    source = find(
        options.src,
        SourceOptions(only=options.classes or None, class_names=names, spool=spool),
    )
    found = tuple(source.classes)
    if options.ipc is not None:
        slots = np.concatenate([np.arange(n) for n in np.bincount(np.sort(source.labels))])
        ranks = np.empty_like(slots)
        ranks[np.argsort(source.labels, kind="stable")] = slots
        source = replace(source, rows=source.rows[ranks < options.ipc])
    return LaidSet(layout=layout, source=source, found_classes=found)


def _require_whole(laid: LaidSet, options: ImportOptions) -> None:
    source, src = laid.source, options.src
    sizes = np.bincount(source.labels, minlength=len(source.classes))
    if options.ipc is not None and sizes.min() < options.ipc:
        few = int(sizes.argmin())
        raise UsageError(
            f"ipc must be at most the images of every class, got {options.ipc}, but class "
            f"{source.classes[few]} of {src} has {sizes[few]}; lower --ipc"
        )
    if options.allow_short:
        return
    if sizes.min() < sizes.max():
        raise unequal_classes(src, source.classes, sizes)
    if laid.layout in LAYOUTS:
        _require_no_gaps(source, src)


def _require_no_gaps(source: Source, src: Path) -> None:
    for label, (first, slots) in enumerate(slots_of(source)):
        if not np.array_equal(slots, np.arange(slots.size) + first):
            missing = sorted(set(range(first, int(slots[-1]))) - set(slots.tolist()))
            raise UsageError(
                f"{src} lacks image {missing[0]} of class {source.classes[label]}, which has "
                f"{first} to {slots[-1]}; get it, or use --allow-short"
            )


def slots_of(source: Source) -> Iterator[tuple[int, Ints]]:
    """Yield the first slot and all slots of each class, ascending, from keys CLASS/SLOT."""
    slots = np.array([int(key.rpartition("/")[2]) for key in source.keys])
    for label in range(len(source.classes)):
        own = np.sort(slots[source.labels == label])
        yield int(own[0]), own


def images_digest(source: Source) -> str:
    """Return the sha256 over the keys, names and sizes of the images that are taken."""
    lines = (f"{s.key}\t{s.name}\t{s.size}\n" for s in source.samples(range(len(source))))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def described_slots(laid: LaidSet) -> str:
    """Say which slots were taken: ``0 to 9``."""
    if laid.layout not in LAYOUTS:
        return "as sorted by name" if laid.layout == FOLDERS else "in the order of the rows"
    every = list(slots_of(laid.source))
    return f"{min(first for first, _ in every)} to {max(int(slots[-1]) for _, slots in every)}"


def derived_from(laid: LaidSet) -> str:
    """Name the data set whose condensed set this is a part of; empty if it is none."""
    whole = laid.numbered or laid.found_classes
    is_part = set(laid.source.classes) < set(whole)
    return (recognise(whole) or f"{len(whole)} classes") if is_part else ""


def notes_on(dataset: Dataset) -> Iterator[str]:
    """Tell sizes and codecs of imported images, and warn of copies and of plain ones."""
    names = ("content_hash", "format", "width", "height", "bytes", "key")
    table = dataset.table(names)
    hashes, formats, widths, heights, stored, keys = (table[name].to_pylist() for name in names)
    sides = np.minimum(widths, heights)
    ends = "" if sides.min() == sides.max() else f" to {sides.max()}"
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in Counter(formats).most_common())
    yield f"images: {kinds}, short sides of {sides.min()}{ends} px"
    copies = Counter(hashes)
    if twice := [key for key, own in zip(keys, hashes, strict=True) if copies[own] > 1]:
        yield f"warning: {len(twice):,} images have an exact copy in the set, such as {twice[0]}"
    sizes = np.array(stored) / (np.array(widths) * np.array(heights))
    suspects = np.flatnonzero(sizes < _PLAIN_BYTES_PER_PIXEL)
    spreads = _grey_spreads(dataset, suspects.tolist())
    if plain := [keys[one] for one, spread in spreads if spread < LEAST_SPREAD]:
        yield f"warning: {len(plain):,} images are of nearly one colour, such as {plain[0]}"


def _grey_spreads(dataset: Dataset, samples: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield the standard deviation of the grey levels of each of some images."""
    from coreset.engine.data.datasets import ImageDataset

    images = ImageDataset(dataset.path, transform=lambda image: np.asarray(image.convert("L")))
    for sample in samples:
        yield sample, float(images[sample][0].std())


def set_origin(laid: LaidSet, told: dict[str, str]) -> dict[str, Any]:
    """Describe where a set comes from; ``told`` are facts that the files do not show."""
    facts = {
        "layout": laid.layout,
        "replica": laid.replica,
        "slots": described_slots(laid),
        "derived_from": derived_from(laid),
    }
    return {name: value for name, value in (told | facts).items() if value}
