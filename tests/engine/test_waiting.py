"""How threads wait, as OpenMP itself reports it in a process of its own."""

import importlib
import os
import re
import subprocess
import sys

from coreset.engine.runtime.openmp import POLICY, use_passive_wait

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
sys.exit(main({words!r}))
"""


def spins(*words, **environment):
    """Return how often a thread of a command looks for work before it sleeps."""
    code = RUN.format(words=[str(word) for word in words])
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


def score(packed, tmp_path):
    return ("score", packed, tmp_path / "SCORES", "--size", 17, "--epochs", 1)


def test_threads_sleep_in_every_training_on_a_cpu(packed, random_set, val, tmp_path):
    for words in (
        score(packed, tmp_path),
        ("train", random_set, val, tmp_path / "RESULTS"),
        ("embed", packed, tmp_path / "FEATURES"),
    ):
        assert spins(*words) == "0"


def test_threads_wait_busily_beside_a_gpu(packed, tmp_path):
    assert spins(*score(packed, tmp_path), "--device", "cuda") != "0"


def test_a_policy_of_the_user_stays(packed, tmp_path):
    assert spins(*score(packed, tmp_path), OMP_WAIT_POLICY="ACTIVE") != "0"


def test_nothing_happens_where_torch_has_begun(monkeypatch):
    importlib.import_module("torch")
    monkeypatch.delenv(POLICY, raising=False)
    use_passive_wait("cpu")
    assert POLICY not in os.environ
