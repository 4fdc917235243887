"""Processes that import a peer's packages from their own folder, started before the clock."""

import os
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path


class MissingPeerError(Exception):
    """A peer cannot be imported here."""


@contextmanager
def pool_of(
    folder: Path | None, workers: int, versions: Callable[[], dict[str, str]]
) -> Generator[tuple[ProcessPoolExecutor, dict[str, str]]]:
    """Yield spawned processes that have imported a peer, and the versions of its packages.

    Args:
        folder: Its packages, beside those of the project; None if it needs no others.
        workers: Processes.
        versions: Imports the peer in a process and returns versions by package name.

    Raises:
        MissingPeerError: It cannot be imported; the message says why.
    """
    context = get_context("spawn")  # fork after threads hangs
    with ProcessPoolExecutor(workers, context, _enter, (str(folder or ""),)) as pool:
        try:
            found = [task.result() for task in [pool.submit(versions) for _ in range(workers)]]
        except (ImportError, OSError) as error:
            raise MissingPeerError(f"{type(error).__name__}: {error}") from error
        yield pool, found[0]


def _enter(folder: str) -> None:
    if folder:
        sys.path.insert(0, folder)
    # Progress bars and a look for newer versions are nobody's work here.
    os.environ |= {"TQDM_DISABLE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
