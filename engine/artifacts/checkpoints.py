"""Checkpoints of a long training: directories ``gen-000007/``, listed by ``commit.json``.

A checkpoint is numbered by the updates of the training. It is written as ``.gen-000007.partial``,
synced as a tree and renamed. Only then ``commit.json`` names it, with the digests of all its files.
Two checkpoints are kept while the training runs, one when it is finished.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreset.shards.errors import StoreError
from coreset.shards.format.documents import build, parse
from coreset.shards.format.files import (
    json_bytes,
    new_directory,
    remove_tree,
    rename_directory,
    tree_digests,
    write_atomically,
)

COMMIT_NAME = "commit.json"
KEPT = 2
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Generation:
    number: int
    directory: str
    files: Mapping[str, str]
    """sha256 of every file, by relative name."""


@dataclass(frozen=True, slots=True)
class _Commits:
    """Content of ``commit.json``, the newest checkpoint first."""

    generations: tuple[_Generation, ...]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints in one directory."""

    directory: Path

    def commit(self, number: int, write: Callable[[Path], None]) -> None:
        """Commit a state; ``write`` fills an empty directory, ``number`` is higher each time."""
        name = _name_of(number)
        scratch = self.directory / f".{name}.partial"
        remove_tree(self.directory / name)
        new_directory(scratch)
        write(scratch)
        files = tree_digests(scratch)
        rename_directory(scratch, self.directory / name)
        entry = {"number": number, "directory": name, "files": files}
        self._record([entry, *(old for old in self._entries() if old["number"] < number)][:KEPT])

    def latest(self) -> tuple[int, Path] | None:
        """Return number and directory of the newest undamaged checkpoint; None if there is none.

        Raises:
            StoreError: Every checkpoint is damaged.
        """
        entries = self._entries()
        for older, entry in enumerate(entries, start=1):
            directory = self.directory / str(entry["directory"])
            if directory.is_dir() and tree_digests(directory) == entry["files"]:
                return int(entry["number"]), directory
            if older < len(entries):
                logger.warning("%s is damaged; going back one generation", directory)
        if entries:
            raise StoreError(f"{self.directory}: every generation is damaged; remove it, run again")
        return None

    def finish(self) -> None:
        """Keep only the newest checkpoint, so that the result does not depend on commit times."""
        self._record(self._entries()[:1])

    def _entries(self) -> list[dict[str, Any]]:
        path = self.directory / COMMIT_NAME
        try:
            if not path.is_file():
                return []
            commits = build(_Commits, parse(path.read_bytes())).generations
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); remove it, run again") from error
        if any(commit.directory != _name_of(commit.number) for commit in commits):
            raise StoreError(f"{path} names other directories than a scoring makes; remove it")
        return [asdict(commit) for commit in commits]

    def _record(self, entries: list[dict[str, Any]]) -> None:
        write_atomically(self.directory / COMMIT_NAME, json_bytes({"generations": entries}))
        kept = {str(entry["directory"]) for entry in entries}
        # Leftovers of killed commits (``.gen-*``) too: their numbers may never be committed again,
        # and the result must not depend on a kill.
        for pattern in ("gen-*", ".gen-*"):
            for directory in sorted(self.directory.glob(pattern)):
                if directory.name not in kept:
                    remove_tree(directory)


def _name_of(number: int) -> str:
    return f"gen-{number:06d}"
