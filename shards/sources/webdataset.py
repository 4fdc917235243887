"""WebDataset shards made elsewhere, with integer or named labels, read where they lie.

Members belong to the sample that is their name up to the first dot of the file name, as in
webdataset's ``base_plus_ext``. Unlike there, members of a sample need not be adjacent, and a
damaged, incomplete or repeated sample is an error. A shard with a member of a kind that webdataset
would unpickle is refused. Beside the shards may lie ``_info.json``, as timm's ``reader_wds.py``
reads it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from coreset.shards.errors import DataError
from coreset.shards.format.files import build, parse
from coreset.shards.images.probe import FORMAT_OF_EXTENSION, extension_of, is_image_name
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions
from coreset.shards.sources.finder import Finder, RangeContents
from coreset.shards.sources.names import (
    below_class,
    require_one_split,
    safe_parts,
    shown,
    split_of,
    visible_entries,
)
from coreset.shards.sources.tar_scan import REGULAR_FILE, Entry
from coreset.shards.sources.tars import add_members, in_threads, tars_of, visible_members

_READ_EXTENSIONS = frozenset({*FORMAT_OF_EXTENSION, "cls", "json", "txt", "npy"})
_LABEL_LIMIT_BYTES = {"cls": 32, "json": 1 << 20}
_INFO_NAMES = ("_info.json", "info.json")
_INFO_LIMIT_BYTES = 1 << 26
_INTEGER = re.compile(rb"\s*[+-]?[0-9]{1,18}\s*")
_MAKE_AGAIN = "make the shard again"


@dataclass(frozen=True, slots=True)
class _Info:
    """Content of ``_info.json``: class names, and samples by shard for each split."""

    name: str = ""
    class_names: tuple[str, ...] | None = None
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    def __post_init__(self) -> None:
        if len(set(self.class_names or ())) < len(self.class_names or ()):
            raise ValueError("a name twice in class_names")


@dataclass(frozen=True, slots=True)
class _Sample:
    """Members of one sample by their extensions in lower case."""

    shard: Path
    key: str
    parts: dict[str, Entry] = field(default_factory=dict[str, Entry])

    def error(self, fault: str, remedy: str = _MAKE_AGAIN) -> DataError:
        offset = next(iter(self.parts.values())).offset
        return DataError(
            f"{self.shard} has sample {shown(self.key)} at byte {offset:,} with {fault}; {remedy}"
        )

    @property
    def image(self) -> Entry:
        images = [part for part in self.parts.values() if is_image_name(part.name)]
        if len(images) == 1:
            return images[0]
        number = f"{len(images)} images" if images else "no image"
        members = ", ".join(self.parts)
        raise self.error(f"{number} among its members ({members}) where one is expected")

    def read(self, descriptor: int, extension: str) -> bytes:
        part, limit = self.parts[extension], _LABEL_LIMIT_BYTES[extension]
        if not 0 < part.size <= limit:  # a link or device has size 0
            fault = f"{part.size:,} bytes" if part.kind == REGULAR_FILE else f"a {part.kind}"
            raise self.error(f"{fault} in {extension} where 1 to {limit:,} bytes are expected")
        return os.pread(descriptor, part.size, part.offset)


def find_webdataset(src: Path, options: SourceOptions = DEFAULTS) -> Source:
    """Find the samples of one shard or of a folder of shards of one split.

    A sample has one image (jpg, jpeg, png or webp), and a label: an integer (member ``cls``, or
    field ``label`` or ``cls`` of member ``json``), or a name (field ``wnid`` or ``class``). Names
    of integers are ``options.class_names``, or those of ``_info.json``. Sample keys are the class
    and the last part of the key, or all that follows its folder of the class's name.
    """
    paths = tars_of(src) if src.is_dir() else [src]
    require_one_split(src, filter(None, (split_of(path.stem) for path in paths)))
    finder = Finder(place=src, repeats=options.repeats)
    info = _read_info(src if src.is_dir() else src.parent)
    if src.is_dir():
        _require_shards(src, {path.name for path in paths}, info)
        known = {name for path in paths for name in (path.name, path.with_suffix(".idx").name)}
        unknown = {entry.name for entry in visible_entries(src)} - known - set(_INFO_NAMES)
        finder.skip(len(unknown), f"files of {src} that are no shards")
    names = options.class_names or info.class_names
    _add_shards(finder, _Reader(src, options, info, names), paths)
    return finder.source(partial(RangeContents, paths))


def _require_shards(folder: Path, shards: set[str], info: _Info) -> None:
    for lengths in info.splits.values():
        missing = sorted(set(lengths) - shards)
        if 0 < len(missing) < len(lengths):
            raise DataError(
                f"{folder} lacks {len(missing):,} of the {len(lengths):,} shards that "
                f"{info.name} lists, {missing[0]} first; copy or download them too"
            )


def _add_shards(finder: Finder, reader: "_Reader", paths: Sequence[Path]) -> None:
    seen: set[str] = set()
    empty: list[str] = []
    for file, (samples, n_hidden) in enumerate(in_threads(reader.read, paths)):
        place = paths[file].name
        taken = [sample for sample in samples if reader.options.takes(sample[0])]
        add_members(finder, taken, place=place, file=file)
        seen.update(name for name, _, _ in samples)
        finder.n_hidden += n_hidden
        if not samples:
            empty.append(place)
    reader.options.chosen(seen, finder.place)
    if empty:
        finder.skip(len(empty), f"shards without samples, such as {empty[0]}")
    unused = set(reader.names or ()) - seen
    finder.skip(len(unused), "classes of the class list, which have no samples")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reader of whole shards; ``names`` are those of integer labels. Thread safe."""

    place: Path
    options: SourceOptions
    info: _Info
    names: tuple[str, ...] | None

    def read(self, path: Path) -> tuple[list[tuple[str, str, Entry]], int]:
        """Return class, key and image of all samples of a shard, and count hidden members."""
        members, n_hidden = visible_members(path)
        samples = _samples(path, members)
        for lengths in self.info.splits.values():
            expected = lengths.get(path.name, len(samples))
            if expected != len(samples):
                raise DataError(
                    f"{path} holds {len(samples):,} samples, but {self.info.name} says "
                    f"{expected:,}; copy or download both again"
                )
        labelled: list[tuple[str, str, Entry]] = []
        with path.open("rb", buffering=0) as file:
            for sample in samples:
                image, name = sample.image, self._class_name(sample, file.fileno())
                *folders, last = sample.key.split("/")
                labelled.append((name, "/".join((name, *below_class(folders, name), last)), image))
        return labelled, n_hidden

    def _class_name(self, sample: _Sample, descriptor: int) -> str:
        try:
            number, name = self._label(sample, descriptor)
        except ValueError as error:
            raise sample.error(f"a label that cannot be read: {error}") from None
        if number is not None and (self.names is not None or name is None):
            n_classes = len(self.names or ())
            if self.names is not None and not 0 <= number < n_classes:
                raise sample.error(
                    f"label {number}, but the class list has {n_classes:,} names, for 0 to "
                    f"{n_classes - 1:,}",
                    f"name the right list with --class-names or {_MAKE_AGAIN}",
                )
            name = self.options.name_of(number, self.names, self.place)
        if name is None:
            raise sample.error(
                f"no label among its members ({', '.join(sample.parts)}); expected is an integer "
                "in cls, or in json an integer (label, cls) or a name (wnid, class)"
            )
        with suppress(DataError):
            if safe_parts(name) == (name,) and not name.startswith("."):
                return name
        raise sample.error(f"class name {shown(name)}, which no folder should have")

    def _label(self, sample: _Sample, descriptor: int) -> tuple[int | None, str | None]:
        """Integer and name, as far as the sample has them; of two integers that in cls holds."""
        number = None
        if "cls" in sample.parts:
            stored = sample.read(descriptor, "cls")
            if not _INTEGER.fullmatch(stored):
                raise ValueError(f"label {stored!r} where an integer is expected")
            number = int(stored)
        if "json" not in sample.parts or (number is not None and self.names is not None):
            return number, None
        fields = parse(sample.read(descriptor, "json"))
        if number is None:
            number = _label_in(fields, ("label", "cls"), int, "an integer")
        return number, _label_in(fields, ("wnid", "class"), str, "a name")


