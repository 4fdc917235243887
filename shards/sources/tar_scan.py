"""Scanner of tar files made elsewhere, which locates the bytes of each regular member.

Reads the v7, ustar, GNU and pax headers that GNU tar, bsdtar, Python's tarfile and webdataset's
ShardWriter write (``shards/sources/tar_headers.py``). Only headers are read; nothing is extracted
and no link is followed, so a member name cannot reach the file system. Sizes are held against the
end of the tar before a byte is read, so no header makes this allocate more than
``RECORD_LIMIT_BYTES``.

Stricter than most readers: a tar must have its whole end mark, two blocks of zeros, and nothing but
zeros after it. Otherwise a tar cut between two members, and the second of two tars joined with cat,
would be lost in silence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import pread
from pathlib import Path

from coreset.shards.errors import DataError
from coreset.shards.format.tar import BLOCK_BYTES, END, padded
from coreset.shards.sources import tar_headers
from coreset.shards.sources.tar_headers import REGULAR_FILE

HEADER_LIMIT = 1 << 31
RECORD_LIMIT_BYTES = 1 << 20

_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
_TAIL_BYTES = 1 << 20
_COPY_AGAIN = "copy or download it again"
_MAKE_AGAIN = "make the tar again from its folder"

_SHOWN_CHARACTERS = 100
_PART_LIMIT_BYTES = 255
# No digest could hold a surrogate, which has no UTF-8 form.
_UNSAFE_CHARACTER = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Entry:
    r"""Member of a tar.

    Attributes:
        name: As stored, ``/`` between parts. A byte that is not UTF-8 stands as the four
            characters ``\xNN``, so every name can be printed and encoded; it may still be
            hostile, see ``safe_parts``.
        offset: First byte in the file, also for a tar nested in another.
        size: Bytes; 0 for all but regular files.
        kind: ``REGULAR_FILE``, or in words what it is instead.
    """

    name: str
    offset: int
    size: int
    kind: str


def scan(
    path: Path, *, start: int = 0, end: int | None = None, header_limit: int = HEADER_LIMIT
) -> Iterator[Entry]:
    """Yield the members of the tar at bytes ``[start, end)`` of a file, in stored order.

    Directories, volume labels and pax headers are passed over. Links, devices, sparse files and
    other kinds are yielded with size 0, so that the caller can list them as refused. If two
    extension headers give one member a name or size, the later holds.

    Args:
        path: The file; for a tar stored inside a tar, the outer one.
        start: First byte of the tar.
        end: End of the tar; None is the end of the file.
        header_limit: Headers of any kind above which the tar is refused.

    Raises:
        DataError: The bytes are no tar or are compressed, a header is cut or damaged, a member
            runs over the end, the end mark is missing, or bytes follow it. It comes when the scan
            gets there: the members before the damage have been yielded.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; name a tar file")
    file_bytes = path.stat().st_size
    end = file_bytes if end is None else end
    if not 0 <= start <= end <= file_bytes:
        raise DataError(
            f"{path} has {file_bytes:,} bytes, but should hold a tar at bytes {start:,} to "
            f"{end:,}; {_COPY_AGAIN}"
        )
    with path.open("rb", buffering=0) as file:
        yield from _Scanner(path, file.fileno(), start, end).entries(header_limit)


def safe_parts(name: str) -> tuple[str, ...]:
    """Split a member name at ``/``, without one leading ``./``.

    Raises:
        DataError: The name is absolute, has an empty, ``.`` or ``..`` part or one of more than 255
            bytes, or has a control character or a surrogate.
    """
    if _UNSAFE_CHARACTER.search(name):
        raise DataError(f"member name {shown(name)} has a control character; {_MAKE_AGAIN}")
    parts = tuple(name.removeprefix("./").split("/"))
    for part in parts:
        if part in {"", ".", ".."}:
            raise DataError(f"member name {shown(name)} has the part {part!r}; {_MAKE_AGAIN}")
        if len(part.encode()) > _PART_LIMIT_BYTES:
            raise DataError(
                f"member name {shown(name)} has a part of {len(part.encode()):,} bytes, above the "
                f"limit of {_PART_LIMIT_BYTES}; rename it"
            )
    return parts


