"""``coreset methods``: what is known of the systems of the study, and how to get their sets."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import tyro

from coreset.engine.condensed.systems import SYSTEMS, System, system_of
from coreset.engine.runtime.text import aligned
from coreset.engine.stages.options import Result
from coreset.shards.errors import UsageError

_COLUMNS = ("system", "imported by layout", "built by", "cost grows with IPC", "licence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """List the sixteen systems of the study, or everything about one and the commands to get it.

    Example: coreset methods fadrm+
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """System, or a method that builds its sets; default: a table of all."""

    def run(self) -> Result:
        """Print the table, or one system."""
        if self.name:
            name = _written(self.name)
            return Result(tuple(_about(name, SYSTEMS[name])), {"methods": _facts(name)})
        rows = [
            (
                name,
                own.layout or "no",
                ", ".join(own.methods) or "no",
                own.grows_with_ipc,
                own.licence,
            )
            for name, own in SYSTEMS.items()
        ]
        last = "`coreset methods NAME` says everything about one, and how to get its sets"
        return Result((*aligned(_COLUMNS, rows), last), {"methods": _facts(*SYSTEMS)})


def _written(name: str) -> str:
    """Return the name of a system as it is written; refuse another, with those near it."""
    if system := system_of(name):
        return system
    written = {known.lower(): known for known in SYSTEMS}
    near = [written[key] for key in get_close_matches(name.lower(), written)]
    known = f"near it: {', '.join(near)}" if near else f"known are {', '.join(SYSTEMS)}"
    raise UsageError(f"name must be a system of the study, got {name}; {known}")


def _facts(*names: str) -> dict[str, Any]:
    return {
        name: {**asdict(SYSTEMS[name]), "ingest": _ingest_commands(name, SYSTEMS[name])}
        for name in names
    }


def _about(name: str, system: System) -> Iterator[str]:
    rows = [
        ("family", system.family),
        ("needs the full data", system.needs_full_data),
        ("generative model", system.generative_use),
        ("classifier", system.classifier),
        ("cost grows with IPC", system.grows_with_ipc),
        ("new data ask for", system.new_data_needs),
        ("code", system.code),
        ("licence", system.licence),
        *(
            ("released set", f"{own.data}, IPC {own.ipcs} (layout {own.layout}): {own.where}")
            for own in system.released
        ),
        ("imported", system.imported),
        ("built", system.built),
        ("published cost", "; ".join([system.published, *_published(system)])),
        ("left out of a cost", system.left_out),
        ("proved by", ", ".join(system.proof)),
    ]
    yield from aligned((name, ""), rows)
    yield from _ingest_commands(name, system)
    yield from system.commands


def _published(system: System) -> Iterator[str]:
    if system.published_seconds is not None:
        yield f"{system.published_seconds} s per image"
    if system.published_hours is not None:
        few, many = system.published_hours
        yield f"{few} and {many} hours for ImageNet-1K at IPC 10 and 50"


def _ingest_commands(name: str, system: System) -> list[str]:
    """Return a command for each layout in which its sets come."""
    layouts = dict.fromkeys([system.layout, *(own.layout for own in system.released)])
    return [
        f"coreset ingest LIST SET --data DATA --method {name}"
        if layout == "list"
        else f"coreset ingest SRC SET --layout {layout} --method {name}"
        for layout in layouts
        if layout
    ]
