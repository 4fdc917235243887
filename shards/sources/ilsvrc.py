"""ILSVRC2012 validation images: a flat folder or tar, whose labels lie in another file.

Sample keys are those of the same images sorted into a folder per WordNet id. Labels are:

- The development kit, as a folder or tar. Line i of its ``ILSVRC2012_validation_ground_truth.txt``
  is the ILSVRC id of image i, an index into ``ilsvrc2012_wnids.txt``, which is not sorted.
- A WordNet id a line, in the order of the images.
- ``NAME WNID`` a line, or Kaggle's ``LOC_val_solution.csv`` (``ImageId,PredictionString``).
- Caffe's ``val.txt``: ``NAME INDEX``, where index is a position in the sorted WordNet ids.

A file of integers alone is refused: they may be ILSVRC ids or positions in the sorted WordNet ids.
"""

import re
import tarfile
import zlib
from collections.abc import Collection, Sequence
from functools import partial
from gzip import BadGzipFile, GzipFile
from io import BytesIO
from pathlib import Path

from coreset.shards.errors import DataError, UsageError
from coreset.shards.images.probe import is_image_name
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.finder import FileContents, Finder, Found, RangeContents, state_of
from coreset.shards.sources.names import WNID, stem_of, visible_entries
from coreset.shards.sources.tar_scan import Entry
from coreset.shards.sources.tars import VALIDATION_NAME, add_members, tar_layout, visible_members
from coreset.shards.tables.formats import text_rows

_KIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"
_KIT_CLASSES = "meta.mat"
_GZIP_MAGIC = b"\x1f\x8b"
# The kit has 2.5 MB, its labels less than 1 MB; nothing beyond is decompressed.
_KIT_LIMIT_BYTES = 1 << 26
_FILE_LIMIT_BYTES = 1 << 22
_NAME_KIT = "name ILSVRC2012_devkit_t12 (folder or tar.gz)"
_KIT_REMEDY = "download ILSVRC2012_devkit_t12 again"
_BREAK = re.compile(r"[,;|]")
_INDEX = re.compile(r"\d{1,9}")


def is_validation(src: Path) -> bool:
    """Test for a tar of validation images, or for a folder of them that holds no folders."""
    if not src.is_dir():
        return tar_layout(src) == "validation"
    entries = visible_entries(src)
    images = any(VALIDATION_NAME.fullmatch(entry.name) for entry in entries)
    return images and not any(entry.is_dir() for entry in entries)


def find_validation(src: Path, options: SourceOptions) -> Source:
    """Find the images of a flat folder or tar, labelled by ``options.truth``.

    The images may also lie in the only folder of a folder (``val/images``).
    """
    if options.truth is None:
        raise UsageError(
            f"{src} holds images without class folders; name their labels with --ground-truth: "
            "ILSVRC2012_devkit_t12 (folder or tar.gz), or a file with a WordNet id per image"
        )
    finder, members = Finder(place=src, repeats=options.repeats), dict[str, Entry]()
    if src.is_dir():
        finder.place = _folder_of_images(src)
        names = [entry.name for entry in visible_entries(finder.place)]
    else:
        found, finder.n_hidden = visible_members(src)
        names = [member.name for member in found]
        members = {member.name: member for member in found}
    images = _images(finder, names)
    classes = _read_truth(options.truth, tuple(images), options, finder.place)
    options.chosen(classes.values(), finder.place)
    taken = [(name, images[stem], stem) for stem, name in classes.items() if options.takes(name)]
    if src.is_dir():
        for _, name, _ in taken:
            if not (path := finder.place / name).is_file():
                raise UsageError(f"{path} is a folder, a broken link or a device; remove it")
        finder.add(
            Found(class_name, f"{class_name}/{stem}", name, *state_of(finder.place / name))
            for class_name, name, stem in taken
        )
        return finder.source(partial(FileContents, finder.place))
    samples = [(name, f"{name}/{stem}", members[path]) for name, path, stem in taken]
    add_members(finder, samples, place=src.name)
    return finder.source(partial(RangeContents, [src]))


def _folder_of_images(src: Path) -> Path:
    """Return the folder itself, or its only folder if no image lies beside that."""
    entries = visible_entries(src)
    folders = [entry.name for entry in entries if entry.is_dir()]
    beside = any(is_image_name(entry.name) for entry in entries)
    return src / folders[0] if len(folders) == 1 and not beside else src


def _images(finder: Finder, names: Sequence[str]) -> dict[str, str]:
    images: dict[str, str] = {}
    paths = sorted(filter(is_image_name, names), key=stem_of)
    for name in paths:
        first = images.setdefault(stem_of(name), name)
        if first is not name:
            raise UsageError(
                f"{first} and {name} of {finder.place} have the same name but for folder and "
                "extension; rename or remove one"
            )
    finder.skip(len(names) - len(paths), f"files of {finder.place}, no images")
    return images


def _read_truth(
    truth: Path, stems: Sequence[str], options: SourceOptions, place: Path
) -> dict[str, str]:
    if not truth.exists():
        raise UsageError(f"ground truth {truth} does not exist; {_NAME_KIT}")
    if _is_kit(truth):
        return _in_order(_kit_labels(truth), stems, truth, place)
    lines = _lines(truth)
    if len(lines[0]) > 1:
        by_stem = _by_name(lines, truth, options)
        _require_same(by_stem, stems, truth, place)
        return by_stem
    if _INDEX.fullmatch(lines[0][0]):
        raise UsageError(
            f"ground truth {truth} holds numbers alone, and ILSVRC ids are not in the order of the "
            f"sorted WordNet ids; {_NAME_KIT}, which says what they stand for"
        )
    labels = [line[0] for line in lines]
    _require_labels(WNID, labels, truth)
    return _in_order(labels, stems, truth, place)


