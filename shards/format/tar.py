"""Shards: POSIX ustar files, and the index of each that DALI reads.

A sample is an image member in its true format and a label in ASCII decimal: ``000000042.jpg``,
``000000042.cls``. Times, owners and modes are constant, so equal samples give equal bytes. The
index has the format v1.2 of DALI's ``tools/wds2idx.py``: a first line ``v1.2 SAMPLES``, then a line
per sample with ``extension offset size member`` for each member.
"""

import errno
import fcntl
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from coreset.shards.format.files import new_file, temporary_name, write_atomically

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
MOST_ADDED = 4 * BLOCK_BYTES
"""Most bytes of a sample in a tar beside those of its image."""
MEMBER_NAME = re.compile(r"\d{9}\.(?:jpg|png|webp|cls)")
_SIZE, _CHECKSUM = slice(124, 135), slice(148, 156)
_BUFFER_BYTES = 1 << 22
_ALIGNMENT = 4096  # at least the block size of the common disks and file systems


class Member(NamedTuple):
    """Place of one file's bytes in a tar."""

    name: str
    offset: int
    size: int


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    """Return the index file of a shard."""
    return shard.with_suffix(".idx")


_BLANK_HEADER = (
    bytes(100)  # name
    + b"0000644\0" + b"0000000\0" * 2  # mode, user, group
    + bytes(12) + b"00000000000\0"  # size, time
    + b" " * 8  # checksum, counted as blanks
    + b"0" + bytes(100)  # regular file, link target
    + b"ustar\0" + b"00" + bytes(64)  # format, names of user and group
    + b"0000000\0" * 2  # device
).ljust(BLOCK_BYTES, b"\0")  # fmt: skip
_BLANK_SUM = sum(_BLANK_HEADER)


def member_header(name: str, size: int) -> bytes:
    """Make the POSIX header of a regular file: mode 0644, owner 0, time 0."""
    header = bytearray(_BLANK_HEADER)
    name_bytes, size_bytes = name.encode(), b"%011o" % size
    header[: len(name_bytes)] = name_bytes
    header[_SIZE] = size_bytes
    header[_CHECKSUM] = b"%06o\0 " % (_BLANK_SUM + sum(name_bytes) + sum(size_bytes))
    return bytes(header)


def padded(size: int) -> int:
    """Round a size up to whole blocks, which it takes in a tar."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def sample_parts(number: int, extension: str, image: bytes, label: int) -> tuple[bytes, ...]:
    """Make the bytes of a sample, the same at any offset: header, image, and the rest."""
    digits = b"%d" % label
    filling = bytes(padded(len(image)) - len(image))
    label_header = member_header(f"{number:09d}.cls", len(digits))
    after = filling + label_header + digits.ljust(BLOCK_BYTES, b"\0")
    return member_header(f"{number:09d}.{extension}", len(image)), image, after


def index_bytes(samples: list[tuple[Member, Member]]) -> bytes:
    """Write DALI's index of a shard whose samples are (image, label) pairs."""
    lines = [f"v1.2 {len(samples)}"]
    for sample in samples:
        words = [f"{m.name.rpartition('.')[2]} {m.offset} {m.size} {m.name}" for m in sample]
        lines.append(" ".join(words))
    return "".join(f"{line}\n" for line in lines).encode()


