"""Detection of a source's layout, and finders of the two plain ones: packed, a folder per class."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import missing
from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import Probe, extension_of, is_image_name
from coreset.shards.sources.base import DEFAULTS, ROWS_AT_ONCE, Source, SourceOptions, compute
from coreset.shards.sources.finder import FileContents, Finder, Found, RangeContents
from coreset.shards.sources.ilsvrc import find_validation, is_validation
from coreset.shards.sources.names import (
    WNID,
    listed_entries,
    require_classes,
    sample_key,
    stem_of,
    visible_entries,
)
from coreset.shards.sources.parquet import find_parquet, is_parquet
from coreset.shards.sources.table import find_table, is_table
from coreset.shards.sources.tars import find_class_tars, tar_layout
from coreset.shards.sources.webdataset import find_webdataset

_LIST_EXTENSIONS = frozenset({"csv", "tsv", "txt"})
_MOST_LISTS = 100
_PEEKED_CHARACTERS = 4096
_PEEKED_LINES = 3


def find_packed(root: Path, options: SourceOptions = DEFAULTS) -> Source:
    """Find the samples of a packed data set; ManifestError if its sample table is damaged."""
    dataset = Dataset.open(root)
    # Whoever packed a single class wanted it.
    classes = sorted(replace(options, one_class=True).chosen(dataset.classes, root))
    labels = [dataset.classes.index(name) for name in classes]
    names = ("class", "key", "source", "bytes", "shard", "offset")
    described = ("content_hash", "format", "width", "height", "flags")
    table = dataset.table((*names, *described)).filter(np.isin(dataset.labels, labels))
    table = table.take(compute.sort_indices(table["key"]))
    finder = Finder(place=root, repeats=options.repeats)
    for batch in table.to_batches(ROWS_AT_ONCE):
        rows = zip(*(batch[name].to_pylist() for name in names), strict=True)
        finder.add(Found(*row[:4], file=row[4], offset=row[5]) for row in rows)
    reader = partial(RangeContents, dataset.shard_paths())
    source = finder.source(reader, classes=classes)
    return replace(source, facts=_facts(table.select(described)))


def _facts(table: ArrowTable) -> Callable[[int], tuple[bytes, Probe]]:
    columns = [column.combine_chunks() for column in table.columns]

    def stored(row: int) -> tuple[bytes, Probe]:
        content_hash, kind, width, height, flags = (column[row].as_py() for column in columns)
        return content_hash, Probe(kind, width, height, Flag(flags))

    return stored


def find_folder(root: Path, options: SourceOptions = DEFAULTS) -> Source:
    """List the files of an ImageFolder tree, sorted by their keys; links are followed."""
    finder = Finder(place=root, repeats=options.repeats)
    visible, finder.n_hidden = listed_entries(root)
    names = [entry.name for entry in visible if entry.is_dir()]
    if not names:
        raise UsageError(f"{root} has no class folder; {what_to_name(root, root)}")
    if options.only is None:  # the user's own list may call a class "train"
        require_classes(sorted(names), root, holds_folders=lambda name: _holds_folders(root / name))
    for name in options.chosen(names, root, advice=lambda name: what_to_name(root, root / name)):
        files = sorted(files_below(finder, name, ()))  # by their keys, then by their paths
        finder.add(finder.images(name, files, "fill it or remove the folder"))
    finder.skip(len(visible) - len(names), f"files of {root} that lie in no class folder")
    return finder.source(partial(FileContents, root))


def files_below(finder: Finder, name: str, parents: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    """Yield the files below a folder of the root; ``parents`` are those above, to find a cycle."""
    folder = finder.place / name
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in parents:
        raise UsageError(f"{folder} links to a folder above itself; remove the link")
    visible, n_hidden = listed_entries(folder)
    finder.n_hidden += n_hidden
    for entry in visible:
        entry_name = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from files_below(finder, entry_name, (*parents, here))
        elif entry.is_file():
            class_name, key, file = name.partition("/")[0], sample_key(entry_name), entry.stat()
            yield Found(class_name, key, entry_name, file.st_size, file.st_mtime_ns)
        else:
            raise UsageError(f"{folder / entry.name} is a broken link or a device; remove it")


def what_to_name(root: Path, folder: Path) -> str:
    """Say what to pack instead of ``root``: folders in ``folder``, else a list of its images."""
    if folder != root and _holds_folders(folder):
        return f"if its folders are the classes, name {folder}"
    path, words = next(_lists(folder), (None, []))
    if path is None:
        return "name a folder that holds one folder per class"
    if len(words) > 1 and WNID.fullmatch(words[1]):
        return f"{path} labels its images: coreset pack {root} DATA --ground-truth {path}"
    if path.suffix == ".csv" and (path.parent / words[0]).is_file():
        return f"{path} lists its images: coreset pack {path} DATA"
    return (
        f"{path} lists its images: write a CSV file with the columns path and label from it and "
        "pack that file"
    )


def _holds_folders(folder: Path) -> bool:
    return any(entry.is_dir() for entry in visible_entries(folder))


def _lists(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    images = {entry.name for entry in visible_entries(folder) if is_image_name(entry.name)}
    # A line may begin with a number without being about the image of that name.
    images |= {stem for stem in map(stem_of, images) if not stem.isdecimal()}
    for place in (folder, folder.parent):
        entries = sorted(entry.name for entry in visible_entries(place) if entry.is_file())
        lists = (place / name for name in entries if extension_of(name) in _LIST_EXTENSIONS)
        for path in islice(lists, _MOST_LISTS):
            with suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
                for line in file.read(_PEEKED_CHARACTERS).splitlines()[:_PEEKED_LINES]:
                    words = re.findall(r"[^\s,;\"']+", line)
                    if words and words[0].rpartition("/")[2] in images:
                        yield path, words


FORMATS: list[
    tuple[Callable[[Path, SourceOptions], bool], Callable[[Path, SourceOptions], Source]]
] = [
    (lambda src, _: (src / MANIFEST_NAME).is_file(), find_packed),
    (lambda src, options: options.truth is not None or is_validation(src), find_validation),
    (lambda src, _: is_parquet(src), find_parquet),
    (lambda src, _: is_table(src), find_table),
    (lambda src, _: tar_layout(src) == "webdataset", find_webdataset),
    (lambda src, _: tar_layout(src) == "classes", find_class_tars),
    (lambda src, _: src.is_dir(), find_folder),
]
"""Tests of a layout, by names and the heads of files, and its finders; the first that matches."""


def find(src: Path, options: SourceOptions) -> Source:
    """Find the samples of a source of any layout.

    Raises:
        UsageError: ``src`` is missing, of no known layout, or not what the options ask for.
        DataError: A file of it is damaged.
        MachineError: The disk has no room for what must be decompressed.
        LockedError: Another process is decompressing it into the same folder.
    """
    if not src.exists():
        raise missing(src, "name a folder or file that holds images")
    for matches, find_samples in FORMATS:
        if matches(src, options):
            return find_samples(src, options)
    raise UsageError(
        f"{src} is neither a folder, a tar, a parquet file nor a list (.csv, .tsv, .txt, .json); "
        "name one of these"
    )
