"""What stops a packing (kills, failing sources, full disks, rivals) and what must not change it.

Rows are those of the fault matrix. After each stop the same command ends in the same bytes.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from coreset.bench.robustness import faults
from coreset.shards.format.files import temporary_name

CHECKOUT = Path(__file__).parents[2]
CORESET = (sys.executable, "-m", "coreset.engine.cli")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
Told = Any


def in_child(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*CORESET, *(str(word) for word in words)]
    return subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, **options
    )


# Rows 1, 2, 24 to 26: what stops a packing.


def stored_files(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "ledger.jsonl"}


# Packs in forks of itself that are killed after a while; prints how many were.
KILLED_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
from coreset.engine.stages.pack import Pack

src, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def pack(data):
    child = os.fork()
    if child == 0:
        Pack(src=src, data=data, samples_per_shard=10, workers=2).run()
        os._exit(0)
    return child

began = time.perf_counter()
os.waitpid(pack(folder / "WHOLE"), 0)
whole_seconds = time.perf_counter() - began
rng = random.Random(0)
hit = attempts = 0
while hit < kills and attempts < 5 * kills:
    data = folder / f"killed-{attempts}"
    attempts += 1
    for _ in range(2):  # also what continues a killed packing is killed
        child = pack(data)
        time.sleep(rng.uniform(0, whole_seconds))
        os.kill(child, signal.SIGKILL)
        hit += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    os.waitpid(pack(data), 0)
print(hit)
"""


@pytest.mark.parametrize("n_kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_at_random_instants_end_in_the_same_bytes(
    tmp_path: Path, fork: Callable[..., Any], n_kills: int
):
    src, folder = faults.write_photos(tmp_path / "src", 60), tmp_path / "out"
    folder.mkdir()
    child = fork(KILLED_AT_RANDOM, src, folder, n_kills)
    assert child.code == 0, child.said
    assert int(child.said.splitlines()[-1]) >= n_kills
    expected = stored_files(folder / "WHOLE")
    assert len(expected) == 2 * 6 + 4
    for data in folder.iterdir():
        assert stored_files(data) == expected


@pytest.mark.skipif(not faults.FAILING_FILE.is_file(), reason="needs /sys of Linux")
def test_a_source_that_fails_amid_the_packing_is_named_and_leaves_no_final_name(
    tmp_path: Path, coreset: Callable[..., Told], done: Callable[..., list[str]]
):
    src, data = faults.write_photos(tmp_path / "src", 12), tmp_path / "DATA"
    bad = src / "c11" / "photo-11.JPEG"
    bad.unlink()
    bad.symlink_to(faults.FAILING_FILE)
    options = ("--order", "source", "--samples-per-shard", 4, "--workers", 1)
    told = coreset("pack", src, data, *options)
    assert told.code == 2
    assert f"{bad} cannot be read (Invalid argument)" in told.err
    assert not data.exists()
    scratch = temporary_name(data)
    assert sorted(path.name for path in scratch.glob("*.tar")) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    assert not list(scratch.glob(".*"))
    bad.unlink()
    bad.write_bytes(faults.jpeg(11))
    shutil.rmtree(scratch)
    done("pack", src, data, *options)


@contextmanager
def small_disk(place: Path, megabytes: int) -> Generator[Path]:
    place.mkdir()
    options = f"size={megabytes}m"
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", place], check=True)


