"""How the numbers were made: sets with their digests, versions, devices, the ledger of RESULTS."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.ledger import Line, lines_with
from engine.report.catalogue import ReportedSet, Row
from engine.report.tables import NOTHING, Cell, Table
from engine.tables import readable_bytes, readable_seconds

LEDGER_HEADER = ("started (UTC)", "stage", "wall time", "image passes", "images/s", "peak memory",
                 "device", "cores", "host")  # fmt: skip
_SHOWN = ("started", "stage", "wall_seconds", "images", "images_per_second", "peak_rss_bytes",
          "device", "cores", "host")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Tables on where the numbers come from."""

    sets: Table
    runtimes: Table
    ledger: Table


def origins(rows: Sequence[Row], sets: Iterable[ReportedSet], ledger: Iterable[Line]) -> Origins:
    """Describe how the rows came about.

    Args:
        rows: All rows of students and metrics.
        sets: The sets that they speak of.
        ledger: Ledger of RESULTS.
    """
    return Origins(
        sets=_set_table(rows, sets), runtimes=_runtime_table(rows), ledger=_ledger(ledger)
    )


def _set_table(rows: Sequence[Row], sets: Iterable[ReportedSet]) -> Table:
    stored = {row["set_digest"]: row["image_bytes"] for row in rows if "image_bytes" in row}
    return Table(
        caption="Condensed sets",
        header=("data", "set", "kind", "seed", "parameters", "images stored in", "digest", "place"),
        rows=tuple(
            (
                Cell(text=one.data),
                Cell(text=one.name),
                Cell(text=one.kind),
                Cell(text=str(one.seed), numeric=True),
                Cell(text=", ".join(f"{name} {value}" for name, value in one.parameters.items())),
                Cell(text=readable_bytes(stored.get(one.digest)), numeric=True),
                Cell(text=one.digest[:16]),
                Cell(text=one.path),
            )
            for one in sets
        ),
    )


def _runtime_table(rows: Sequence[Row]) -> Table:
    """Distinct versions, devices and settings, with the number of rows made under each."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        runtime = json.loads(row["runtime"])
        versions = runtime.pop("versions", {})
        stamp = f"train, {row['protocol']}" if "protocol" in row else f"measure, {row['backbone']}"
        key = (stamp, _pairs(runtime), _pairs(versions))
        counts[key] = counts.get(key, 0) + 1
    return Table(
        caption="Protocols, devices and versions",
        header=("made by", "rows", "runtime", "versions"),
        rows=tuple(
            (
                Cell(text=stamp),
                Cell(text=str(count), numeric=True),
                Cell(text=runtime or NOTHING),
                Cell(text=versions),
            )
            for (stamp, runtime, versions), count in sorted(counts.items())
        ),
    )


def _ledger(lines: Iterable[Line]) -> Table:
    return Table(
        caption="Ledger of these results: training and measuring",
        header=LEDGER_HEADER,
        rows=tuple(
            (
                Cell(text=line["started"][:19].replace("T", " ")),
                Cell(text=line["stage"]),
                Cell(text=readable_seconds(line["wall_seconds"]), numeric=True),
                Cell(text=f"{line['images']:,}", numeric=True),
                Cell(text=f"{line['images_per_second']:,.1f}", numeric=True),
                Cell(text=readable_bytes(line["peak_rss_bytes"]), numeric=True),
                Cell(text=line["device"]),
                Cell(text=str(line["cores"]), numeric=True),
                Cell(text=line["host"]),
            )
            for line in lines_with(lines, *_SHOWN)
        ),
    )


def _pairs(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != "absent")
