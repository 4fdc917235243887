"""Limits of control groups and available memory, read from a made-up /proc and /sys."""

import pytest

from coreset.engine.runtime.limits import (
    available_bytes,
    available_cores,
    available_memory_bytes,
    memory_limit_bytes,
    quota_cores,
)

GIB = 2**30
UNLIMITED_V1 = "9223372036854771712\n"


@pytest.fixture
def machine(tmp_path):
    """``machine(own_groups, {file below /sys/fs/cgroup: text})`` with 1000 kB available."""

    def make(own, files):
        contents = {
            "proc/meminfo": "MemTotal:   9000 kB\nMemFree: 1 kB\nMemAvailable:   1000 kB\n",
            "proc/self/cgroup": own,
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        }
        for name, text in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


def v2(group, limit, used=0, droppable=0):
    return {
        f"{group}memory.max": f"{limit}\n",
        f"{group}memory.current": f"{used}\n",
        f"{group}memory.stat": f"anon 1\ninactive_file {droppable}\n",
    }


def v1(group, limit, used=0, droppable=0):
    return {
        f"memory/{group}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{group}memory.usage_in_bytes": f"{used}\n",
        f"memory/{group}memory.stat": f"total_inactive_file {droppable}\n",
    }


V1_GROUPS = "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "limit", "available"),
    [
        ("0::/job\n", v2("job/", "max", 5), None, 1_024_000),
        ("0::/job\n", v2("job/", 500_000, 400_000, 150_000), 500_000, 250_000),
        ("0::/a/b\n", v2("a/b/", 500_000) | v2("a/", 70_000, 10_000), 70_000, 60_000),
        ("0::/host/path\n", v2("", 300_000), 300_000, 300_000),
        ("0::/job\n", v2("job/", 1000, 5000), 1000, 0),
        ("0::/job\n", v2("job/", 4 * GIB, 0) | v2("", "max"), 4 * GIB, 1_024_000),
        (V1_GROUPS, v1("job/", 200_000, 150_000, 20_000), 200_000, 70_000),
        ("4:memory:/docker/abc\n", v1("", 8 * GIB), 8 * GIB, 1_024_000),
        ("4:memory:/\n", v1("", UNLIMITED_V1, 10**12), None, 1_024_000),
    ],
    ids=["none", "of the group, cache is free", "of a parent", "path of the host", "exceeded",
         "more than the machine has", "v1", "v1, path of the host", "v1, none"],
)  # fmt: skip
def test_the_tightest_memory_limit_counts(machine, own, files, limit, available):
    root = machine(own, files)
    assert (memory_limit_bytes(root), available_bytes(root)) == (limit, available)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("3:cpu,cpuacct:/docker/abc\n", {"cpu/cpu.cfs_quota_us": "200000\n",
                                         "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ("3:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
                             "cpu.max": "max 100000\n"}, None),
    ],
    ids=["v2", "of a parent", "v1, path of the host", "none"],
)  # fmt: skip
def test_the_tightest_quota_of_cores_counts(machine, own, files, cores):
    assert quota_cores(machine(own, files)) == cores


def test_without_kernel_files_nothing_is_known(tmp_path):
    assert memory_limit_bytes(tmp_path) is quota_cores(tmp_path) is None
    assert available_memory_bytes(tmp_path) is None
    assert available_bytes() > 0, "of this machine"


@pytest.mark.parametrize(
    ("processes", "share"), [("1", 8), ("4", 2), ("16", 1), ("0", 8), ("x", 8)]
)
def test_processes_of_one_machine_share_its_cores(monkeypatch, processes, share):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert available_cores() == share
