"""Checks of this machine, one function per side of it; one that breaks down is itself a finding."""

import fcntl
import importlib
import os
import resource
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from coreset.engine.artifacts.provenance import versions
from coreset.engine.runtime.limits import available_memory_bytes, memory_limit_bytes, quota_cores
from coreset.engine.runtime.text import readable_bytes
from coreset.shards.errors import InterruptedRunError
from coreset.shards.format.files import rename_directory, write_atomically

NEEDED_MEMORY_BYTES = 2 * 2**30
NEEDED_DISK_BYTES = 10 * 2**30
"""The environment alone takes 8.5 GB."""
NEEDED_OPEN_FILES = 1024
DRIVER_FILE = Path("/proc/driver/nvidia/version")
PACKAGES = ("numpy", "numba", "pyarrow", "simplejpeg", "PIL", "zarr", "torch", "torchvision",
            "timm", "faiss", "nvidia.dali", "webdataset", "sklearn", "plotly", "jinja2",
            "safetensors")  # fmt: skip
DISTRIBUTIONS = {
    "PIL": "pillow", "faiss": "faiss-gpu", "nvidia.dali": "nvidia-dali-cuda130",
    "sklearn": "scikit-learn",
}  # fmt: skip
"""Modules whose name is not the package's."""


class Verdict(StrEnum):
    """Meaning of a finding for the machine."""

    OK = "ok"
    WARN = "warn"
    """Works, but slower or not for long."""
    FAIL = "fail"
    """Stages will break or lose data."""

    def unless(self, holds: object, remedy: str) -> "tuple[Verdict, str]":
        """Return this verdict with its remedy, or that all is well."""
        return (Verdict.OK, "") if holds else (self, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    value: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The value for machines: plain numbers in the unit that the name says."""


def failure(name: str, error: Exception, remedy: str = "repair what the error names") -> Check:
    """Make a finding of an error."""
    kind = type(error).__name__
    return Check(name, " ".join(str(error).split()) or kind, Verdict.FAIL, remedy, {"error": kind})


def complete(
    name: str, checks: Iterator[Check], explained: Callable[[str, Exception], Check] = failure
) -> Iterator[Check]:
    """Yield the findings of a check; what it raises, but a signal to stop, is the last one."""
    try:
        yield from checks
    except InterruptedRunError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken driver or package may raise anything
        yield explained(name, error)


def findings(path: Path) -> Iterator[Check]:
    """Run every check at ``path``, in the order of ``CHECKS``, and yield what each finds."""
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        yield from complete(name, check(path))


def check_cores(_path: Path) -> Iterator[Check]:
    """Compare the cores by affinity with what a quota gives."""
    cores, quota = len(os.sched_getaffinity(0)), quota_cores()
    facts = {"cores": cores, "quota_cores": quota}
    if quota is None or quota >= cores:
        yield Check("cores", str(cores), facts=facts)
        return
    remedy = f"set OMP_NUM_THREADS={max(1, int(quota))}, or threads will wait for each other"
    yield Check("cores", f"{cores}, quota {quota:g}", Verdict.WARN, remedy, facts)


def check_memory(_path: Path) -> Iterator[Check]:
    """Look at the available memory, and the limit of the control group."""
    available, limit = available_memory_bytes(), memory_limit_bytes()
    facts = {"available_bytes": available, "limit_bytes": limit}
    least = min((amount for amount in (available, limit) if amount is not None), default=None)
    if least is None:
        yield Check("memory", "unknown", Verdict.WARN, "mount /proc to see it", facts)
        return
    value = readable_bytes(least) + (" (limit)" if least == limit else " available")
    remedy = f"free memory or raise the limit to {readable_bytes(NEEDED_MEMORY_BYTES)}"
    yield Check("memory", value, *Verdict.FAIL.unless(least >= NEEDED_MEMORY_BYTES, remedy), facts)


def check_disk(path: Path) -> Iterator[Check]:
    """Look at the free space for this user on the disk of ``path``."""
    free = shutil.disk_usage(path).free
    remedy = f"free up to {readable_bytes(NEEDED_DISK_BYTES)} or choose another --path"
    judged = Verdict.WARN.unless(free >= NEEDED_DISK_BYTES, remedy)
    yield Check("disk", f"{readable_bytes(free)} free", *judged, {"free_bytes": free})


def check_open_files(_path: Path) -> Iterator[Check]:
    """Look at the limit on open files: shards, stores and workers hold many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = f"run `ulimit -n {NEEDED_OPEN_FILES}` first"
    judged = Verdict.WARN.unless(not 0 <= soft < NEEDED_OPEN_FILES, remedy)
    yield Check("open files", str(soft), *judged, {"soft": soft, "hard": hard})


def check_file_system(path: Path) -> Iterator[Check]:
    """Test at ``path`` the operations that crash safety rests on; leave nothing behind."""
    try:
        with tempfile.TemporaryDirectory(prefix=".coreset-doctor-", dir=path) as name:
            folder = Path(name)
            _probe_rename(folder)
            yield Check("write, fsync, rename", "work")
            exclusive = _is_lock_exclusive(folder / "lock")
    except OSError as error:
        remedy = f"make {path} writable, or choose another --path on a local disk"
        yield failure("write, fsync, rename, lock", error, remedy)
        return
    remedy = "choose another --path: two commands could write the same output here"
    value = "exclusive" if exclusive else "held twice at once"
    yield Check("file lock", value, *Verdict.FAIL.unless(exclusive, remedy))


def _probe_rename(folder: Path) -> None:
    """Replace a file and publish a directory as the stages do, or raise an ``OSError``."""
    scratch, final = folder / "scratch", folder / "final"
    scratch.mkdir()
    for content in (b"first", b"second"):
        write_atomically(scratch / "file", content)
    rename_directory(scratch, final)
    if (final / "file").read_bytes() != b"second" or scratch.exists():
        raise OSError("rename does not replace what was there")


def _is_lock_exclusive(path: Path) -> bool:
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def check_packages(_path: Path) -> Iterator[Check]:
    """Import every package that a stage may need, once."""
    known = versions()
    yield Check("python", known["python"])
    for module in PACKAGES:
        distribution = DISTRIBUTIONS.get(module, module)
        try:
            with warnings.catch_warnings(action="ignore"):  # theirs, and not about this machine
                importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a package may raise anything while it loads
            yield failure(distribution, error, "run `make setup` again")
        else:
            yield Check(distribution, known.get(distribution, "imports"))


def check_gpu(_path: Path) -> Iterator[Check]:
    """Look at name, memory and driver of the GPU that torch would use; none is fine."""
    import torch

    driver = driver_version()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = readable_bytes(properties.total_memory)
        value = f"{properties.name}, {memory}, driver {driver or 'unknown'}"
        facts = {"name": properties.name, "memory_bytes": properties.total_memory}
        facts |= {"capability": [properties.major, properties.minor]}
        facts |= {"count": torch.cuda.device_count(), "driver": driver}
        yield Check("GPU", value, facts=facts)
    elif driver is not None:
        remedy = f"update the driver: torch is built for CUDA {torch.version.cuda}"
        yield Check("GPU", f"driver {driver}, unusable", Verdict.WARN, remedy, {"driver": driver})
    else:
        yield Check("GPU", "none")


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """Read the version in the driver's file (``... Module  580.82.07  ...``), if there is one."""
    words = file.read_text().split() if file.is_file() else []
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def check_compiler(_path: Path) -> Iterator[Check]:
    """Look for what ``torch.compile`` needs: C++ on a CPU, C and Python.h on a GPU."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    parts = {
        "C compiler": _first_program(os.environ.get("CC"), "cc", "gcc", "clang"),
        "C++ compiler": _first_program(os.environ.get("CXX"), "c++", "g++", "clang++"),
        "Python.h": str(headers) if headers.is_file() else None,
    }
    missing = [f"no {name}" for name, where in parts.items() if where is None]
    value = ", ".join(missing) or str(parts["C++ compiler"])
    remedy = "install gcc, g++ and Python's headers: torch.compile needs them"
    yield Check("compiler", value, *Verdict.WARN.unless(not missing, remedy), parts)


def _first_program(*names: str | None) -> str | None:
    return next((path for name in names if name and (path := shutil.which(name))), None)


def check_choices(_path: Path) -> Iterator[Check]:
    """Resolve ``--device auto``, ``--decoder auto`` and the training precision here."""
    from coreset.engine.data.decoders import choose_decoder
    from coreset.engine.runtime.device import has_fast_bfloat16, resolve_device

    device = resolve_device("auto")
    yield Check("--device auto", device.type)
    yield Check("--decoder auto", choose_decoder("auto", device.type).value)
    slow = "float32 (this device has no bfloat16 instructions)"
    yield Check("precision", "bfloat16" if has_fast_bfloat16(device) else slow)


CHECKS: tuple[Callable[[Path], Iterator[Check]], ...] = (
    check_cores,
    check_memory,
    check_disk,
    check_open_files,
    check_file_system,
    check_packages,
    check_gpu,
    check_compiler,
    check_choices,
)
