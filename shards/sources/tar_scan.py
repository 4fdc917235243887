"""Scanner of tar files made elsewhere, which locates the bytes of each regular member.

Reads v7, ustar, GNU and pax headers (POSIX.1-2017 ``pax``; GNU tar 1.35 manual, "Basic Tar
Format"). Nothing is extracted and no link is followed. Sizes are held against the end of the tar
before a byte is read, so no header makes this allocate more than ``RECORD_LIMIT_BYTES``.

A tar must have its whole end mark, two blocks of zeros, and nothing but zeros after it. Otherwise
a tar cut between two members, or the second of two joined with cat, would be lost in silence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import pread
from pathlib import Path
from typing import NamedTuple

from coreset.shards.errors import DataError
from coreset.shards.format.tar import BLOCK_BYTES, END, padded
from coreset.shards.sources.names import MAKE_AGAIN, shown

RECORD_LIMIT_BYTES = 1 << 20
_TAIL_BYTES = 1 << 20
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip",
}  # fmt: skip
_COPY_AGAIN = "copy or download it again"

_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_FLAG, _MAGIC, _PREFIX = slice(156, 157), slice(257, 265), slice(345, 500)
_GNU_MAGIC = b"ustar  \0"  # where POSIX has the prefix, GNU tar has times
_GNU_NAME, _GNU_LINK, _PAX_GLOBAL = b"L", b"K", b"g"
_EXTENSIONS = {_GNU_NAME, _GNU_LINK, _PAX_GLOBAL, b"x", b"X"}
# Directories, the list of names in GNU tar's incremental archives, volume labels.
_PASSED_OVER = {b"5", b"D", b"V"}
# With these a tar stores no bytes, whatever the size field says (POSIX, GNU tar, tarfile).
_WITHOUT_BYTES = {b"1", b"2", b"3", b"4", b"5", b"6"}
REGULAR_FILE, _SPARSE_FILE = "file", "sparse file"
_KINDS = {
    b"0": REGULAR_FILE, b"\0": REGULAR_FILE, b"7": REGULAR_FILE, b"1": "hard link",
    b"2": "symbolic link", b"3": "character device", b"4": "block device", b"6": "fifo",
    b"M": "part of a multi-volume file", b"S": _SPARSE_FILE,
}  # fmt: skip
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_PAX_NAME, _PAX_SIZE = b"path", b"size"
_PAX_SPARSE, _PAX_SPARSE_NAME = b"GNU.sparse.", b"GNU.sparse.name"


class Entry(NamedTuple):
    """Member of a tar."""

    name: str
    r"""As stored, ``/`` between parts. A byte that is not UTF-8 stands as the four characters
    ``\xNN``, so every name can be printed and encoded; it may still be hostile, see `safe_parts`.
    """
    offset: int
    """First byte in the file, also for a tar nested in another."""
    size: int
    kind: str
    """``REGULAR_FILE``, or in words what it is instead."""


def scan(path: Path, *, start: int = 0, end: int | None = None) -> Iterator[Entry]:
    """Yield the members of the tar at bytes ``[start, end)`` of a file, in stored order.

    Directories, volume labels and pax headers are passed over. Links, devices, sparse files and
    other kinds are yielded with size 0. Of two names or sizes for one member the later holds.
    Members before the damage of a tar are yielded before its DataError.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; name a tar file")
    end = path.stat().st_size if end is None else end
    with path.open("rb", buffering=0) as file:
        yield from _Scanner(path, file.fileno(), start, end).entries()


