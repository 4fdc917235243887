"""Appending to one large file at the speed of the disk: in large blocks, past the page cache.

What a packer writes is not read again soon. In the page cache every byte would cost a copy and a
fresh page, which is most of the work of packing without checks, and push out what others read.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

_BUFFER_BYTES = 1 << 22
_ALIGNMENT = 4096  # at least the block size of any disk and file system that is common


class AppendFile:
    """A new file; ``on_block`` sees all its bytes in order, a block at a time, and not the end's.

    Where the file system cannot write directly (``O_DIRECT``), it goes through the page cache.
    """

    def __init__(self, path: Path, on_block: Callable[[memoryview], object]) -> None:
        """Create ``path``; what is there is removed, and a link is not followed."""
        self.path = path
        self._on_block = on_block
        self._descriptor = _open(path)
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)  # aligned to pages
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._size = 0

    def append(self, part: bytes) -> None:
        """Append bytes; they reach the disk when a block is full.

        Raises:
            OSError: The disk is full or fails.
        """
        done = 0
        while done < len(part):
            n = min(len(part) - done, _BUFFER_BYTES - self._filled)
            self._view[self._filled : self._filled + n] = memoryview(part)[done : done + n]
            self._filled += n
            done += n
            if self._filled == _BUFFER_BYTES:
                self._flush()

    def sync(self) -> None:
        """Write the rest, make the bytes durable, and close.

        Raises:
            OSError: The disk is full or fails.
        """
        size = self._size + self._filled
        self._flush()
        os.ftruncate(self._descriptor, size)  # the last block was written whole
        os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        """Close, whatever was written; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._view.release()
            self._buffer.close()

    def _flush(self) -> None:
        self._on_block(self._view[: self._filled])
        whole = -(-self._filled // _ALIGNMENT) * _ALIGNMENT
        self._view[self._filled : whole] = bytes(whole - self._filled)
        written = 0
        while written < whole:
            written += self._write(self._view[written:whole])
        self._size += self._filled
        self._filled = 0

    def _write(self, block: memoryview) -> int:
        try:
            return os.write(self._descriptor, block)
        except OSError as error:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
        # Some file systems refuse only now, or once a short write has lost the alignment.
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.write(self._descriptor, block)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    path.unlink(missing_ok=True)
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    path.unlink(missing_ok=True)  # the refused call has made it
    return os.open(path, flags, 0o666)
