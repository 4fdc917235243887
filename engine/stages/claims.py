"""``coreset claims``: judge the study's claims on its own values, and on those of RESULTS."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, TypeAlias

import tyro

from coreset.engine.runtime.text import aligned
from coreset.engine.stages.options import Result
from coreset.shards.errors import UsageError

if TYPE_CHECKING:
    from coreset.engine.evaluation.cells import Cells
    from coreset.engine.evaluation.claims import Claim, Verdict

    Judged: TypeAlias = tuple[Claim, dict[str, Verdict]]

WORDS = ("holds", "fails", "mixed", "not run", "not checkable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Judge what the study claims: each claim is a rule over accuracies, costs and metrics.

    Without RESULTS by the study's published values, as a check of the rules; with RESULTS by yours
    beside them. A claim is not run while a value is absent that could change its verdict.
    """

    results: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")] = None
    """Results folder (`coreset train`, `coreset measure`)."""
    id: str | None = None
    """Show one claim: its rule, and the values behind the verdict at every place."""

    def run(self) -> Result:
        """Judge every claim on each table of cells; print the verdicts, or one in detail."""
        from coreset.engine.condensed.systems import property_of
        from coreset.engine.evaluation.cells import published_cells
        from coreset.engine.evaluation.claims import judge, read_claims

        shown = [claim for claim in read_claims().values() if self.id in {None, claim.id}]
        if not shown:
            raise UsageError(f"id {self.id} is no claim; `coreset claims` lists them")
        tables = {"published": published_cells()}
        if self.results is not None:
            tables["here"] = _measured(self.results)
        judged = [
            (claim, {name: judge(claim, cells, property_of) for name, cells in tables.items()})
            for claim in shown
        ]
        facts = [asdict(claim) | {k: str(v) for k, v in found.items()} for claim, found in judged]
        shortened = [" ".join(map(str, cell)) for cell in [*tables.values()][-1].shortened]
        note = (f"of shortened protocols: {', '.join(shortened)}",) if shortened else ()
        lines = _table(judged) if self.id is None else _detail(*judged[0])
        return Result((*lines, *note), {"claims": facts, "shortened": shortened})


def _measured(path: Path) -> "Cells":
    from coreset.engine.evaluation.cells import measured_cells
    from coreset.engine.evaluation.result_tables import STUDENTS
    from coreset.engine.evaluation.results import Results
    from coreset.shards.format.files import missing

    students = Results(path).complete_rows(STUDENTS)
    if not students:
        raise missing(path, "train students into it: `coreset train`", otherwise="has no students")
    return measured_cells(students)


def _table(judged: "list[Judged]") -> tuple[str, ...]:
    header = ("id", *judged[0][1], "claim")
    rows = [
        (claim.id, *(shorten(str(verdict), 26) for verdict in each.values()), claim.claim)
        for claim, each in judged
    ]
    words = [[*each.values()][-1].word for _, each in judged]
    counts = ", ".join(f"{words.count(word)} {word}" for word in WORDS) + "; the others are values"
    return (*aligned(header, rows), f"{len(judged)} claims: {counts}")


def _detail(claim: "Claim", verdicts: "dict[str, Verdict]") -> Iterator[str]:
    text = f"{claim.id} ({claim.section}): {claim.claim}"
    yield from (text, f"rule: {claim.test}", f"note: {claim.note}")
    for name, verdict in verdicts.items():
        yield f"{name}: {verdict}"
        for each in verdict.instances:
            absent = f", no {each.absent}" if each.absent else ""
            values = "; ".join(f"{what} {value}" for what, value in each.reads.items())
            yield f"  {each.place or 'everywhere'}: {each.outcome}{absent} ({values})"
