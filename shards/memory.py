"""Giving back memory that is not needed again: pages of a library that has done its work."""

import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_DROP = 4  # MADV_DONTNEED of <sys/mman.h>


def forget_code(library: str) -> None:
    """Drop the code of a shared library from this process; it is read again if it is called.

    Only mappings that are executable and therefore never written, so nothing can be lost.

    Args:
        library: Start of the library's file name, such as ``libllvmlite``.
    """
    if not _MAPS.is_file():
        return
    libc = ctypes.CDLL(None)
    for line in _MAPS.read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[1] == "r-xp" and Path(words[5]).name.startswith(library):
            start, end = (int(word, 16) for word in words[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DROP)
