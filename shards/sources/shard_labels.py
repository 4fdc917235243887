"""Parse the labels in WebDataset shards, and ``_info.json`` beside the shards.

The fields of ``_info.json`` are those that ``timm/data/readers/reader_wds.py`` reads (splits with
``filenames`` and ``shard_lengths``), and ``class_names``, which ``shards.export.formats`` adds.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from coreset.shards.errors import DataError

Fields: TypeAlias = dict[str, Any]

INFO_NAMES = ("_info.json", "info.json")
LABEL_LIMIT_BYTES = {"cls": 32, "json": 1 << 20}
_INFO_LIMIT_BYTES = 1 << 26
_NUMBER_FIELDS = ("label", "cls")
_NAME_FIELDS = ("wnid", "class")
_INTEGER = re.compile(rb"\s*([+-]?[0-9]{1,18})\s*")


class LabelError(Exception):
    """Bytes that are no label; the text says what stands where what is expected."""


def integer(stored: bytes) -> int:
    """Parse an ASCII decimal, which may have blanks around it.

    Raises:
        LabelError: The bytes are something else.
    """
    match = _INTEGER.fullmatch(stored)
    if match is None:
        raise LabelError(f"label {stored!r} where an integer is expected")
    return int(match[1])


def parse_json(stored: bytes) -> Fields:
    """Parse a JSON object.

    Raises:
        LabelError: The bytes are something else.
    """
    try:
        fields: object = json.loads(stored)
    except (ValueError, RecursionError):
        fields = None
    return _object(fields, f"json {stored[:40]!r}")


def number_in(fields: Fields) -> int | None:
    """Return the integer label of a sample, if it has one.

    Raises:
        LabelError: The field holds something else.
    """
    for name in _NUMBER_FIELDS:
        if name in fields:
            value = fields[name]
            if type(value) is not int:  # bool is a subclass of int
                raise LabelError(f"json field {name} {value!r:.60} where an integer is expected")
            return value
    return None


def name_in(fields: Fields) -> str | None:
    """Return the class name of a sample, if it has one.

    Raises:
        LabelError: The field holds something else.
    """
    for name in _NAME_FIELDS:
        if name in fields:
            value = fields[name]
            if not isinstance(value, str):
                raise LabelError(f"json field {name} {value!r:.60} where a name is expected")
            return value
    return None


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """Content of ``_info.json``: class names and shard lengths, as far as it has them."""

    path: Path
    class_names: tuple[str, ...] | None = None
    splits: tuple[Mapping[str, int], ...] = ()
    """Samples by the file name of the shard, per split."""

    def require_all(self, folder: Path, shards: Sequence[str]) -> None:
        """Refuse a folder that holds some of the listed shards of a split and lacks others.

        Raises:
            DataError: Some are missing.
        """
        for lengths in self.splits:
            missing = sorted(set(lengths) - set(shards))
            if 0 < len(missing) < len(lengths):
                raise DataError(
                    f"{folder} lacks {len(missing):,} of the {len(lengths):,} shards that "
                    f"{self.path.name} lists, {missing[0]} first; copy or download them too"
                )

    def require_length(self, shard: Path, n_samples: int) -> None:
        """Refuse a shard that holds more or fewer samples than listed.

        Raises:
            DataError: It does.
        """
        for lengths in self.splits:
            expected = lengths.get(shard.name, n_samples)
            if expected != n_samples:
                raise DataError(
                    f"{shard} holds {n_samples:,} samples, but {self.path.name} says "
                    f"{expected:,}; copy or download both again"
                )


def read_info(folder: Path) -> ShardInfo:
    """Read ``_info.json`` or ``info.json`` of a folder; empty if it has neither.

    Raises:
        DataError: It is no JSON object, or a field of it has a wrong type.
    """
    path = next((folder / name for name in INFO_NAMES if (folder / name).is_file()), None)
    if path is None:
        return ShardInfo(folder / INFO_NAMES[0])
    with path.open("rb") as file:
        stored = file.read(_INFO_LIMIT_BYTES)
    try:
        fields = parse_json(stored)
        return ShardInfo(path, _class_names(fields), _splits(fields))
    except LabelError as error:
        raise DataError(f"{path} has {error}; mend or remove it") from None


def _class_names(fields: Fields) -> tuple[str, ...] | None:
    if "class_names" not in fields:
        return None
    names = _list(fields, "class_names", str)
    if len(set(names)) < len(names):
        raise LabelError("a name twice in class_names")
    return tuple(names)


def _splits(fields: Fields) -> tuple[dict[str, int], ...]:
    splits: object = fields.get("splits", {})
    return tuple(_lengths(split) for split in _object(splits, "splits").values())


def _lengths(split: object) -> dict[str, int]:
    fields = _object(split, "a split")
    files, lengths = _list(fields, "filenames", str), _list(fields, "shard_lengths", int)
    if len(files) != len(lengths):
        raise LabelError(f"{len(files):,} filenames but {len(lengths):,} shard_lengths in a split")
    return dict(zip(files, lengths, strict=True))


def _object(value: object, what: str) -> Fields:
    if not isinstance(value, dict):
        raise LabelError(f"{what} where an object is expected")
    return cast("Fields", value)


def _list(fields: Fields, name: str, kind: type) -> list[Any]:
    values: object = fields.get(name)
    if not isinstance(values, list) or not all(
        type(value) is kind for value in cast("list[Any]", values)
    ):
        raise LabelError(f"{name} that are no list of {kind.__name__}")
    return cast("list[Any]", values)
