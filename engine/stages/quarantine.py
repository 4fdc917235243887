"""``coreset quarantine``: list the files that packing refused, or try them again."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tyro

from coreset.engine.artifacts.pack_inputs import Account, bound, plan_again, spool_of
from coreset.engine.artifacts.writer import output_folder, replace_artifact
from coreset.engine.runtime.progress import progress
from coreset.engine.runtime.text import aligned
from coreset.engine.stages.options import DataPath, Result
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.records import read_refused
from coreset.shards.packing.pack import finish, list_path, retry_refused, thread_count, write_list

Action: TypeAlias = Annotated[
    Literal["show", "retry"], tyro.conf.Positional, tyro.conf.arg(metavar="show|retry")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """List the files that were not packed and why, or try them again once they are mended.

    A retry packs only the shards with refused files anew; the data set gets a new identity, the one
    that packing the mended source from the start would give.
    """

    action: Action
    """show lists the refused files; retry packs those that have become readable."""
    data: DataPath
    """Packed data set."""
    limit: int = 50
    """Refused files to show; 0 shows all."""
    csv: Path | None = None
    """CSV file to list all of them in."""
    src: Path | None = None
    """New path of the source, if it was moved after it was packed."""
    workers: int = 0
    """Threads of a retry; 0 is one per core."""

    def __post_init__(self) -> None:
        thread_count(self.workers)  # refused before anything is made

    def run(self) -> Result:
        """Show or retry."""
        manifest = Manifest.read(self.data)
        return self._show(manifest) if self.action == "show" else self._retry(manifest)

    def _show(self, manifest: Manifest) -> Result:
        rows: list[dict[str, Any]] = read_refused(self.data).to_pylist()
        shown = rows[: self.limit] if self.limit else rows
        table = [(row["reason"], row["source"], row["detail"]) for row in shown]
        lines = list(aligned(("reason", "file", "detail"), table)) if table else []
        if len(shown) < len(rows):
            lines.append(f"and {len(rows) - len(shown):,} more: --limit 0 shows all")
        if self.csv is not None:
            with output_folder(self.csv):
                write_list(self.csv, rows)
            lines.append(f"listed: {self.csv}")
        lines.append(f"{len(rows):,} of {manifest.n_found:,} files of {self.data} were refused")
        if rows:
            lines.append(f"next: mend them, then coreset quarantine retry {self.data}")
        return Result(tuple(lines), {"data": str(self.data), "refused": len(rows)})

    def _retry(self, before: Manifest) -> Result:
        if not before.n_quarantined:
            return Result((f"no file of {self.data} was refused: nothing to retry",))
        plan, provenance = plan_again(self.data, self.src)
        dataset = Dataset.open(self.data)
        with (
            replace_artifact(self.data, provenance) as work,
            progress("retry", before.n_quarantined, "shards at most") as bar,
        ):
            observer, workers = Account(work.meter, bar, work.scratch), thread_count(self.workers)
            n_new = retry_refused(dataset, plan, work.scratch, workers=workers, observer=observer)
            work.done = n_new == 0
            if n_new:
                manifest = finish(plan, work.scratch, list_path(self.data))
                work.provenance = bound(provenance, manifest)
        shutil.rmtree(spool_of(self.data), ignore_errors=True)
        after = Manifest.read(self.data)
        packed = f"{n_new:,} of {before.n_quarantined:,} refused files are packed now"
        line = f"{packed}, {after.n_quarantined:,} are refused still: {self.data}"
        advice = ("the data set has a new identity: score it again",) if n_new else ()
        return Result((line, *advice), {"data": str(self.data), "packed": n_new})
