"""Labels of the ILSVRC2012 validation images, in the forms in which they are passed around.

- The development kit: see ``coreset.shards.sources.devkit``.
- A WordNet id a line, in the order of the images.
- ``NAME WNID`` a line, or Kaggle's ``LOC_val_solution.csv`` (``ImageId,PredictionString``, whose
  prediction begins with the WordNet id); names with or without extension.
- Caffe's ``val.txt``: ``NAME INDEX``, where index is a position in the sorted WordNet ids.

A file of integers alone is refused: they may be ILSVRC ids, whose order is another one, or
positions in the sorted WordNet ids, and nothing in the file tells which.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from coreset.shards.errors import DataError, UsageError
from coreset.shards.images.probe import FORMAT_OF_EXTENSION
from coreset.shards.sources.devkit import WNID, is_kit, kit_labels
from coreset.shards.sources.options import SourceOptions
from coreset.shards.sources.tars import VALIDATION_NAME, extension_of
from coreset.shards.tables.formats import text_rows

_BREAK = re.compile(r"[,;|]")
_INDEX = re.compile(r"\d{1,9}")
_KAGGLE_HEADER = "imageid"


def stem_of(name: str) -> str:
    """Name of an image without folders and without the extension of an image format."""
    file = name.rpartition("/")[2]
    return file.rpartition(".")[0] if extension_of(file) in FORMAT_OF_EXTENSION else file


def read_truth(
    truth: Path, stems: Sequence[str], wanted: SourceOptions, place: Path
) -> dict[str, str]:
    """Class of every image.

    Args:
        truth: Development kit or text file.
        stems: Names of the images without extension, sorted.
        wanted: Has the names of Caffe's integer labels.
        place: Where the images lie, for error messages.

    Raises:
        UsageError: It is missing or of no known form, an image has no label or a label no image.
        DataError: It is damaged.
    """
    if not truth.exists():
        raise UsageError(
            f"ground truth {truth} does not exist; name ILSVRC2012_devkit_t12 (folder or tar.gz)"
        )
    if is_kit(truth):
        return _in_order(kit_labels(truth), stems, truth, place)
    lines = _lines(truth)
    first = lines[0]
    if len(first) > 1:
        by_stem = _by_name(lines, truth, wanted)
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
    """Words of each line that has some; without Kaggle's header."""
    rows = text_rows(truth, "ground truth", "")
    lines = [words for _, cells in rows if (words := _BREAK.sub(" ", cells[0]).split())]
    if lines and lines[0][0].lower() == _KAGGLE_HEADER:
        lines = lines[1:]
    if not lines:
        raise UsageError(f"ground truth {truth} is empty; name a file with a label per image")
    return lines


def _by_name(lines: Sequence[Sequence[str]], truth: Path, wanted: SourceOptions) -> dict[str, str]:
    with_indices = _INDEX.fullmatch(lines[0][1]) is not None
    if with_indices and wanted.class_names is None:
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
            wanted.name_of(int(label), None, truth) if with_indices else _wnid(label, number, truth)
        )
    return by_stem


def _wnid(word: str, number: int, truth: Path) -> str:
    if not WNID.fullmatch(word):
        raise _unlike(f"{word:.60}", number, truth, "a WordNet id such as n01440764")
    return word


def _unlike(found: str, number: int, truth: Path, expected: str) -> DataError:
    return DataError(
        f"ground truth {truth} has {found!r} in label {number:,} where {expected} is expected; "
        "mend that line or name ILSVRC2012_devkit_t12"
    )


def _in_order(
    labels: Sequence[str], stems: Sequence[str], truth: Path, place: Path
) -> dict[str, str]:
    """Labels of images that come in the order of their names, 1, 2, 3 ... without a gap."""
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
