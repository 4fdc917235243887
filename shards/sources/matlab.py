"""Fields of a struct array in a MATLAB file, as far as ``meta.mat`` of ILSVRC2012 needs it.

Follows "MAT-File Level 5 File Format" (MathWorks): elements with a tag of type and size, of which a
matrix holds others. ``scipy.io.loadmat`` reads much more, but crashes the process on some damaged
files (scipy 1.17: segmentation fault); here no byte is read outside an element, and nothing is
decompressed beyond a limit.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

Value: TypeAlias = str | float | None
"""Text, the first number of an array, or None for what is neither."""

_HEADER_BYTES = 128
_LITTLE_ENDIAN = b"IM"  # all that MATLAB has run on since 2007
_LIMIT_BYTES = 1 << 24
_MATRIX, _COMPRESSED = 14, 15
_STRUCT_CLASS, _CHAR_CLASS = 2, 4
# Data types by their numbers in tags, as codes of the struct module.
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}


class MatlabError(Exception):
    """Bytes that are no MATLAB file of level 5, or lack what is looked for."""


class _Element(NamedTuple):
    kind: int
    content: memoryview


class _Matrix(NamedTuple):
    array_class: int
    name: bytes
    rest: Iterator[_Element]
    """Elements after flags, dimensions and name."""


def struct_fields(stored: bytes, variable: str, fields: Sequence[str]) -> list[tuple[Value, ...]]:
    """Values of some fields, for each struct of an array.

    Args:
        stored: The file.
        variable: Name of the array.
        fields: Names of the fields.

    Raises:
        MatlabError: It is no such file, or has no such array with these fields.
    """
    if stored[126:_HEADER_BYTES] != _LITTLE_ENDIAN:
        raise MatlabError("it has no header of a MATLAB file")
    try:
        for element in _elements(memoryview(stored)[_HEADER_BYTES:]):
            matrix = _matrix(_decompressed(element))
            if matrix.name == variable.encode():
                return list(_structs(matrix, fields))
    # What unpacking and decompressing raise for bytes that mean something else.
    except (struct.error, zlib.error, UnicodeError, ValueError) as error:
        raise MatlabError(f"it is damaged: {error}") from error
    raise MatlabError(f"it has no array {variable}")


def _elements(content: memoryview) -> Iterator[_Element]:
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        begin, end = at + 8, at + 8 + size
        at = end if kind == _COMPRESSED else at + 8 + -(-size // 8) * 8
        if kind >> 16:  # the small format: size and type in one number, then up to 4 bytes
            kind, size = kind & 0xFFFF, kind >> 16
            begin, end, at = begin - 4, begin - 4 + min(size, 4), begin
        if end > len(content):
            raise MatlabError(f"it is damaged: an element ends at byte {end:,} of {len(content):,}")
        yield _Element(kind, content[begin:end])


def _decompressed(element: _Element) -> _Element:
    if element.kind != _COMPRESSED:
        return element
    stream = zlib.decompressobj()
    content = stream.decompress(element.content, _LIMIT_BYTES)
    if not stream.eof:
        raise MatlabError(f"it is cut, or holds more than {_LIMIT_BYTES:,} bytes")
    return next(_elements(memoryview(content)), _Element(0, memoryview(b"")))


def _matrix(element: _Element) -> _Matrix:
    """The head of a matrix; of class 0 if it is empty or no matrix."""
    parts = _elements(element.content)
    if element.kind != _MATRIX or not element.content:
        return _Matrix(0, b"", parts)
    flags, _, name = islice(parts, 3)
    return _Matrix(struct.unpack_from("<I", flags.content)[0] & 0xFF, bytes(name.content), parts)


def _structs(matrix: _Matrix, fields: Sequence[str]) -> Iterator[tuple[Value, ...]]:
    if matrix.array_class != _STRUCT_CLASS:
        raise MatlabError("its array holds no structs")
    width, names = islice(matrix.rest, 2)
    (length,) = struct.unpack_from("<i", width.content)
    joined = bytes(names.content)
    there = [
        joined[at : at + length].partition(b"\0")[0].decode()
        for at in range(0, len(joined), length)
    ]
    if not set(fields) <= set(there):
        raise MatlabError(f"its structs lack some of {', '.join(fields)}")
    positions = [there.index(name) for name in fields]
    while values := list(islice(matrix.rest, len(there))):
        if len(values) < len(there):
            raise MatlabError("it is damaged: its last struct lacks a field")
        yield tuple(_value(values[position]) for position in positions)


def _value(element: _Element) -> Value:
    matrix = _matrix(element)
    kind, content = next(matrix.rest, _Element(0, memoryview(b"")))
    if matrix.array_class == _CHAR_CLASS and kind in _TEXTS:
        return bytes(content).decode(_TEXTS[kind])
    if kind in _NUMBERS and content:
        (number,) = struct.unpack_from(f"<{_NUMBERS[kind]}", content)
        return number
    return None
