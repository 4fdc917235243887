import os

import numpy as np
import pytest

from coreset.kernels.jpeg.ffi import all_cached


@pytest.fixture
def descriptor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        yield file.fileno()


def test_what_was_just_written_is_there(descriptor):
    assert all_cached(np.full(3, descriptor), np.array([0, 99, 50]))
    assert all_cached(np.empty(0, np.int64), np.empty(0, np.int64))


@pytest.mark.parametrize(("opened", "offset"), [(True, 100), (True, 10_000), (False, 0)])
def test_one_that_cannot_be_read_is_not(descriptor, opened, offset):
    descriptors = np.array([descriptor, descriptor if opened else -1, descriptor])
    assert not all_cached(descriptors, np.array([0, offset, 1]))


def test_what_has_left_memory_is_not(tmp_path):
    def dropped(name: str) -> int:
        path = tmp_path / name
        path.write_bytes(os.urandom(1 << 20))
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor

    # Of two files, because asking may set reading on its way.
    asked, descriptor = dropped("a"), dropped("b")
    try:
        os.preadv(asked, [bytearray(1)], 1 << 19, os.RWF_NOWAIT)
    except BlockingIOError:
        assert not all_cached(np.full(1, descriptor), np.full(1, 1 << 19))
    except OSError as error:
        pytest.skip(f"this file system does not tell ({error.strerror})")
    else:
        pytest.skip("this file system keeps what it is told to drop")
    finally:
        os.close(asked)
        os.close(descriptor)
