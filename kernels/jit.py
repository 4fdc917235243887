"""The one way to compile a kernel, kept on disk so that only the first process compiles.

Numba's own cache compares the file of a function, not those of what it calls: after an edit of
``kernels/jpeg/triangle.py`` it would go on running the old filter. Here everything that decides the
machine code names the folder: the sources of all kernels and the versions of Python and Numba
(which adds the processor and the arguments' types itself). Where that folder cannot be written,
kernels are compiled anew in every process, in memory; so they are where somebody else could write
to it, because what lies there is loaded as code.
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
_COMPILER = ("numba", "llvmlite", "numpy")
_WRITABLE_BY_OTHERS = 0o022


def kernel(function: Function) -> Function:
    """Compile on the first call: releases the interpreter, takes the code from disk if it is there.

    Raises:
        numba.TypingError: On a call with arguments of other types than the kernel can take.
    """
    folder, before = code_folder(), _config.CACHE_DIR
    options: dict[str, Any] = {"nogil": True, "cache": folder is not None}
    # Numba asks for the folder here only; others in this process keep theirs.
    _config.CACHE_DIR = before if folder is None else str(folder)
    try:
        return cast("Function", numba.njit(**options)(function))
    finally:
        _config.CACHE_DIR = before


def code_folder() -> Path | None:
    """Folder of the compiled code of exactly these sources; None if it cannot be used.

    Numba's index files are pickles, so the folder must be safe from other users: it and the cache
    that holds it belong to this user, and nobody else may write to them.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = Path(os.environ.get("CORESET_CACHE") or user / "coreset")
    folder = base / f"kernels-{_sources_digest()[:24]}"
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for one in (base, folder):
            one.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(one):
                return None
    except (OSError, RuntimeError):  # no home directory
        return None
    return folder if os.access(folder, os.W_OK) else None


@cache
def _is_private(folder: Path) -> bool:
    """Tell whether this user owns a folder and nobody else may write to it; warns once if not."""
    found = folder.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & _WRITABLE_BY_OTHERS:
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
    for package in _COMPILER:
        hasher.update(f"{package} {version(package)}\n".encode())
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        name = source.relative_to(folder).as_posix()
        hasher.update(name.encode() + b"\0" + source.read_bytes())
    return hasher.hexdigest()
