"""Checkpoints of a long training: directories ``gen-000007/``, listed by ``commit.json``.

A checkpoint is numbered by the updates of the training, written beside its place, synced and
renamed. Only then ``commit.json`` names it, with the digests of its files.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from coreset.shards.errors import StoreError
from coreset.shards.format.files import (
    build,
    json_bytes,
    new_directory,
    parse,
    remove_tree,
    rename_directory,
    tree_digests,
    write_atomically,
)

COMMIT_NAME = "commit.json"
KEPT = 2
NAME = "gen-{:06d}"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Commit:
    number: int
    directory: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints in one directory."""

    directory: Path

    def commit(self, number: int, write: Callable[[Path], None]) -> None:
        """Commit a state; ``write`` fills an empty directory, ``number`` is higher each time."""
        name = NAME.format(number)
        scratch = self.directory / f".{name}.partial"
        remove_tree(self.directory / name)
        new_directory(scratch)
        write(scratch)
        commit = _Commit(number, name, tree_digests(scratch))
        rename_directory(scratch, self.directory / name)
        older = (old for old in self._commits() if old.number < number)
        self._record((commit, *islice(older, KEPT - 1)))

    def latest(self) -> tuple[int, Path] | None:
        """Return number and directory of the newest undamaged checkpoint; None if none was made."""
        commits = self._commits()
        for commit in commits:
            directory = self.directory / commit.directory
            if directory.is_dir() and tree_digests(directory) == commit.files:
                return commit.number, directory
            if commit is not commits[-1]:
                logger.warning("%s is damaged; going back one checkpoint", directory)
        if commits:
            raise StoreError(f"{self.directory}: every checkpoint is damaged; remove it, run again")
        return None

    def finish(self) -> None:
        """Keep only the newest checkpoint, so that the result does not depend on commit times."""
        self._record(self._commits()[:1])

    def _commits(self) -> tuple[_Commit, ...]:
        """Read ``commit.json``, the newest checkpoint first."""
        path = self.directory / COMMIT_NAME
        try:
            if not path.is_file():
                return ()
            entries = parse(path.read_bytes())["generations"]
            commits = tuple(build(_Commit, entry) for entry in entries)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{path} cannot be read ({error}); remove it, run again") from error
        if any(commit.directory != NAME.format(commit.number) for commit in commits):
            raise StoreError(f"{path} names other directories than a scoring makes; remove it")
        return commits

    def _record(self, commits: tuple[_Commit, ...]) -> None:
        document = {"generations": [asdict(commit) for commit in commits]}
        write_atomically(self.directory / COMMIT_NAME, json_bytes(document))
        kept = {commit.directory for commit in commits}
        # Leftovers of killed commits (``.gen-*``) too: their numbers may never be committed again,
        # and the result must not depend on a kill.
        for directory in [*self.directory.glob("gen-*"), *self.directory.glob(".gen-*")]:
            if directory.name not in kept:
                remove_tree(directory)