def shown(name: str) -> str:
    """Quote a name for error messages: escaped, on one line, about 100 characters at most."""
    return repr(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")


@dataclass(slots=True)
class _Scanner:
    path: Path
    descriptor: int
    start: int
    end: int
    # Pax records of all members that follow, and those of the next member alone.
    shared: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    announced: dict[bytes, bytes] | None = None

    def entries(self, header_limit: int) -> Iterator[Entry]:
        offset = self.start
        n_headers = 0
        while any(header := self._header(offset)):
            n_headers += 1
            if n_headers > header_limit:
                raise self._error(f"has more than {header_limit:,} headers; pack it in pieces")
            if header[tar_headers.FLAG] in tar_headers.EXTENSIONS:
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
        if whole and (tar_headers.has_right_checksum(header) or not any(header)):
            return header
        if offset == self.start:
            raise self._not_a_tar(header)
        if not header:
            raise self._cut("before an end mark (two blocks of zeros)")
        self._require(offset, BLOCK_BYTES, "the header")
        raise self._error(
            f"has a damaged header at byte {offset:,}: checksum "
            f"{header[tar_headers.CHECKSUM]!r}, but its bytes sum to octal "
            f"{tar_headers.checksum(header):o}; {_COPY_AGAIN}"
        )

    def _member(self, header: bytes, offset: int) -> tuple[Entry | None, int]:
        """Return a member (None if it is passed over) and the offset of the next header."""
        flag = header[tar_headers.FLAG]
        pax = {**self.shared, **(self.announced or {})}
        self.announced = None
        raw_name = (
            pax.get(tar_headers.PAX_SPARSE_NAME)
            or pax.get(tar_headers.PAX_NAME)
            or tar_headers.stored_name(header)
        )
        name = raw_name.decode("utf-8", "backslashreplace")
        size = (
            0
            if flag in tar_headers.WITHOUT_BYTES
            else self._size(header, offset, pax.get(tar_headers.PAX_SIZE))
        )
        content = offset + BLOCK_BYTES
        if flag == tar_headers.GNU_SPARSE:
            content = self._after_hole_map(header, content)
        self._require(content, size, f"member {shown(name)}")
        # Before POSIX a directory was a file whose name ends in "/".
        if flag in tar_headers.PASSED_OVER or (
            flag == b"\0" and not size and raw_name.endswith(b"/")
        ):
            return None, content + padded(size)
        kind = (
            tar_headers.SPARSE_FILE
            if tar_headers.PAX_SPARSE in pax
            else tar_headers.KINDS.get(flag, f"member of unknown type {flag!r}")
        )
        entry = Entry(name, content, size if kind == REGULAR_FILE else 0, kind)
        return entry, content + padded(size)

    def _extend(self, header: bytes, offset: int) -> int:
        """Keep the records of an extension header; return the offset of the next header."""
        size = self._size(header, offset, None)
        content = offset + BLOCK_BYTES
        self._require(content, size, "the name or pax record")
        if size > RECORD_LIMIT_BYTES:
            raise self._error(
                f"has a name or pax record of {size:,} bytes at byte {content:,}, above the limit "
                f"of {RECORD_LIMIT_BYTES:,}; {_MAKE_AGAIN}"
            )
        try:
            records = tar_headers.records_of(header[tar_headers.FLAG], self._read(content, size))
        except ValueError as error:
            raise self._error(f"has {error}, at byte {content:,}; {_MAKE_AGAIN}") from None
        if header[tar_headers.FLAG] == tar_headers.PAX_GLOBAL:
            self.shared.update(records)
        else:
            self.announced = {**(self.announced or {}), **records}
        return content + padded(size)

    def _size(self, header: bytes, offset: int, pax_size: bytes | None) -> int:
        try:
            return (
                tar_headers.decimal(pax_size)
                if pax_size
                else tar_headers.number(header[tar_headers.SIZE])
            )
        except ValueError as error:
            raise self._error(
                f"has a size that is {error}, in the header at byte {offset:,}; {_MAKE_AGAIN}"
            ) from None

    def _after_hole_map(self, header: bytes, offset: int) -> int:
        """Return the offset of a GNU sparse file's data, after the blocks with further holes."""
        more = header[tar_headers.SPARSE_CONTINUES]
        while more:
            self._require(offset, BLOCK_BYTES, "the map of holes")
            more = self._read(offset, BLOCK_BYTES)[tar_headers.SPARSE_MAP_CONTINUES]
            offset += BLOCK_BYTES
        return offset

    def _check_end(self, offset: int) -> None:
        if self.announced is not None:
            raise self._error(
                f"has an end mark at byte {offset:,} where an extension header announced a member; "
                f"{_MAKE_AGAIN}"
            )
        self._require(offset, len(END), "the end mark (two blocks of zeros)")
        for position in range(offset, self.end, _TAIL_BYTES):
            tail = self._read(position, min(_TAIL_BYTES, self.end - position)).lstrip(b"\0")
            if tail:
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
