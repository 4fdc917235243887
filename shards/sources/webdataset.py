"""WebDataset shards made elsewhere, with integer or named labels, read where they lie.

Members belong to the sample that is their name up to the first dot of the file name, as in
``base_plus_ext`` of webdataset's ``tariterators.py``. Unlike
there, members of one sample need not be adjacent, and a damaged, incomplete or repeated sample is
an error instead of being lost.
Nothing is decoded but integers and JSON: a shard with a member of another kind, such as ``.pyd``,
which webdataset would unpickle, is refused.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coreset.shards.errors import DataError, UsageError
from coreset.shards.images.probe import FORMAT_OF_EXTENSION
from coreset.shards.sources.advice import require_one_split
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.finder import Finder
from coreset.shards.sources.names import extension_of, split_of, visible_entries
from coreset.shards.sources.shard_labels import (
    INFO_NAMES,
    LABEL_LIMIT_BYTES,
    LabelError,
    ShardInfo,
    integer,
    name_in,
    number_in,
    parse_json,
    read_info,
)
from coreset.shards.sources.tar_scan import REGULAR_FILE, safe_parts, shown
from coreset.shards.sources.tars import (
    Member,
    add_members,
    in_threads,
    range_contents,
    tars_of,
    visible_members,
)

READ_EXTENSIONS = frozenset({*FORMAT_OF_EXTENSION, "cls", "json", "txt", "npy"})
_MAKE_AGAIN = "make the shard again"


@dataclass(frozen=True, slots=True)
class _Sample:
    """Members of one sample by their extensions, which are in lower case."""

    shard: Path
    key: str
    parts: dict[str, Member] = field(default_factory=dict[str, Member])

    def error(self, fault: str, remedy: str = _MAKE_AGAIN) -> DataError:
        offset = next(iter(self.parts.values())).offset
        return DataError(
            f"{self.shard} has sample {shown(self.key)} at byte {offset:,} with {fault}; {remedy}"
        )

    @property
    def image(self) -> Member:
        images = [part for part in self.parts.values() if part.extension in FORMAT_OF_EXTENSION]
        if len(images) == 1:
            return images[0]
        members = ", ".join(self.parts)
        number = f"{len(images)} images" if images else "no image"
        raise self.error(f"{number} among its members ({members}) where one is expected")

    def read(self, descriptor: int, extension: str) -> bytes:
        """Read a label member; empty if the sample has none."""
        part = self.parts.get(extension)
        if part is None:
            return b""
        limit = LABEL_LIMIT_BYTES[extension]
        if part.kind != REGULAR_FILE or not 0 < part.size <= limit:
            fault = f"{part.size:,} bytes" if part.kind == REGULAR_FILE else f"a {part.kind}"
            raise self.error(f"{fault} in {extension} where 1 to {limit:,} bytes are expected")
        return os.pread(descriptor, part.size, part.offset)


@dataclass(frozen=True, slots=True)
class _Shard:
    """Samples of a shard that go into the source."""

    classes: list[str] = field(default_factory=list[str])
    keys: list[str] = field(default_factory=list[str])
    images: list[Member] = field(default_factory=list[Member])
    seen: set[str] = field(default_factory=set[str])
    """Classes, also those that are not taken."""
    hidden: list[int] = field(default_factory=list[int])
    """Count of hidden members, in a list of one."""


def find_webdataset(src: Path, options: SourceOptions | None = None) -> Source:
    """Find the samples of one shard or of a folder of shards of one split.

    A sample has one image (jpg, jpeg, png or webp), and a label: an integer (member ``cls``, or
    field ``label`` or ``cls`` of member ``json``), or a name (field ``wnid`` or ``class``). Names
    of integers are ``options.class_names``, or ``class_names`` of ``_info.json`` beside the shards.
    Sample keys become CLASS/LAST PART OF THE KEY, which for ImageNet are those of the image folder;
    of a key that has its class as a folder, all that follows the class is kept.

    Raises:
        UsageError: Integer labels have no names, the shards are of several splits, a class asked
            for is not there, or two samples have one key.
        DataError: A shard is damaged, cut or missing, a sample is incomplete or its label is no
            class, or a member is of a kind that is not read.
    """
    options = options or SourceOptions()
    paths = tars_of(src) if src.is_dir() else [src]
    if not paths:
        raise UsageError(f"{src} holds no tar; name a folder of WebDataset shards")
    require_one_split(src, filter(None, (split_of(path.stem) for path in paths)))
    finder = Finder(place=src, repeats=options.repeats)
    info = read_info(src if src.is_dir() else src.parent)
    if src.is_dir():
        info.require_all(src, [path.name for path in paths])
        _note_others(finder, paths)
    _add_shards(finder, _Reader(src, options, info), paths)
    samples = finder.sorted()
    return samples.source(range_contents(samples, paths))


def _note_others(finder: Finder, paths: Sequence[Path]) -> None:
    names = {entry.name for entry in visible_entries(finder.place)}
    indices = {path.with_suffix(".idx").name for path in paths}
    unknown = names - indices - {path.name for path in paths} - set(INFO_NAMES)
    if unknown:
        finder.skipped.append(f"{len(unknown):,} files of {finder.place} that are no shards")


def _add_shards(finder: Finder, reader: "_Reader", paths: Sequence[Path]) -> None:
    seen: set[str] = set()
    empty: list[str] = []
    for file, shard in enumerate(in_threads(reader.read, paths)):
        place = paths[file].name
        add_members(finder, shard.classes, shard.keys, shard.images, place=place, file=file)
        seen |= shard.seen
        finder.passed_over.n_hidden += sum(shard.hidden)
        if not shard.seen:
            empty.append(place)
    reader.options.chosen(seen, finder.place)
    if empty:
        finder.skipped.append(f"{len(empty):,} shards without samples, such as {empty[0]}")
    unused = len(set(reader.names or ()) - seen)
    if unused:
        finder.skipped.append(f"{unused:,} classes of the class list, which have no samples")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reader of whole shards; thread safe."""

    place: Path
    options: SourceOptions
    info: ShardInfo

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of integer labels."""
        return self.options.class_names or self.info.class_names

    def read(self, path: Path) -> _Shard:
        """Group the members of a shard into samples, and find their classes.

        Raises:
            UsageError: The integer labels have no names.
            DataError: As of ``find_webdataset``.
        """
        members, n_hidden = visible_members(path)
        samples = _samples(path, members)
        self.info.require_length(path, len(samples))
        shard = _Shard(hidden=[n_hidden])
        with path.open("rb", buffering=0) as file:
            for sample in samples:
                image, name = sample.image, self._class_name(sample, file.fileno())
                shard.seen.add(name)
                if self.options.takes(name):
                    shard.classes.append(name)
                    shard.keys.append(_sample_key(name, sample.key))
                    shard.images.append(image)
        return shard

    def _class_name(self, sample: _Sample, descriptor: int) -> str:
        try:
            number, name = self._label(sample, descriptor)
        except LabelError as error:
            raise sample.error(str(error)) from None
        if number is not None and (self.names is not None or name is None):
            n_classes = len(self.names or ())
            if self.names is not None and not 0 <= number < n_classes:
                raise sample.error(
                    f"label {number}, but the class list has {n_classes:,} names, for 0 to "
                    f"{n_classes - 1:,}",
                    "name the right list with --class-names or make the shard again",
                )
            name = self.options.name_of(number, self.info.class_names, self.place)
        if name is None:
            raise sample.error(
                f"no label among its members ({', '.join(sample.parts)}); expected is an integer "
                "in cls, or in json an integer (label, cls) or a name (wnid, class)"
            )
        return _required_name(name, sample)

    def _label(self, sample: _Sample, descriptor: int) -> tuple[int | None, str | None]:
        """Integer and name, as far as the sample has them; of two integers that in cls holds."""
        number = integer(sample.read(descriptor, "cls")) if "cls" in sample.parts else None
        if "json" not in sample.parts or (number is not None and self.names is not None):
            return number, None
        fields = parse_json(sample.read(descriptor, "json"))
        return number_in(fields) if number is None else number, name_in(fields)


def _samples(path: Path, members: Sequence[Member]) -> list[_Sample]:
    """Group members by key, samples in the order of their first members.

    A member whose extension its sample has already begins another sample of the same key, as in
    shards joined by mistake. ``Finder`` then refuses both.
    """
    latest: dict[str, _Sample] = {}
    samples: list[_Sample] = []
    for member in members:
        key, extensions = _split_name(path, member)
        sample = latest.get(key)
        if sample is None or extensions in sample.parts:
            sample = latest[key] = _Sample(path, key)
            samples.append(sample)
        sample.parts[extensions] = member
    return samples


def _split_name(path: Path, member: Member) -> tuple[str, str]:
    folder, slash, file = member.name.rpartition("/")
    stem, _, extensions = file.partition(".")
    if extension_of(file) not in READ_EXTENSIONS:
        raise DataError(
            f"{path} has member {shown(member.name)} at byte {member.offset:,}, which is none of "
            f"{', '.join(sorted(READ_EXTENSIONS))}; make the shard without it: members of other "
            "kinds can run code when they are decoded, and are never read"
        )
    return f"{folder}{slash}{stem}", extensions.lower()


def _sample_key(class_name: str, key: str) -> str:
    *folders, last = key.split("/")
    below = folders[folders.index(class_name) + 1 :] if class_name in folders else []
    return "/".join((class_name, *below, last))


def _required_name(name: str, sample: _Sample) -> str:
    """Refuse a class name that no exported folder could have."""
    try:
        safe = len(safe_parts(name)) == 1 and not name.startswith(".")
    except DataError:
        safe = False
    if not safe:
        raise sample.error(f"class name {shown(name)}, which no folder should have")
    return name