def _lines(truth: Path) -> list[list[str]]:
    rows = text_rows(truth, "ground truth", "")
    lines = [words for _, cells in rows if (words := _BREAK.sub(" ", cells[0]).split())]
    if lines and lines[0][0].lower() == "imageid":
        lines = lines[1:]
    if not lines:
        raise UsageError(f"ground truth {truth} is empty; name a file with a label per image")
    return lines


def _by_name(lines: Sequence[Sequence[str]], truth: Path, options: SourceOptions) -> dict[str, str]:
    with_indices = _INDEX.fullmatch(lines[0][1]) is not None
    labels = ["".join(line[1:2]) for line in lines]
    _require_labels(_INDEX if with_indices else WNID, labels, truth)
    by_stem: dict[str, str] = {}
    for (name, *_), label in zip(lines, labels, strict=True):
        stem = stem_of(name)
        if stem in by_stem:
            raise UsageError(f"ground truth {truth} names {stem} twice; remove one line")
        by_stem[stem] = options.name_of(int(label), None, truth) if with_indices else label
    return by_stem


def _require_labels(kind: re.Pattern[str], labels: Sequence[str], truth: Path) -> None:
    expected = "a WordNet id such as n01440764" if kind is WNID else "an integer"
    for number, label in enumerate(labels, 1):
        if not kind.fullmatch(label):
            raise DataError(
                f"ground truth {truth} has {label[:70]!r} in label {number:,} where {expected} is "
                "expected; mend that line or name ILSVRC2012_devkit_t12"
            )


def _in_order(
    labels: Sequence[str], stems: Sequence[str], truth: Path, place: Path
) -> dict[str, str]:
    """Label images in the order of their names, whose numbers must be 1, 2, 3 ... without a gap."""
    if len(labels) != len(stems):
        raise UsageError(
            f"ground truth {truth} has {len(labels):,} labels for the {len(stems):,} images of "
            f"{place}; name the ground truth of these images"
        )
    if any(VALIDATION_NAME.fullmatch(f"{stem}.JPEG") for stem in stems):
        numbered = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(labels) + 1)]
        _require_same(numbered, stems, truth, place)
    return dict(zip(stems, labels, strict=True))


def _require_same(
    labelled: Collection[str], stems: Sequence[str], truth: Path, place: Path
) -> None:
    without_label = sorted(set(stems).difference(labelled))
    without_image = sorted(set(labelled).difference(stems))
    if without_label:
        raise UsageError(
            f"{len(without_label):,} of the {len(stems):,} images of {place} have no label in "
            f"ground truth {truth}, {without_label[0]} first; remove them or name the right file"
        )
    if without_image:
        raise UsageError(
            f"{len(without_image):,} of the {len(labelled):,} labels of ground truth {truth} have "
            f"no image in {place}, {without_image[0]} first; copy the images or name the right file"
        )


def ilsvrc_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the ILSVRC ids 1 to 1000, in this order."""
    return tuple(Path(__file__).with_name("ilsvrc2012_wnids.txt").read_text().split())


def _is_kit(truth: Path) -> bool:
    if truth.is_dir() or (truth.name == _KIT_LABELS and (truth.parent / _KIT_CLASSES).is_file()):
        return True
    with truth.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC or truth.suffix == ".tar"


def _kit_labels(kit: Path) -> list[str]:
    if kit.is_file() and kit.name != _KIT_LABELS:
        stored = _from_tar(kit)
    else:
        places = [kit, kit / "data" / _KIT_LABELS, kit / _KIT_LABELS]
        path = next((path for path in places if path.is_file()), None)
        stored = path.read_bytes()[:_FILE_LIMIT_BYTES] if path else None
    if stored is None:
        raise UsageError(f"{kit} does not hold data/{_KIT_LABELS}; {_NAME_KIT}")
    wnids = {str(number): wnid for number, wnid in enumerate(ilsvrc_wnids(), 1)}
    words = stored.decode("latin-1").split()
    for number, word in enumerate(words, 1):
        if word not in wnids:
            raise DataError(
                f"{_KIT_LABELS} of {kit} has {word[:20]!r} in line {number:,} where an ILSVRC id "
                f"in [1, {len(wnids)}] is expected; {_KIT_REMEDY}"
            )
    return [wnids[word] for word in words]


def _from_tar(kit: Path) -> bytes | None:
    try:
        with kit.open("rb") as file, GzipFile(fileobj=file) as unpacked:
            compressed = file.peek(2).startswith(_GZIP_MAGIC)
            # In memory: tarfile believes the sizes that headers of a compressed stream announce.
            stored = (unpacked if compressed else file).read(_KIT_LIMIT_BYTES + 1)
        if len(stored) > _KIT_LIMIT_BYTES:
            raise DataError(f"{kit} holds more than {_KIT_LIMIT_BYTES:,} bytes; {_KIT_REMEDY}")
        with tarfile.open(fileobj=BytesIO(stored), mode="r:") as tar:
            labels = [m for m in tar if m.isreg() and m.name.rpartition("/")[2] == _KIT_LABELS]
            file = tar.extractfile(labels[-1]) if labels else None
            return file.read(_FILE_LIMIT_BYTES) if file else None
    except (EOFError, BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{kit} is cut or damaged ({error}); {_KIT_REMEDY}") from error
