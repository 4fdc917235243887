"""Kernels that call C (libjpeg, the page cache), and the folder of compiled kernels."""

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import simplejpeg
from PIL import _imaging

from coreset.kernels import jit as compiling
from coreset.kernels.jpeg import batch, libjpeg
from coreset.kernels.jpeg.ffi import all_cached
from coreset.kernels.jpeg.libjpeg import MOST_ADDED, VERSIONS, Functions, RegionDecoder


@pytest.fixture(scope="module")
def grey():
    """A grey image of 64 x 48 pixels, and its file."""
    pixels = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (48, 1, 1))
    return simplejpeg.encode_jpeg(pixels, 100, "GRAY", "Gray")


@pytest.fixture
def decoder(grey):
    """By the one version that is the library's; the others decode nothing."""
    into = np.empty(64 * 48 * 3, np.uint8)
    decoders = [RegionDecoder(ctypes.CDLL(_imaging.__file__), version) for version in VERSIONS]
    (usable,) = [d for d in decoders if d.decode(grey, (0, 0, 64, 48), into) == (0, 64)]
    return usable


def test_rows_lie_one_after_the_other(decoder, grey):
    into = np.full(64 * 48 * 3, 255, np.uint8)
    first, n = decoder.decode(grey, (30, 10, 40, 14), into)
    assert first <= 30
    assert 40 <= first + n <= 40 + MOST_ADDED
    rows = into[: 4 * n * 3].reshape(4, n, 3)
    whole = simplejpeg.decode_jpeg(grey)
    np.testing.assert_array_equal(rows, whole[10:14, first : first + n])
    assert (into[rows.size :] == 255).all()
    into[:] = 255
    assert decoder.decode(grey, (30, 10, 40, 14), into[: rows.size - 1])[1] == 0
    assert (into == 255).all(), "memory that is too small was written"


@pytest.mark.parametrize(
    ("cut", "box"),
    [(40, (0, 0, 64, 48)), (0, (70, 0, 80, 8)), (0, (0, 50, 64, 60))],
    ids=["cut file", "beside the image", "below the image"],
)
def test_what_cannot_be_decoded_is_refused_and_the_next_file_is_decoded(decoder, grey, cut, box):
    into = np.empty(64 * 48 * 3, np.uint8)
    assert decoder.decode(grey[: len(grey) - cut], box, into)[1] == 0
    assert decoder.decode(grey, (0, 0, 64, 48), into) == (0, 64)


def test_a_library_without_libjpeg_is_refused():
    with pytest.raises(AttributeError):
        RegionDecoder(ctypes.CDLL(None), next(iter(VERSIONS)))
    gc.collect()  # a decoder that was never ready is deleted without an error


FUNCTIONS = Functions(*range(1, 15))
CROP = batch._Crop((1, 1), 1, 1, 1, 1, 1)
MODE = batch._Mode(1, stream=True, coarse=False, encoded=1, rows=1, libjpeg=1)
REGION = (1, 1, 1, 1, True)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (libjpeg._decode_region, (FUNCTIONS, (1, 1), REGION, (1, 1), 1)),
        (batch._decode_one, (FUNCTIONS, CROP, MODE, None)),
        (batch._decode_one, (FUNCTIONS, CROP, MODE, 1)),
    ],
    ids=["region", "bytes", "floats"],
)
def test_functions_that_a_jump_returns_to_hold_no_counted_reference(function, arguments):
    """A jump would release it twice; the code includes all functions that are called."""
    function.compile(tuple(map(numba.typeof, arguments)))
    for code in function.inspect_llvm().values():
        assert "@_setjmp" in code
        assert "NRT_incref" not in code
        assert "NRT_decref" not in code


def test_bytes_that_were_just_written_are_cached_and_those_that_cannot_be_read_are_not(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    with (tmp_path / "file").open("rb") as file:
        descriptors = np.full(3, file.fileno())
        assert all_cached(descriptors, np.array([0, 99, 50]))
        assert all_cached(np.empty(0, np.int64), np.empty(0, np.int64))
        assert not all_cached(descriptors, np.array([0, 100, 1]))
        descriptors[1] = -1
        assert not all_cached(descriptors, np.array([0, 0, 1]))


def test_bytes_that_were_dropped_from_memory_are_not_cached(tmp_path):
    def dropped(name: str) -> int:
        path = tmp_path / name
        path.write_bytes(os.urandom(1 << 20))
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor

    # Two files, because a test of one may start reading it.
    probe, descriptor = dropped("a"), dropped("b")
    try:
        os.preadv(probe, [bytearray(1)], 1 << 19, os.RWF_NOWAIT)
    except BlockingIOError:
        assert not all_cached(np.full(1, descriptor), np.full(1, 1 << 19))
    except OSError as error:
        pytest.skip(f"this file system cannot say ({error.strerror})")
    else:
        pytest.skip("this file system keeps pages that it is told to drop")
    finally:
        os.close(probe)
        os.close(descriptor)


KERNELS = Path(libjpeg.__file__).resolve().parents[1]


def test_no_other_kernel_calls_c_or_handles_vectors():
    tools = re.compile(
        r"^\s*(?:import|from) (?:ctypes|llvmlite|cffi|numba\.extending)\b", re.MULTILINE
    )
    sources = {source for source in KERNELS.rglob("*.py") if tools.search(source.read_text())}
    assert sources, "the pattern finds nothing"
    assert {source.parent for source in sources} == {KERNELS / "jpeg"}


# Compiled kernels on disk: the next process loads them, but never after an edit of any kernel.

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


@pytest.mark.parametrize("which", [0, 1], ids=["cache", "its folder of kernels"])
@pytest.mark.parametrize(
    "expose",
    [
        lambda folder: folder.chmod(0o777),
        lambda folder: folder.chmod(0o1777),
        lambda folder: folder.chmod(0o770),
        pytest.param(
            lambda folder: os.chown(folder, 12345, -1),
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
