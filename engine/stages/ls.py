"""``coreset ls``: list the artifacts and results below a folder."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.runtime.result import Result
from coreset.engine.runtime.text import aligned, readable_bytes
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.files import files_below

RESULT_TABLES = {"students.parquet": "train", "metrics.parquet": "measure"}
DIGEST_CHARACTERS = 12
_HEADER = ("kind", "name", "made by", "size", "digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One row of the listing."""

    kind: str
    """dataset, scores, features, set, results, or damaged if its provenance cannot be read."""
    name: str
    """Path below the listed folder."""
    made_by: str
    size_bytes: int
    digest: str
    """Empty for results, which grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """List the artifacts and results in a folder and in its folders, from their provenance."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path()
    """Folder to look into; default: the current one."""

    def run(self) -> Result:
        """Read the provenance of every directory at most two levels below ``folder``."""
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} is not a folder; name one that holds artifacts")
        artifacts = [
            artifact for path in _folders(self.folder) for artifact in _read(path, self.folder)
        ]
        data = {"artifacts": [asdict(artifact) for artifact in artifacts]}
        if not artifacts:
            return Result((f"no artifacts in {self.folder}; `coreset demo` makes some",), data)
        return Result(aligned(_HEADER, [_row(artifact) for artifact in artifacts]), data)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the visible directories one and two levels below ``root``, sorted."""
    folders = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir())
    for path in sorted(folders):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path


def _read(path: Path, root: Path) -> Iterator[Artifact]:
    """Yield the artifact in ``path``, if it holds one."""
    stages = [stage for table, stage in RESULT_TABLES.items() if (path / table).is_file()]
    if (path / PROVENANCE_NAME).is_file():
        kind, made_by, digest = _origin(path)
    elif stages:
        kind, made_by, digest = "results", ", ".join(stages), ""
    else:
        return
    size_bytes = sum(file.stat().st_size for file in files_below(path))
    name = path.relative_to(root).as_posix()
    yield Artifact(kind=kind, name=name, made_by=made_by, size_bytes=size_bytes, digest=digest)


def _origin(path: Path) -> tuple[str, str, str]:
    try:
        provenance = Provenance.read(path)
    except StoreError:
        return "damaged", "?", ""
    return provenance.kind, provenance.stage, provenance.digest


def _row(artifact: Artifact) -> tuple[str, ...]:
    size, digest = readable_bytes(artifact.size_bytes), artifact.digest[:DIGEST_CHARACTERS]
    return artifact.kind, artifact.name, artifact.made_by, size, digest or "-"
