"""How threads wait, as OpenMP itself reports it in a process of its own."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from coreset.engine.runtime.openmp import POLICY, use_passive_wait

ROOMY = 10**12
# Where torch would be imported its OpenMP is loaded alone, which says what it found, and all ends.
SCORE = """
import ctypes, os, sys
from importlib.util import find_spec
from pathlib import Path
import coreset.engine.stages.score
coreset.engine.stages.score.available_bytes = lambda: {available}
(openmp,) = Path(find_spec("torch").origin).parent.glob("lib/libgomp*")

class InsteadOfTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            ctypes.CDLL(str(openmp))
            os._exit(0)

sys.meta_path.insert(0, InsteadOfTorch())
from coreset.engine.cli import main
sys.exit(main({words!r}))
"""


def spins(packed, scores, available, *words, **environment):
    """How often a thread of `coreset score` looks for work before it sleeps."""
    command = ["score", str(packed), str(scores), "--size", "17", "--epochs", "1", *words]
    code = SCORE.format(available=available, words=command)
    inherited = {name: value for name, value in os.environ.items() if name != POLICY}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (found,) = set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", ended.stderr))
    return found


@pytest.mark.parametrize(
    ("available", "words", "sleeps"),
    [(1000, (), True), (ROOMY, (), False), (1000, ("--device", "cuda"), False)],
    ids=["decoded every epoch", "decoded into memory", "on a GPU"],
)
def test_threads_sleep_where_images_are_decoded_beside_them(
    packed, tmp_path, available, words, sleeps
):
    assert (spins(packed, tmp_path / "SCORES", available, *words) == "0") == sleeps


def test_a_policy_of_the_user_stays(packed, tmp_path):
    assert spins(packed, tmp_path / "SCORES", 1000, OMP_WAIT_POLICY="ACTIVE") != "0"


def test_nothing_happens_where_torch_has_begun(monkeypatch):
    importlib.import_module("torch")
    monkeypatch.delenv(POLICY, raising=False)
    use_passive_wait()
    assert POLICY not in os.environ
