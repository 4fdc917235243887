"""Faults that need a whole packing: what is refused, told, kept and continued."""

import os
import resource
import subprocess
import sys

import pytest

from coreset.bench.robustness import faults
from coreset.shards.format.files import temporary_name

CORESET = (sys.executable, "-m", "coreset.engine.cli")


def test_bombs_are_refused_before_they_take_memory(tmp_path, refused_files):
    src = faults.write_photos(tmp_path / "src", 3)
    bombs = {"png": faults.png_bomb(), "jpg": faults.jpeg_bomb(), "JPEG": faults.lying_jpeg()}
    for label, (extension, bomb) in enumerate(bombs.items()):
        (src / faults.class_name(label) / f"bomb.{extension}").write_bytes(bomb)
    # In a child of a small child: this process's own memory would count as theirs.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, *CORESET, "pack", str(src), str(tmp_path / "DATA")]
    assert int(subprocess.check_output(command).splitlines()[-1]) < 600 * 1024
    refused = {(row["source"], row["reason"]) for row in refused_files(tmp_path / "DATA")}
    assert refused == {(f"c{label:02d}/bomb.{end}", "too-large") for label, end in enumerate(bombs)}


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
longest = time.perf_counter() - began
rng = random.Random(0)
hit = attempts = 0
while hit < kills and attempts < 5 * kills:
    data = folder / f"killed-{attempts}"
    attempts += 1
    for _ in range(2):  # also what continues a killed packing is killed
        child = pack(data)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        hit += killed
        longest *= 1 if killed else 0.7  # it was done: the first packing took longer
    os.waitpid(pack(data), 0)
print(hit)
"""


@pytest.mark.parametrize("n_kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_at_random_instants_end_in_the_same_bytes(tmp_path, fork, stored_bytes, n_kills):
    src, folder = faults.write_photos(tmp_path / "src", 60), tmp_path / "out"
    folder.mkdir()
    child = fork(KILLED_AT_RANDOM, src, folder, n_kills)
    assert child.code == 0, child.said
    assert int(child.said.splitlines()[-1]) >= n_kills
    expected = stored_bytes(folder / "WHOLE")
    assert len(expected) == 2 * 6 + 4
    for data in folder.iterdir():
        assert stored_bytes(data) == expected


@pytest.mark.skipif(not faults.FAILING_FILE.is_file(), reason="needs /sys of Linux")
def test_a_source_that_fails_amid_the_packing_is_named_and_leaves_no_final_name(tmp_path, coreset):
    src, data = faults.write_photos(tmp_path / "src", 12), tmp_path / "DATA"
    bad = src / "c11" / "photo-11.JPEG"
    bad.unlink()
    bad.symlink_to(faults.FAILING_FILE)
    options = ("--order", "source", "--samples-per-shard", 4, "--workers", 1)
    ended = coreset("pack", src, data, *options)
    assert ended.code == 2
    assert f"{bad} cannot be read (Invalid argument)" in ended.err
    assert not data.exists()
    scratch = temporary_name(data)
    tars = sorted(path.name for path in scratch.glob("*.tar"))
    assert tars == ["shard-000000.tar", "shard-000001.tar"]
    assert not list(scratch.glob(".*"))


def test_too_many_open_files_are_a_fault_of_the_machine(tmp_path, coreset, done):
    src, data = faults.write_photos(tmp_path / "src", 12), tmp_path / "DATA"
    done("pack", src, tmp_path / "WHOLE")  # everything is imported once
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, limits[1]))
        ended = coreset("pack", src, data)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (ended.code, ended.err.count("\n")) == (4, 1)
    assert "Too many open files" in ended.err
    assert not data.exists()
    done("pack", src, data)


SURROUNDINGS: tuple[tuple[dict[str, str], int, int], ...] = (
    ({"TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONHASHSEED": "1"}, 0o077, 1),
    ({"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"}, 0o002, 5),
)


def test_time_zone_locale_umask_hash_seed_and_workers_do_not_change_a_byte(
    tmp_path, done, stored_bytes
):
    src = faults.write_photos(tmp_path / "src", 30)
    (src / "größe").mkdir()
    (src / "größe" / "ß 五.jpg").write_bytes(faults.jpeg())
    done("pack", src, tmp_path / "HERE", "--samples-per-shard", 7)
    expected = stored_bytes(tmp_path / "HERE")
    for number, (env, umask, workers) in enumerate(SURROUNDINGS):
        data = tmp_path / f"DATA-{number}"
        words = ("pack", src, data, "--samples-per-shard", "7", "--workers", str(workers))
        command = [*CORESET, *words]
        said = subprocess.check_output(command, env=os.environ | env, umask=umask, text=True)
        assert "packed: 31 samples" in said
        assert stored_bytes(data) == expected