def fill(filler: Path) -> None:
    """Take all the space of the disk that ``filler`` is on."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


@contextmanager
def stopped_once_there(path: Path, *words: object) -> Generator[subprocess.Popen[str]]:
    """Run a command in a child that stands still, as by Ctrl-Z, from when ``path`` exists."""
    command = [*CORESET, *(str(word) for word in words)]
    child = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not path.exists():
        assert child.poll() is None
        time.sleep(0.0005)
    child.send_signal(signal.SIGSTOP)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGCONT)


@needs_root
def test_a_disk_that_fills_up_keeps_what_was_committed_and_the_same_command_continues(
    tmp_path: Path, done: Callable[..., list[str]]
):
    src = tmp_path / "src"
    for label in range(3):
        (src / f"c{label}").mkdir(parents=True)
        for number in range(100):
            content = faults.encoded(faults.photo(label * 100 + number, 160, 120), quality=95)
            (src / f"c{label}" / f"{number}.jpg").write_bytes(content)
    options = ("--samples-per-shard", 30, "--workers", 1)
    with small_disk(tmp_path / "disk", 16) as disk:
        data = disk / "DATA"
        committed = temporary_name(data) / "shard-000001.json"
        with stopped_once_there(committed, "pack", src, data, *options) as child:
            fill(disk / "filler")
        said = child.communicate()[1]
        assert (child.returncode, said.count("\n")) == (4, 1)
        assert "No space left on device" in said
        assert not data.exists()
        assert committed.exists()
        (disk / "filler").unlink()
        done("pack", src, data, *options)
        done("pack", src, tmp_path / "WHOLE", *options)
        assert stored_files(data) == stored_files(tmp_path / "WHOLE")


@needs_root
def test_a_disk_that_is_too_small_or_read_only_is_a_fault_of_the_machine(
    tmp_path: Path, coreset: Callable[..., Told]
):
    src = faults.write_photos(tmp_path / "src", 400)
    with small_disk(tmp_path / "disk", 1) as disk:
        told = coreset("pack", src, disk / "DATA")
        assert told.code == 4
        assert "are free; free some space or choose another output" in told.err
        subprocess.run(["/bin/mount", "-o", "remount,ro", disk], check=True)
        told = coreset("pack", src, disk / "OTHER")
        assert (told.code, told.err.count("\n")) == (4, 1)
        assert "Read-only file system" in told.err
        assert str(disk) in told.err
        assert not (disk / "DATA").exists()


def test_too_many_open_files_are_a_fault_of_the_machine(
    tmp_path: Path, coreset: Callable[..., Told], done: Callable[..., list[str]]
):
    src, data = faults.write_photos(tmp_path / "src", 12), tmp_path / "DATA"
    done("pack", src, tmp_path / "WHOLE")  # everything is imported once
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, limits[1]))
        told = coreset("pack", src, data)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (told.code, told.err.count("\n")) == (4, 1)
    assert "Too many open files" in told.err
    assert not data.exists()
    done("pack", src, data)


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32),
                ("inheritable", ctypes.c_uint32))  # fmt: skip


@contextmanager
def like_any_user() -> Generator[None]:
    """Root may read and write everything; without these two rights (capabilities(7)) it may not.

    They are those of this thread, and of the threads that it starts.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    rights = (_Capabilities * 2)()
    assert libc.capget(header, rights) == 0
    before = rights[0].effective
    rights[0].effective = before & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, rights) == 0
    try:
        yield
    finally:
        rights[0].effective = before
        assert libc.capset(header, rights) == 0


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, coreset: Callable[..., Told], done: Callable[..., list[str]]
):
    src, data = faults.write_photos(tmp_path / "src", 12), tmp_path / "DATA"
    locked = src / "c05" / "photo-05.JPEG"
    locked.chmod(0)
    with like_any_user():
        told = coreset("pack", src, data)
    assert told.code == 2
    assert f"{locked} cannot be read (Permission denied)" in told.err
    assert not data.exists()
    locked.chmod(0o644)
    done("pack", src, data)


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, coreset: Callable[..., Told]):
    src, closed = faults.write_photos(tmp_path / "src", 2), tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with like_any_user():
        told = coreset("pack", src, closed / "DATA")
    assert (told.code, told.err.count("\n")) == (4, 1)
    assert "Permission denied" in told.err
    assert str(closed) in told.err


def test_of_two_packings_into_one_place_the_second_is_refused_and_the_first_is_whole(
    tmp_path: Path, coreset: Callable[..., Told], done: Callable[..., list[str]]
):
    src, data = faults.write_photos(tmp_path / "src", 300), tmp_path / "DATA"
    words = ("pack", src, data, "--samples-per-shard", 3)
    with stopped_once_there(temporary_name(data), *words) as first:
        told = coreset(*words)
    assert first.communicate()[1] == ""
    assert first.returncode == 0
    assert told.code == 5
    assert f"is being written by process {first.pid}" in told.err
    assert "is whole: 300 samples in 100 shards" in done("verify", data)[0]


# Row 36: surroundings.

SURROUNDINGS: tuple[tuple[dict[str, str], int, int], ...] = (
    ({"TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONHASHSEED": "1"}, 0o077, 1),
    ({"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"}, 0o002, 5),
)


def test_time_zone_locale_umask_hash_seed_and_workers_do_not_change_a_byte(
    tmp_path: Path, done: Callable[..., list[str]]
):
    src = faults.write_photos(tmp_path / "src", 30)
    (src / "größe").mkdir()
    (src / "größe" / "ß 五.jpg").write_bytes(faults.jpeg())
    done("pack", src, tmp_path / "HERE", "--samples-per-shard", 7)
    expected = stored_files(tmp_path / "HERE")
    for number, (env, umask, workers) in enumerate(SURROUNDINGS):
        data = tmp_path / f"DATA-{number}"
        words = ("pack", src, data, "--samples-per-shard", 7, "--workers", workers)
        told = in_child(*words, env=os.environ | env, umask=umask)
        assert (told.returncode, told.stderr) == (0, "")
        assert stored_files(data) == expected
