"""``coreset ls``: list the artifacts and results below a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.runtime.text import aligned, readable_bytes
from coreset.engine.stages.options import Result
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.files import files_below

RESULT_TABLES = {"students": "train", "metrics": "measure"}
DIGEST_CHARACTERS = 12
_ARTIFACTS = ("kind", "name", "made by", "size", "digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """List the artifacts and results in a folder and in its folders, from their provenance."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path()
    """Folder to look into; default: the current one."""

    def run(self) -> Result:
        """Read the provenance of every directory at most two levels below ``folder``."""
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} is not a folder; name one that holds artifacts")
        artifacts, rows = list[dict[str, Any]](), list[tuple[str, ...]]()
        for path in sorted([*self.folder.glob("*"), *self.folder.glob("*/*")]):
            name, origin = path.relative_to(self.folder).as_posix(), _origin(path)
            if origin is not None and "/." not in f"/{name}":
                kind, stage, digest = origin
                size = sum(file.stat().st_size for file in files_below(path))
                artifacts.append({"kind": kind, "name": name, "made_by": stage})
                artifacts[-1] |= {"size_bytes": size, "digest": digest}
                short = digest[:DIGEST_CHARACTERS] or "-"
                rows.append((kind, name, stage, readable_bytes(size), short))
        none = (f"no artifacts in {self.folder}; `coreset demo` makes some",)
        return Result(aligned(_ARTIFACTS, rows) if rows else none, {"artifacts": artifacts})


def _origin(path: Path) -> tuple[str, str, str] | None:
    """Return kind, stage and digest of the artifact in ``path``; results grow and have none."""
    if (path / PROVENANCE_NAME).is_file():
        try:
            provenance = Provenance.read(path)
        except StoreError:
            return "damaged", "?", ""
        return provenance.kind, provenance.stage, provenance.digest
    stages = [stage for table, stage in RESULT_TABLES.items() if _is_there(path, table)]
    return ("results", ", ".join(stages), "") if stages else None


def _is_there(results: Path, table: str) -> bool:
    parquet, row_files = results / f"{table}.parquet", results.glob(f"{table}-*.rows.jsonl")
    return parquet.is_file() or any(row_files)
