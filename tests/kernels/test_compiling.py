"""Compiled kernels on disk: used by the next process, and never after an edit of any kernel."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import compiling

INNER = """
from kernels.compiling import kernel

@kernel
def factor() -> int:
    return 3
"""
OUTER = """
from kernels.compiling import kernel
from kernels.inner import factor

@kernel
def tripled(number: int) -> int:
    return number * factor()
"""
CALL = """
from kernels.outer import tripled
print(tripled(5), sum(tripled.stats.cache_hits.values()))
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two kernels, one of which calls the other."""
    folder = tmp_path / "sources" / "kernels"
    folder.mkdir(parents=True)
    shutil.copy(compiling.__file__, folder)
    for name, text in (("__init__", ""), ("inner", INNER), ("outer", OUTER)):
        (folder / f"{name}.py").write_text(text)
    return folder


def call(sources: Path, cache: Path) -> tuple[int, int]:
    """What the outer kernel makes of 5, and how often its code was found on disk."""
    environment = {"PATH": "", "CORESET_CACHE": str(cache)}
    ran = subprocess.run(
        [sys.executable, "-c", CALL],
        cwd=sources.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    result, hits = map(int, ran.stdout.split())
    return result, hits


def test_the_next_process_finds_the_code_and_an_edited_dependency_is_compiled_anew(
    sources: Path, tmp_path: Path
):
    cache = tmp_path / "cache"
    assert [call(sources, cache) for _ in range(2)] == [(15, 0), (15, 1)]
    inner = sources / "inner.py"
    inner.write_text(inner.read_text().replace("3", "4"))
    assert [call(sources, cache) for _ in range(2)] == [(20, 0), (20, 1)]


def test_without_a_folder_that_can_be_written_kernels_work_all_the_same(
    sources: Path, tmp_path: Path
):
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        assert call(sources, tmp_path / "file") == (15, 0)
