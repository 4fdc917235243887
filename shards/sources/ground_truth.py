"""Labels of the ILSVRC2012 validation images, in the forms in which they are passed around.

- The development kit, as a folder or tar. Line i of its
  ``data/ILSVRC2012_validation_ground_truth.txt`` is the ILSVRC id of image i. These ids are not in
  the order of the sorted WordNet ids: 1 is n02119789, class 278. ``ilsvrc2012_wnids.txt`` beside
  this module has the WordNet id of ILSVRC id i in line i. Nothing of a tar is extracted.
- A WordNet id a line, in the order of the images.
- ``NAME WNID`` a line, or Kaggle's ``LOC_val_solution.csv`` (``ImageId,PredictionString``, whose
  prediction begins with the WordNet id); names with or without extension.
- Caffe's ``val.txt``: ``NAME INDEX``, where index is a position in the sorted WordNet ids.

A file of integers alone is refused: they may be ILSVRC ids or positions in the sorted WordNet ids,
and nothing in the file tells which.
"""

import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.base import SourceOptions
from coreset.shards.sources.names import WNID, stem_of
from coreset.shards.sources.tars import VALIDATION_NAME
from coreset.shards.tables.formats import text_rows

KIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"
_KIT_CLASSES = "meta.mat"
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_FORMAT = zlib.MAX_WBITS | 16
# The kit has 2.5 MB, its labels less than 1 MB; nothing larger is decompressed.
_KIT_LIMIT_BYTES = 1 << 26
_FILE_LIMIT_BYTES = 1 << 22
_KIT_REMEDY = "download ILSVRC2012_devkit_t12 again"
_BREAK = re.compile(r"[,;|]")
_INDEX = re.compile(r"\d{1,9}")
_KAGGLE_HEADER = "imageid"


def read_truth(
    truth: Path, stems: Sequence[str], options: SourceOptions, place: Path
) -> dict[str, str]:
    """Read the class of every image.

    Args:
        truth: Development kit or text file.
        stems: Names of the images without extension, sorted.
        options: Has the names of Caffe's integer labels.
        place: Where the images lie, for error messages.

    Raises:
        UsageError: It is missing or of no known form, an image has no label or a label no image.
        DataError: It is damaged.
    """
    if not truth.exists():
        raise UsageError(
            f"ground truth {truth} does not exist; name ILSVRC2012_devkit_t12 (folder or tar.gz)"
        )
    if _is_kit(truth):
        return _in_order(_kit_labels(truth), stems, truth, place)
    lines = _lines(truth)
    first = lines[0]
    if len(first) > 1:
        by_stem = _by_name(lines, truth, options)
        _require_same(by_stem, stems, truth, place)
        return by_stem
    if _INDEX.fullmatch(first[0]):
        raise UsageError(
            f"ground truth {truth} holds numbers alone, and ILSVRC ids are not in the order of the "
            "sorted WordNet ids; name ILSVRC2012_devkit_t12 (folder or tar.gz), which says what "
            "they stand for"
        )
    labels = [_wnid(line[0], number, truth) for number, line in enumerate(lines, 1)]
    return _in_order(labels, stems, truth, place)


def _lines(truth: Path) -> list[list[str]]:
    """Read the words of each line that has some, without Kaggle's header."""
    rows = text_rows(truth, "ground truth", "")
    lines = [words for _, cells in rows if (words := _BREAK.sub(" ", cells[0]).split())]
    if lines and lines[0][0].lower() == _KAGGLE_HEADER:
        lines = lines[1:]
    if not lines:
        raise UsageError(f"ground truth {truth} is empty; name a file with a label per image")
    return lines


def _by_name(lines: Sequence[Sequence[str]], truth: Path, options: SourceOptions) -> dict[str, str]:
    with_indices = _INDEX.fullmatch(lines[0][1]) is not None
    if with_indices and options.class_names is None:
        raise UsageError(
            f"ground truth {truth} holds positions in the sorted WordNet ids; name these with "
            "--class-names imagenet-1k"
        )
    by_stem: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if len(line) < 2:
            raise _unlike(f"{line[0]:.60} alone", number, truth, "a name and a label")
        stem, label = stem_of(line[0]), line[1]
        if stem in by_stem:
            raise UsageError(f"ground truth {truth} names {stem} twice; remove one line")
        if with_indices and not _INDEX.fullmatch(label):
            raise _unlike(f"{label:.60}", number, truth, "an integer")
        by_stem[stem] = (
            options.name_of(int(label), None, truth)
            if with_indices
            else _wnid(label, number, truth)
        )
    return by_stem


