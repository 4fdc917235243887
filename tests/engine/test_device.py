import platform
import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from coreset.engine.runtime.device import give_back_memory, tune_malloc
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
tune_malloc()
before = resident()
blocks = [bytes(bytearray(range(256)) * 400) for _ in range(1000)]  # 100 MB
last = bytearray(100_000)  # what lies above cannot be given back by making the heap shorter
full = resident()
del blocks
kept = resident()
give_back_memory()
print(4 * (full - before) // 1000, 4 * (kept - before) // 1000, 4 * (resident() - before) // 1000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_until_it_is_given_back():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    full, kept, after = map(int, ended.stdout.split())
    assert full > 90
    assert kept > 90
    assert after < 20
