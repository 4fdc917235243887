"""Label columns of tables that hold images or list them.

The label is the first of ``LABEL_COLUMNS`` that is there: a class name, or an integer, which is a
position in a class list.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.base import SourceOptions
from coreset.shards.tables.formats import is_text
from coreset.shards.tables.vocabulary import LABEL_COLUMNS, class_in, plain_name

_ParquetFile: TypeAlias = Any  # pyarrow.parquet.ParquetFile, which has no types
_Schema: TypeAlias = Any
_Column: TypeAlias = Any


class RowClasses(NamedTuple):
    """Classes of the rows of a parquet file."""

    names: list[str]
    """Each class name that occurs, once."""
    codes: NDArray[np.int64]
    """Position in ``names`` by row."""
    listed: tuple[str, ...] = ()
    """Class list in which integer labels are positions."""


def label_column(columns: Sequence[str], place: Path) -> str:
    """Choose the first of ``LABEL_COLUMNS`` that a table has, in any spelling.

    Raises:
        UsageError: It has none, or one of them twice.
    """
    for name in map(plain_name, LABEL_COLUMNS):
        spellings = [column for column in columns if plain_name(column) == name]
        if len(spellings) > 1:
            raise UsageError(f"{place} has the columns {', '.join(spellings)}; rename one of them")
        if spellings:
            return spellings[0]
    raise UsageError(
        f"{place} has no label column ({', '.join(LABEL_COLUMNS)}), only "
        f"{', '.join(columns) or 'no header'}; rename the column of the labels"
    )


def row_classes(file: _ParquetFile, path: Path, options: SourceOptions) -> RowClasses:
    """Read the classes of all rows from the label column of an open parquet file.

    Integers are positions in ``options.class_names``, else in the names that Hugging Face
    ``datasets`` keeps in the schema.

    Raises:
        UsageError: There is no such column, it holds neither integers nor text, its integers have
            no names, or a class cannot be the beginning of a sample key.
        DataError: A label is missing or not in the range of the class list.
    """
    name = label_column(file.schema_arrow.names, path)
    labels = file.read(columns=[name])[name]
    _require_labels(labels, path)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if is_text(labels.type):  # views cannot be encoded
        labels = labels.cast(pa.large_string())
    if pa.types.is_integer(labels.type):
        names = options.class_names or _stored_class_names(file.schema_arrow, name)
        classes = _named(labels.cast(pa.int64()).to_numpy(), names, path, options)
    elif is_text(labels.type):
        encoded = labels.combine_chunks().dictionary_encode()
        class_of_text = [class_in(text) for text in encoded.dictionary.to_pylist()]
        names = list(dict.fromkeys(class_of_text))
        code_of = {name: code for code, name in enumerate(names)}
        of_text = np.array([code_of[name] for name in class_of_text], dtype=np.int64)
        classes = RowClasses(names, of_text[encoded.indices.to_numpy()])
    else:
        raise UsageError(
            f"column {name} of {path} holds {labels.type}; write labels as integers or text"
        )
    for class_name in classes.names:
        require_class_name(class_name, path)
    return classes


def require_class_name(name: str, place: Path) -> None:
    """Refuse a class name that cannot be the first part of a sample key.

    Raises:
        UsageError: It is empty, a path, or a special name of folders.
    """
    if "/" in name or name.strip() in {"", ".", ".."}:
        raise UsageError(
            f"class {name!a} of {place} cannot begin a sample key; name the classes otherwise "
            "with --class-names, or in the table"
        )


def _require_labels(labels: _Column, path: Path) -> None:
    if labels.null_count:
        row = int(np.flatnonzero(labels.is_null().to_numpy())[0])
        raise DataError(
            f"{path} row {row} has no label ({labels.null_count:,} rows have none); remove or "
            "label these rows"
        )


def _stored_class_names(schema: _Schema, column: str) -> tuple[str, ...] | None:
    """Read the names of a ``ClassLabel`` column as Hugging Face ``datasets`` stores them.

    The layout is that of ``datasets``, src/datasets/arrow_writer.py: JSON under ``huggingface``.
    """
    try:
        document = json.loads((schema.metadata or {})[b"huggingface"])
        names = document["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _named(
    labels: NDArray[np.int64], names: Sequence[str] | None, path: Path, options: SourceOptions
) -> RowClasses:
    if names is not None:
        _require_range(labels, len(names), path)
    numbers, codes = np.unique(labels, return_inverse=True)
    classes = [options.name_of(label, names, path) for label in numbers.tolist()]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise UsageError(
            f"class {twice[0]} of {path} stands for two labels; name the classes with --class-names"
        )
    return RowClasses(classes, codes.astype(np.int64), tuple(names or ()))


def _require_range(labels: NDArray[np.int64], n_classes: int, path: Path) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if outside.size:
        raise DataError(
            f"{path} row {outside[0]} has label {labels[outside[0]]}, not in [0, {n_classes}), the "
            f"range of the class list ({outside.size:,} rows have such labels); remove these rows "
            "or name the right list with --class-names"
        )
