"""Table of the study's systems, for docs/methods.md: from the registry, and from recorded costs."""

from coreset.bench.docs import markdown
from coreset.bench.harness import Row, read, records_of
from coreset.engine.condensed.systems import SYSTEMS, System, system_of


def systems() -> str:
    """Render how each system exists here, what its sets cost, and which tests prove it."""
    recorded = records_of("distilled_study.sets")
    costs = {row["study_name"] or system_of(row["set"]): row for row in recorded}
    rows = [
        [
            name,
            system.imported,
            ", ".join(f"`{method}`" for method in system.methods) or system.built,
            _cost(costs[name]) if name in costs else _step(system),
            ", ".join(f"`{file}`" if "/" in file else file for file in system.proof),
        ]
        for name, system in SYSTEMS.items()
    ]
    return markdown(["system", "imported", "built", "cost measured", "test that proves it"], rows)


def _cost(row: Row) -> str:
    seconds = sum(wall for wall, _ in row["stages"].values())
    return f"{seconds:,.0f} s for ImageNette at IPC {row['ipc']}, from photographs on"


def _step(system: System) -> str:
    """Render the speed of a method that has no set of its own, or say why there is no cost."""
    for row in read("distill"):
        ours = row.get("role") == "ours" and row.get("method") in system.methods
        if ours and "milliseconds" in row:
            return f"{row['milliseconds']:.0f} ms a step (`{row['method']}`)"
    return f"no, because {'no run is recorded here' if system.methods else 'it is not built'}"


BLOCKS = {"systems": systems}