def _wnid(word: str, number: int, truth: Path) -> str:
    if not WNID.fullmatch(word):
        raise _unlike(f"{word:.60}", number, truth, "a WordNet id such as n01440764")
    return word


def _unlike(word: str, number: int, truth: Path, expected: str) -> DataError:
    return DataError(
        f"ground truth {truth} has {word!r} in label {number:,} where {expected} is expected; "
        "mend that line or name ILSVRC2012_devkit_t12"
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
        numbered = {f"ILSVRC2012_val_{number:08d}": "" for number in range(1, len(labels) + 1)}
        _require_same(numbered, stems, truth, place)
    return dict(zip(stems, labels, strict=True))


def _require_same(
    labelled: Mapping[str, str], stems: Sequence[str], truth: Path, place: Path
) -> None:
    without_label = sorted(set(stems) - set(labelled))
    without_image = sorted(set(labelled) - set(stems))
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


@cache
def ilsvrc_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the ILSVRC ids 1 to 1000, in this order."""
    return tuple(Path(__file__).with_name("ilsvrc2012_wnids.txt").read_text().split())


def _is_kit(truth: Path) -> bool:
    """Test for the development kit, or for its labels beside its ``meta.mat``."""
    if truth.is_dir() or (truth.name == KIT_LABELS and (truth.parent / _KIT_CLASSES).is_file()):
        return True
    with truth.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC or truth.suffix == ".tar"


def _kit_labels(kit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of their numbers."""
    wnids = {str(number): wnid for number, wnid in enumerate(ilsvrc_wnids(), 1)}
    labels: list[str] = []
    for number, line in enumerate(_kit_file(kit).decode("latin-1").split(), 1):
        if line not in wnids:
            raise DataError(
                f"{KIT_LABELS} of {kit} has {line[:20]!r} in line {number:,} where an ILSVRC id "
                f"in [1, {len(wnids)}] is expected; {_KIT_REMEDY}"
            )
        labels.append(wnids[line])
    return labels


def _kit_file(kit: Path) -> bytes:
    """Read the labels of a kit: a folder, its folder ``data``, its labels, or a tar."""
    if kit.is_file() and kit.name != KIT_LABELS:
        labels = _from_tar(kit)
    else:
        places = [kit] if kit.is_file() else [kit / "data" / KIT_LABELS, kit / KIT_LABELS]
        path = next((path for path in places if path.is_file()), None)
        labels = path.read_bytes()[:_FILE_LIMIT_BYTES] if path else None
    if labels is None:
        raise UsageError(
            f"{kit} does not hold data/{KIT_LABELS}; name ILSVRC2012_devkit_t12 (folder or tar.gz)"
        )
    return labels


def _from_tar(kit: Path) -> bytes | None:
    try:
        # From memory: tarfile believes the sizes that headers of a compressed stream announce.
        with tarfile.open(fileobj=BytesIO(_decompressed(kit)), mode="r:") as tar:
            labels = [m for m in tar if m.isreg() and m.name.rpartition("/")[2] == KIT_LABELS]
            file = tar.extractfile(labels[-1]) if labels else None
            return file.read(_FILE_LIMIT_BYTES) if file else None
    except tarfile.TarError as error:
        raise DataError(f"{kit} is no whole tar ({error}); {_KIT_REMEDY}") from error


def _decompressed(kit: Path) -> bytes:
    with kit.open("rb") as file:
        stored = file.read(_KIT_LIMIT_BYTES + 1)
    whole = True
    if stored.startswith(_GZIP_MAGIC):
        stream = zlib.decompressobj(_GZIP_FORMAT)
        try:
            stored = stream.decompress(stored, _KIT_LIMIT_BYTES + 1)
        except zlib.error as error:
            raise DataError(f"{kit} is damaged ({error}); {_KIT_REMEDY}") from error
        whole = stream.eof
    if len(stored) > _KIT_LIMIT_BYTES:
        raise DataError(f"{kit} holds more than {_KIT_LIMIT_BYTES:,} bytes; {_KIT_REMEDY}")
    if not whole:
        raise DataError(f"{kit} is cut; {_KIT_REMEDY}")
    return stored
