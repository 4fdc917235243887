"""Compiled kernels on disk: the next process loads them, but never after an edit of any kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coreset.kernels import jit as compiling

INNER = """
from coreset.kernels.jit import kernel

@kernel
def factor() -> int:
    return 3
"""
OUTER = """
from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.inner import factor

@kernel
def tripled(number: int) -> int:
    return number * factor()
"""
CALL = """
from coreset.kernels.outer import tripled
print(tripled(5), sum(tripled.stats.cache_hits.values()))
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two kernels, one of which calls the other, in a folder below."""
    folder = tmp_path / "sources" / "coreset" / "kernels"
    (folder / "jpeg").mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    shutil.copy(compiling.__file__, folder)
    for name, text in (
        ("__init__", ""),
        ("jpeg/__init__", ""),
        ("jpeg/inner", INNER),
        ("outer", OUTER),
    ):
        (folder / f"{name}.py").write_text(text)
    return folder


def call(sources: Path, cache: Path) -> tuple[int, int]:
    """Return the outer kernel's result for 5 in a new process, and how often code was loaded."""
    ran = subprocess.run(
        [sys.executable, "-c", CALL],
        cwd=sources.parents[1],
        env={"PATH": "", "CORESET_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    result, hits = map(int, ran.stdout.split())
    return result, hits


def test_the_next_process_finds_the_code_and_an_edited_dependency_is_compiled_anew(
    sources, tmp_path
):
    cache = tmp_path / "cache"
    assert [call(sources, cache) for _ in range(2)] == [(15, 0), (15, 1)]
    inner = sources / "jpeg" / "inner.py"
    inner.write_text(inner.read_text().replace("3", "4"))
    assert [call(sources, cache) for _ in range(2)] == [(20, 0), (20, 1)]


def test_without_a_folder_that_can_be_written_kernels_work_all_the_same(sources, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        assert call(sources, tmp_path / "file") == (15, 0)


def give_away(folder: Path) -> None:
    os.chown(folder, 12345, -1)


@pytest.mark.parametrize("which", [0, 1], ids=["cache", "its folder of kernels"])
@pytest.mark.parametrize(
    "expose",
    [
        lambda folder: folder.chmod(0o777),
        lambda folder: folder.chmod(0o1777),
        lambda folder: folder.chmod(0o770),
        pytest.param(
            give_away,
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away"),
        ),
    ],
    ids=["all may write", "sticky", "the group may write", "of another user"],
)
def test_a_folder_that_another_user_could_write_to_is_not_used(
    tmp_path, monkeypatch, which, expose
):
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "one"))
    folder = compiling.code_folder()
    assert folder is not None
    (tmp_path / "one").rename(tmp_path / "two")  # what is known of a folder is kept by its name
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "two"))
    exposed = (tmp_path / "two", tmp_path / "two" / folder.name)[which]
    expose(exposed)
    with pytest.warns(RuntimeWarning, match=rf"run `chmod go-w {exposed}`"):
        assert compiling.code_folder() is None
    assert compiling.code_folder() is None, "the second kernel does not warn again"


def test_the_folders_of_the_cache_are_made_for_their_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "deep" / "cache"))
    before = os.umask(0)
    try:
        folder = compiling.code_folder()
    finally:
        os.umask(before)
    assert folder is not None
    assert [one.stat().st_mode & 0o777 for one in (folder, folder.parent)] == [0o700, 0o700]