@dataclass(slots=True)
class _Scanner:
    path: Path
    descriptor: int
    start: int
    end: int
    # Pax records of all members that follow, and those of the next member alone.
    shared: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    announced: dict[bytes, bytes] | None = None

    def entries(self) -> Iterator[Entry]:
        offset = self.start
        while any(header := self._header(offset)):
            if header[_FLAG] in _EXTENSIONS:
                offset = self._extend(header, offset)
                continue
            entry, offset = self._member(header, offset)
            if entry is not None:
                yield entry
        self._check_end(offset)

    def _header(self, offset: int) -> bytes:
        """Read the block at ``offset``: zeros, or a header with the right checksum."""
        header = self._read(offset, max(0, min(BLOCK_BYTES, self.end - offset)))
        whole = len(header) == BLOCK_BYTES
        if whole and (_number(header[_CHECKSUM]) == _checksum(header) or not any(header)):
            return header
        if offset == self.start:
            raise self._not_a_tar(header)
        if not header:
            raise self._cut("before an end mark (two blocks of zeros)")
        self._require(offset, BLOCK_BYTES, "the header")
        raise self._error(
            f"has a damaged header at byte {offset:,}: checksum {header[_CHECKSUM]!r}, but its "
            f"bytes sum to octal {_checksum(header):o}; {_COPY_AGAIN}"
        )

    def _member(self, header: bytes, offset: int) -> tuple[Entry | None, int]:
        """Return a member (None if it is passed over) and the offset of the next header."""
        flag = header[_FLAG]
        pax = {**self.shared, **(self.announced or {})}
        self.announced = None
        raw_name = pax.get(_PAX_SPARSE_NAME) or pax.get(_PAX_NAME) or _stored_name(header)
        name = raw_name.decode("utf-8", "backslashreplace")
        size = 0 if flag in _WITHOUT_BYTES else self._size(header, offset, pax.get(_PAX_SIZE))
        content = offset + BLOCK_BYTES
        self._require(content, size, f"member {shown(name)}")
        after = content + padded(size)
        # Before POSIX a directory was a file whose name ends in "/".
        if flag in _PASSED_OVER or (flag == b"\0" and not size and raw_name.endswith(b"/")):
            return None, after
        kind = _KINDS.get(flag, f"member of unknown type {flag!r}")
        kind = _SPARSE_FILE if _PAX_SPARSE in pax else kind
        return Entry(name, content, size if kind == REGULAR_FILE else 0, kind), after

    def _extend(self, header: bytes, offset: int) -> int:
        """Keep the records of an extension header; return the offset of the next header."""
        flag, size = header[_FLAG], self._size(header, offset, None)
        content = offset + BLOCK_BYTES
        self._require(content, size, "the name or pax record")
        if size > RECORD_LIMIT_BYTES:
            raise self._error(
                f"has a name or pax record of {size:,} bytes at byte {content:,}, above the limit "
                f"of {RECORD_LIMIT_BYTES:,}; {MAKE_AGAIN}"
            )
        stored = self._read(content, size)
        records: dict[bytes, bytes] = {}
        if flag == _GNU_NAME:
            records = {_PAX_NAME: _text(stored)}
        elif flag != _GNU_LINK:
            records = self._pax_records(stored, content)
        if flag == _PAX_GLOBAL:
            self.shared.update(records)
        else:
            self.announced = {**(self.announced or {}), **records}
        return content + padded(size)

    def _pax_records(self, stored: bytes, offset: int) -> dict[bytes, bytes]:
        """Parse records ``LENGTH KEY=VALUE``, each with a line feed; keep names and sizes."""
        records: dict[bytes, bytes] = {}
        at = 0
        while at < len(stored) and stored[at]:
            record = _PAX_RECORD.match(stored, at)
            stop = at + int(record[1]) if record else 0
            if not record or not record.end() < stop <= len(stored) or stored[stop - 1] != 10:
                raise self._error(
                    f"has a pax record {stored[at : at + 20]!r} of a wrong length, at byte "
                    f"{offset:,}; {MAKE_AGAIN}"
                )
            if record[2].startswith(_PAX_SPARSE):
                records[_PAX_SPARSE] = b"yes"
            if record[2] in {_PAX_NAME, _PAX_SIZE, _PAX_SPARSE_NAME}:
                records[record[2]] = stored[record.end() : stop - 1]
            at = stop
        return records

    def _size(self, header: bytes, offset: int, pax_size: bytes | None) -> int:
        stored = pax_size or header[_SIZE]
        if not pax_size:
            size = _number(stored)
        else:
            size = int(stored) if re.fullmatch(rb"\d{1,19}", stored) else None
        if size is None:
            raise self._error(
                f"has the size {stored[:100]!r}, which is no number, in the header at byte "
                f"{offset:,}; {MAKE_AGAIN}"
            )
        return size

    def _check_end(self, offset: int) -> None:
        if self.announced is not None:
            raise self._error(
                f"has an end mark at byte {offset:,} where an extension header announced a member; "
                f"{MAKE_AGAIN}"
            )
        self._require(offset, len(END), "the end mark (two blocks of zeros)")
        for position in range(offset, self.end, _TAIL_BYTES):
            if self._read(position, min(_TAIL_BYTES, self.end - position)).strip(b"\0"):
                raise self._error(
                    f"has more than zeros after the end mark at byte {offset:,}, as when tars are "
                    "joined with cat; unpack it with `tar --ignore-zeros -xf` and pack the folder"
                )

    def _require(self, offset: int, size: int, what: str) -> None:
        if offset + size > self.end:
            raise self._cut(f"but {what} takes {size:,} bytes from byte {offset:,}")

    def _read(self, offset: int, size: int) -> bytes:
        block = pread(self.descriptor, size, offset)
        if len(block) < size:
            raise self._error(f"shrank below byte {offset + size:,} while it was read; restore it")
        return block

    def _not_a_tar(self, header: bytes) -> DataError:
        for magic, compression in _COMPRESSIONS.items():
            if header.startswith(magic):
                return self._error(f"holds {compression} data; decompress it to a plain tar first")
        if len(header) < BLOCK_BYTES:
            return self._cut("before a whole tar header")
        return self._error(f"has no tar header at byte {self.start:,}; name a plain tar file")

    def _cut(self, detail: str) -> DataError:
        return self._error(f"ends at byte {self.end:,}, {detail}; {_COPY_AGAIN}")

    def _error(self, finding: str) -> DataError:
        where = f"{self.path} (tar from byte {self.start:,})" if self.start else str(self.path)
        return DataError(f"{where} {finding}")


def _text(stored: bytes) -> bytes:
    return stored.partition(b"\0")[0]


def _stored_name(header: bytes) -> bytes:
    """Return the member's name in the header, with the prefix that ustar keeps apart."""
    name, magic = _text(header[_NAME]), header[_MAGIC]
    if magic.startswith(b"ustar") and magic != _GNU_MAGIC and header[_PREFIX.start]:
        return _text(header[_PREFIX]) + b"/" + name
    return name


def _number(stored: bytes) -> int | None:
    """Parse octal digits, or base 256 if the first bit is set; None if negative or no number."""
    if stored[0] & 0x80:
        is_negative = stored[0] & 0x40
        return None if is_negative else int.from_bytes(stored) - (0x80 << 8 * (len(stored) - 1))
    digits = _text(stored).strip(b" ")
    return None if digits.strip(b"01234567") else int(digits or b"0", 8)


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
