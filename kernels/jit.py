"""Compilation of kernels by Numba, with the machine code kept on disk for later processes.

Numba's own cache compares the file of a function, not the files of the functions that it calls.
Here the name of the folder is a digest of the sources of all kernels and the versions of Python and
Numba. Without a folder that this user alone can write to, every process compiles in memory, because
the files are loaded as code.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.core.config

Function = TypeVar("Function", bound=Callable[..., Any])
_config: Any = numba.core.config


def kernel(function: Function) -> Function:
    """Compile on the first call, or load the code from disk; calls release the interpreter."""
    folder, before = code_folder(), _config.CACHE_DIR
    options: dict[str, Any] = {"nogil": True, "cache": folder is not None}
    # Numba reads this setting here only; other packages in this process keep their own.
    _config.CACHE_DIR = before if folder is None else str(folder)
    try:
        return cast("Function", numba.njit(**options)(function))
    finally:
        _config.CACHE_DIR = before


def cache_folder() -> Path:
    """Return the folder of what this user's runs keep for later ones (``CORESET_CACHE``)."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CORESET_CACHE") or user / "coreset")


def code_folder() -> Path | None:
    """Return the folder for the compiled code of these sources; None if it cannot be used."""
    try:
        base = cache_folder()
        folder = base / f"kernels-{_sources_digest()[:24]}"
        base.parent.mkdir(parents=True, exist_ok=True)
        for directory in (base, folder):
            directory.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(directory):
                return None
    except (OSError, RuntimeError):  # no home directory
        return None
    return folder if os.access(folder, os.W_OK) else None


@cache
def _is_private(folder: Path) -> bool:
    """Test whether this user owns a folder and nobody else may write to it; warn once if not."""
    status = folder.stat()
    if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
        return True
    warnings.warn(
        f"{folder} belongs to another user or others may write to it, so compiled kernels are not "
        f"kept there and every process compiles them anew; run `chmod go-w {folder}`, or set "
        "CORESET_CACHE to a folder of your own",
        RuntimeWarning,
        stacklevel=4,
    )
    return False


@cache
def _sources_digest() -> str:
    hasher = hashlib.sha256(sys.version.encode())
    for package in ("numba", "llvmlite", "numpy"):
        hasher.update(f"{package} {version(package)}\n".encode())
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        name = source.relative_to(folder).as_posix()
        hasher.update(name.encode() + b"\0" + source.read_bytes())
    return hasher.hexdigest()