class AppendFile:
    """Large file, appended in large blocks, past the page cache where that works (``O_DIRECT``)."""

    def __init__(self, path: Path, on_block: Callable[[memoryview], object]) -> None:
        """Create ``path`` as `new_file` does; ``on_block`` gets all bytes in order."""
        self.path = path
        self._on_block = on_block
        self._file = new_file(path)
        self._descriptor = self._file.fileno()
        with suppress(OSError):
            self._set_direct(on=True)
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)  # aligned to pages
        self._size = 0

    def append(self, part: bytes) -> None:
        """Append bytes, written when a block is full; an OSError says that the disk fails."""
        rest = memoryview(part)
        while rest:
            rest = rest[self._buffer.write(rest[: _BUFFER_BYTES - self._buffer.tell()]) :]
            if self._buffer.tell() == _BUFFER_BYTES:
                self._flush()

    def publish(self, path: Path) -> None:
        """Write the rest, sync, close and rename; the name becomes durable with a later file."""
        self._flush()
        os.ftruncate(self._descriptor, self._size)  # the last block was written whole
        os.fsync(self._descriptor)
        self.close()
        self.path.rename(path)

    def close(self) -> None:
        """Close without writing the rest; a second call does nothing."""
        self._file.close()
        self._buffer.close()

    def _flush(self) -> None:
        filled = self._buffer.tell()
        self._buffer.write(bytes(-filled % _ALIGNMENT))
        with memoryview(self._buffer) as view:
            self._on_block(view[:filled])
            rest = view[: self._buffer.tell()]
            while rest:
                rest = rest[self._write(rest) :]
        self._size += filled
        self._buffer.seek(0)

    def _write(self, block: memoryview) -> int:
        try:
            return os.write(self._descriptor, block)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Some file systems refuse only now, or once a short write has lost the alignment.
        self._set_direct(on=False)
        return os.write(self._descriptor, block)

    def _set_direct(self, *, on: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)


class ShardWriter:
    """Writer of one shard under a temporary name; `finish` renames tar and index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.samples: list[tuple[Member, Member]] = []
        self._hasher = sha256()
        self._file = AppendFile(temporary_name(path), self._hasher.update)

    def add(self, number: int, extension: str, image: bytes, label: int) -> Member:
        """Append one sample and return the image member."""
        parts = sample_parts(number, extension, image, label)
        return self.extend(parts, [(number, extension, len(image), label)])[0]

    def extend(
        self, parts: Iterable[bytes], samples: Iterable[tuple[int, str, int, int]]
    ) -> list[Member]:
        """Append samples (number, extension, size, label) by their parts; return image members."""
        for part in parts:
            self._file.append(part)
        before = len(self.samples)
        for number, extension, size, label in samples:
            image = Member(f"{number:09d}.{extension}", self.size + BLOCK_BYTES, size)
            label_at = image.offset + padded(size) + BLOCK_BYTES
            self.samples.append((image, Member(f"{number:09d}.cls", label_at, len(str(label)))))
            self.size = label_at + BLOCK_BYTES
        return [image for image, _ in self.samples[before:]]

    def finish(self) -> str:
        """Sync and rename tar and index; return the tar's sha256."""
        self._file.append(END)
        self.size += len(END)
        self._file.publish(self.path)
        write_atomically(index_path(self.path), index_bytes(self.samples))
        return self._hasher.hexdigest()

    def close(self) -> None:
        """Remove the file of an unfinished shard; on a full disk closing it may fail."""
        self._file.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()


def walk(path: Path) -> Iterator[Member]:
    """Yield the members of a tar by its headers alone, up to the end mark.

    A ValueError, which has the offset, says that a header is cut, damaged or of a kind that no
    shard holds, a member runs over the end, or the end mark is missing.
    """
    file_bytes = path.stat().st_size
    offset = 0
    with path.open("rb") as file:
        while True:
            file.seek(offset)
            header = file.read(BLOCK_BYTES)
            if header == END[:BLOCK_BYTES]:
                break
            member = _parse(header, offset)
            offset = member.offset + padded(member.size)
            if offset > file_bytes:
                raise ValueError(f"member {member.name} is cut at byte {file_bytes:,}")
            yield member
    if file_bytes != offset + len(END):
        raise ValueError(f"end mark at byte {offset:,} of {file_bytes:,}")


def _parse(header: bytes, offset: int) -> Member:
    if len(header) < BLOCK_BYTES:
        raise ValueError(f"header at byte {offset:,} is cut")
    name, size = header[:100].rstrip(b"\0").decode("ascii", "replace"), header[_SIZE]
    if not MEMBER_NAME.fullmatch(name) or not re.fullmatch(rb"[0-7]{11}", size):
        raise ValueError(f"header at byte {offset:,} is not one of a sample")
    if header != member_header(name, int(size, 8)):
        raise ValueError(f"header at byte {offset:,} is damaged")
    return Member(name, offset + BLOCK_BYTES, int(size, 8))