def _samples(path: Path, members: Sequence[Entry]) -> list[_Sample]:
    """Group members by key, samples in the order of their first members.

    A member whose extension its sample has already begins another sample of the same key, as in
    shards joined by mistake. ``Finder`` then refuses both.
    """
    latest: dict[str, _Sample] = {}
    samples: list[_Sample] = []
    for member in members:
        if extension_of(member.name) not in _READ_EXTENSIONS:
            raise DataError(
                f"{path} has member {shown(member.name)} at byte {member.offset:,}, which is none "
                f"of {', '.join(sorted(_READ_EXTENSIONS))}; make the shard without it: members of "
                "other kinds can run code when they are decoded, and are never read"
            )
        folder, slash, file = member.name.rpartition("/")
        stem, _, extensions = file.partition(".")
        key = f"{folder}{slash}{stem}"
        sample = latest.get(key)
        if sample is None or extensions.lower() in sample.parts:
            sample = latest[key] = _Sample(path, key)
            samples.append(sample)
        sample.parts[extensions.lower()] = member
    return samples


def _label_in(fields: Mapping[str, Any], names: Sequence[str], kind: type, what: str) -> Any:  # noqa: ANN401 - of that type, or None
    for name in names:
        if name in fields:
            if type(fields[name]) is not kind:  # bool is a subclass of int
                raise ValueError(f"json field {name} {fields[name]!r:.60} where {what} is expected")
            return fields[name]
    return None


def _read_info(folder: Path) -> _Info:
    path = next((folder / name for name in _INFO_NAMES if (folder / name).is_file()), None)
    if path is None:
        return _Info()
    try:
        with path.open("rb") as file:
            fields = parse(file.read(_INFO_LIMIT_BYTES))
        splits = {
            name: dict(zip(split["filenames"], split["shard_lengths"], strict=True))
            for name, split in fields.get("splits", {}).items()
        }
        names = fields.get("class_names")
        return build(_Info, {"name": path.name, "class_names": names, "splits": splits})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has not the class_names and splits (filenames, shard_lengths) that timm reads "
            f"({error!r}); mend or remove it"
        ) from None
