"""Checks of this machine, one function per side of it.

Each function of ``CHECKS`` yields its findings; one that breaks down is itself a finding, so that
the table of ``coreset doctor`` is always complete.
"""

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
from typing import Any, TypeAlias

from coreset.engine.artifacts.provenance import versions
from coreset.engine.runtime.limits import available_memory_bytes, memory_limit_bytes, quota_cores
from coreset.engine.runtime.text import readable_bytes
from coreset.shards.errors import InterruptedRunError
from coreset.shards.format.files import rename_directory, write_atomically

GIB = 2**30
NEEDED_MEMORY_BYTES = 2 * GIB
NEEDED_DISK_BYTES = 10 * GIB
"""The environment alone takes 8.5 GB."""
NEEDED_OPEN_FILES = 1024
DRIVER_FILE = Path("/proc/driver/nvidia/version")
# module: distribution, for the versions of `engine.artifacts.provenance` and those that only must
# import
PACKAGES = {
    "numpy": "numpy",
    "numba": "numba",
    "pyarrow": "pyarrow",
    "simplejpeg": "simplejpeg",
    "PIL": "pillow",
    "zarr": "zarr",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "faiss": "faiss-gpu",
    "nvidia.dali": "nvidia-dali-cuda130",
    "webdataset": "webdataset",
    "sklearn": "scikit-learn",
    "plotly": "plotly",
    "jinja2": "jinja2",
    "safetensors": "safetensors",
}


class Verdict(StrEnum):
    """Meaning of a finding for the machine."""

    OK = "ok"
    WARN = "warn"
    """Works, but slower or not for long."""
    FAIL = "fail"
    """Stages will break or lose data."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    value: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""
    """Remedy of a verdict that is not ok."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The value for machines: plain numbers in the unit that the name says."""


CheckFunction: TypeAlias = Callable[[Path], Iterator[Check]]


def findings(path: Path) -> Iterator[Check]:
    """Run every check at ``path``, in the order of ``CHECKS``, and yield what each finds."""
    for check in CHECKS:
        yield from _complete(check, path)


def _complete(check: CheckFunction, path: Path) -> Iterator[Check]:
    """Yield the findings of one check; whatever it raises becomes the last one."""
    try:
        yield from check(path)
    except InterruptedRunError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken driver or package may raise anything
        name = check.__name__.removeprefix("check_").replace("_", " ")
        yield _failure(name, error, "repair what the error names")


def _failure(name: str, error: Exception, remedy: str) -> Check:
    message = " ".join(str(error).split()) or type(error).__name__
    return Check(name, message, Verdict.FAIL, remedy, {"error": type(error).__name__})


def check_cores(_path: Path) -> Iterator[Check]:
    """Cores by affinity, and whether a quota gives less time than that."""
    cores, quota = len(os.sched_getaffinity(0)), quota_cores()
    facts = {"cores": cores, "quota_cores": quota}
    if quota is not None and quota < cores:
        threads = max(1, int(quota))
        remedy = f"set OMP_NUM_THREADS={threads}, or threads will wait for each other"
        yield Check("cores", f"{cores}, quota {quota:g}", Verdict.WARN, remedy, facts)
    else:
        yield Check("cores", str(cores), facts=facts)


def check_memory(_path: Path) -> Iterator[Check]:
    """Available memory, and the limit of the control group."""
    available, limit = available_memory_bytes(), memory_limit_bytes()
    known = [amount for amount in (available, limit) if amount is not None]
    facts = {"available_bytes": available, "limit_bytes": limit}
    if not known:
        yield Check("memory", "unknown", Verdict.WARN, "mount /proc to see it", facts)
        return
    value = readable_bytes(min(known)) + (" (limit)" if min(known) == limit else " available")
    if min(known) < NEEDED_MEMORY_BYTES:
        remedy = f"free memory or raise the limit to {readable_bytes(NEEDED_MEMORY_BYTES)}"
        yield Check("memory", value, Verdict.FAIL, remedy, facts)
    else:
        yield Check("memory", value, facts=facts)


def check_disk(path: Path) -> Iterator[Check]:
    """Free space for this user on the disk of ``path``."""
    free = shutil.disk_usage(path).free
    value, facts = f"{readable_bytes(free)} free", {"free_bytes": free}
    if free < NEEDED_DISK_BYTES:
        remedy = f"free up to {readable_bytes(NEEDED_DISK_BYTES)} or choose another --path"
        yield Check("disk", value, Verdict.WARN, remedy, facts)
    else:
        yield Check("disk", value, facts=facts)


def check_open_files(_path: Path) -> Iterator[Check]:
    """Limit on open files: shards, stores and workers hold many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    if 0 <= soft < NEEDED_OPEN_FILES:
        remedy = f"run `ulimit -n {NEEDED_OPEN_FILES}` first"
        yield Check("open files", str(soft), Verdict.WARN, remedy, facts)
    else:
        yield Check("open files", str(soft), facts=facts)


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
        yield _failure("write, fsync, rename, lock", error, remedy)
        return
    if exclusive:
        yield Check("file lock", "exclusive")
    else:
        remedy = "choose another --path: two commands could write the same output here"
        yield Check("file lock", "held twice at once", Verdict.FAIL, remedy)


def _probe_rename(folder: Path) -> None:
    """Replace a file and publish a directory as the stages do.

    Raises:
        OSError: A step is refused, or the old content is still read after it.
    """
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
    for module, distribution in PACKAGES.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # theirs, and not about this machine
                importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a package may raise anything while it loads
            yield _failure(distribution, error, "run `make setup` again")
        else:
            yield Check(distribution, known.get(distribution, "imports"))


def check_gpu(_path: Path) -> Iterator[Check]:
    """Name, memory and driver of the GPU that torch would use; none is fine."""
    import torch

    driver = driver_version()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = readable_bytes(properties.total_memory)
        value = f"{properties.name}, {memory}, driver {driver or 'unknown'}"
        facts = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": [properties.major, properties.minor],
            "count": torch.cuda.device_count(),
            "driver": driver,
        }
        yield Check("GPU", value, facts=facts)
    elif driver is not None:
        remedy = f"update the driver: torch is built for CUDA {torch.version.cuda}"
        yield Check("GPU", f"driver {driver}, unusable", Verdict.WARN, remedy, {"driver": driver})
    else:
        yield Check("GPU", "none")


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """Version in the driver's file (``... Module  580.82.07  ...``); None without a driver."""
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
    missing = [name for name, where in parts.items() if where is None]
    if missing:
        remedy = "install gcc, g++ and Python's headers: torch.compile needs them"
        value = f"no {', no '.join(missing)}"
        yield Check("compiler", value, Verdict.WARN, remedy, parts)
    else:
        yield Check("compiler", str(parts["C++ compiler"]), facts=parts)


def _first_program(*names: str | None) -> str | None:
    return next((found for name in names if name and (found := shutil.which(name))), None)


def check_choices(_path: Path) -> Iterator[Check]:
    """Resolve ``--device auto``, ``--decoder auto`` and the training precision here."""
    from coreset.engine.data.decoders import choose_decoder
    from coreset.engine.runtime.device import has_fast_bfloat16, resolve_device

    device = resolve_device("auto")
    yield Check("--device auto", device.type)
    yield Check("--decoder auto", choose_decoder("auto", device.type).value)
    if has_fast_bfloat16(device):
        yield Check("precision", "bfloat16")
    else:
        yield Check("precision", "float32 (this CPU has no bfloat16 instructions)")


CHECKS: tuple[CheckFunction, ...] = (
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
