"""Dropping the code of a library: what was resident goes, what is called again comes back."""

from pathlib import Path

from coreset.shards.packing.workers import evict_code


def resident_code(library: str) -> int:
    """Kilobytes of a library's executable pages that lie in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and len(words) >= 5:
            counts = words[1] == "r-xp" and library in words[-1]
        elif counts and words[0] == "Rss:":
            total += int(words[1])
    return total


def test_the_compiler_leaves_memory_and_still_compiles():
    from numba import njit

    assert njit(lambda x: x + 1)(1) == 2
    before = resident_code("libllvmlite")
    evict_code("libllvmlite")
    assert resident_code("libllvmlite") < before / 2
    assert njit(lambda x: x + 2)(1) == 3


def test_a_library_that_is_not_loaded_is_no_fault():
    evict_code("libnobody")
