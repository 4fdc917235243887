"""Threads and memory of a process of its own: how OpenMP waits, what malloc gives back."""

import os
import platform
import re
import subprocess
import sys

import pytest

# Where torch would be imported its OpenMP is loaded alone, which says what it found, and all ends.
RUN = """
import ctypes, os, sys
from importlib.util import find_spec
from pathlib import Path
(openmp,) = Path(find_spec("torch").origin).parent.glob("lib/libgomp*")

class InsteadOfTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            ctypes.CDLL(str(openmp))
            os._exit(0)

sys.meta_path.insert(0, InsteadOfTorch())
from coreset.engine.cli import main
sys.exit(main(sys.argv[1:]))
"""
SCORE = ("score", "DATA", "OUT", "--size", 17)


@pytest.fixture
def places(packed, val, random_set):
    return {"DATA": packed, "VALIDATION": val, "SET": random_set, "OUT": packed.with_name("OUT")}


@pytest.mark.parametrize(
    ("words", "policy", "spins"),
    [
        (SCORE, {}, False),
        (("train", "SET", "VALIDATION", "OUT"), {}, False),
        (("measure", "SET", "VALIDATION", "OUT"), {}, False),
        (("embed", "DATA", "OUT"), {}, False),
        (("doctor", "DATA"), {}, False),
        ((*SCORE, "--device", "cuda"), {}, True),
        (SCORE, {"OMP_WAIT_POLICY": "ACTIVE"}, True),
    ],
    ids=["score", "train", "measure", "embed", "doctor", "beside a GPU", "chosen by the user"],
)
def test_threads_sleep_while_they_wait_on_a_cpu(places, words, policy, spins):
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *(str(places.get(str(word), word)) for word in words)],
        env=inherited | {"OMP_DISPLAY_ENV": "VERBOSE"} | policy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (tries,) = set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", ended.stderr))
    assert (tries != "0") is spins


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
