"""Lists of images, labels and class names as people have them; whoever calls a peer reads them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coreset.bench.robustness.cases import Case, Inputs, N, photo_truths
from coreset.bench.robustness.faults import (
    class_name,
    jpeg,
    rgb,
    sample_members,
    write_photos,
    write_tar,
)
from coreset.bench.robustness.outcomes import Expected

_NAME = "list"
"""Of every list; a message that has it names the fault."""


def table_cases() -> Iterator[Case]:
    """Yield cases of lists, which ``coreset pack`` gets as its source or by an option."""
    cases: tuple[tuple[str, str, Callable[[Path], Inputs]], ...] = (
        ("a list without a header", "paths and classes, comma", _without_header),
        ("a list from a spreadsheet", "semicolons, byte order mark, CRLF", _from_spreadsheet),
        ("a class list in text order", "0, 1, 10, 11, 2 ... as imagenet_class_index.json",
         _in_text_order),
        ("a class list numbered from 1", "for labels from 0", _numbered_from_1),
        ("labels by absolute paths", "a .csv that moves each image to the next class",
         _by_absolute_paths),
        ("labels of other images", "a .csv, none of whose paths is there", _of_others),
        ("one path in many rows", "of parquet: two images of each class", _sharing_a_path),
        ("images as binary_view", "a column of parquet", _as_views),
    )  # fmt: skip
    for fault, injected, prepare in cases:
        yield Case(row=43, fault=fault, injected=injected, kind="table", prepare=prepare)


def _without_header(folder: Path) -> Inputs:
    return _listed(folder, "".join(f"{path},{name}\n" for path, name in _photos(folder)))


def _from_spreadsheet(folder: Path) -> Inputs:
    rows = "".join(f"{path};{name}\r\n" for path, name in _photos(folder))
    return _listed(folder, f"\ufeffFile Name;Class\r\n{rows}")


def _photos(folder: Path) -> list[tuple[str, str]]:
    """Write photos; return their paths below ``folder`` and their classes."""
    paths = sorted(write_photos(folder / "src", N).glob("*/*"))
    return [(str(path.relative_to(folder)), path.parent.name) for path in paths]


def _listed(folder: Path, text: str) -> Inputs:
    place = folder / f"{_NAME}.csv"
    place.write_text(text, encoding="utf-8", newline="")
    return Inputs(place=place, expected=_expected())


def _expected() -> Expected:
    return Expected(truths=photo_truths(), culprits=(f"{_NAME}.",))


def _in_text_order(folder: Path) -> Inputs:
    numbers = sorted(range(N), key=str)
    listed = {str(number): [f"n{number:08d}", "thing"] for number in numbers}
    return _with_class_names(folder, "json", json.dumps(listed))


def _numbered_from_1(folder: Path) -> Inputs:
    lines = "".join(f"{label + 1} {class_name(label)}\n" for label in range(N))
    return _with_class_names(folder, "txt", lines)


def _with_class_names(folder: Path, extension: str, text: str) -> Inputs:
    """Write a shard of integer labels, and their names."""
    members = [one for label in range(N) for one in sample_members(label)]
    write_tar(folder / "src" / "train-0000.tar", members)
    names = folder / f"{_NAME}.{extension}"
    names.write_text(text)
    options = ("--class-names", str(names))
    return Inputs(place=folder / "src", expected=_expected(), options=options)


def _by_absolute_paths(folder: Path) -> Inputs:
    rows = [(folder / path, (at + 1) % N) for at, (path, _) in enumerate(_photos(folder))]
    moved = {label: rgb(jpeg(at)) for at, (_, label) in enumerate(rows)}
    return _labelled(folder, rows, replace(_expected(), truths=moved))


def _of_others(folder: Path) -> Inputs:
    _photos(folder)
    rows = [(Path(f"/data/other/{label}.JPEG"), label) for label in range(N)]
    return _labelled(folder, rows, _expected())


def _labelled(folder: Path, rows: list[tuple[Path, int]], expected: Expected) -> Inputs:
    labels = folder / f"{_NAME}.csv"
    lines = "".join(f"{path},{class_name(label)}\n" for path, label in rows)
    labels.write_text(f"path,label\n{lines}")
    options = ("--labels", str(labels), "--column", "label")
    return Inputs(place=folder / "src", expected=expected, options=options)


def _sharing_a_path(folder: Path) -> Inputs:
    images = [{"bytes": jpeg(seed), "path": "image.jpg"} for seed in range(2 * N)]
    second = {label: rgb(jpeg(N + label)) for label in range(N)}
    return _parquet(folder, pa.array(images), replace(_expected(), beside=second, both=True))


def _as_views(folder: Path) -> Inputs:
    images = pa.array([jpeg(label) for label in range(N)], pa.binary_view())
    return _parquet(folder, images, _expected())


def _parquet(folder: Path, images: Any, expected: Expected) -> Inputs:  # noqa: ANN401 - of pyarrow
    labels = [class_name(row % N) for row in range(len(images))]
    place = folder / f"{_NAME}.parquet"
    pq.write_table(pa.table({"image": images, "label": labels}), place)
    return Inputs(place=place, expected=expected)
