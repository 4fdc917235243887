"""``coreset methods``: what is known of the systems of the study, and how to get their sets."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Annotated

import tyro

from coreset.engine.condensed.systems import SYSTEMS, System, system_of
from coreset.engine.runtime.text import aligned
from coreset.engine.stages.options import Result
from coreset.shards.errors import UsageError

_COLUMNS = ("system", "imported by layout", "built by", "cost grows with IPC", "licence")
_TOLD_APART = {"released", "layout", "methods", "missing", "commands"}


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
            lines = tuple(_about(name, SYSTEMS[name]))
            return Result(lines, {"methods": {name: asdict(SYSTEMS[name])}})
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
        data = {name: asdict(system) for name, system in SYSTEMS.items()}
        return Result((*aligned(_COLUMNS, rows), last), {"methods": data})


def _written(name: str) -> str:
    """Return the name of a system as it is written; refuse another, with those near it."""
    if system := system_of(name):
        return system
    written = {known.lower(): known for known in SYSTEMS}
    near = [written[key] for key in get_close_matches(name.lower(), written)]
    known = f"near it: {', '.join(near)}" if near else f"known are {', '.join(SYSTEMS)}"
    raise UsageError(f"name must be a system of the study, got {name}; {known}")


def _about(name: str, system: System) -> Iterator[str]:
    """Yield the fields of a record, then the commands that take in or build its sets."""
    fields = {**asdict(system), "imported": system.imported, "built": system.built}
    rows = [
        (field.replace("_", " "), ", ".join(map(str, value)))
        for field, value in ((field, _listed(value)) for field, value in fields.items())
        if field not in _TOLD_APART and value
    ]
    rows += [
        ("released set", f"{own.data}, IPC {own.ipcs} (layout {own.layout}): {own.where}")
        for own in system.released
    ]
    yield from aligned((name, ""), rows)
    for layout in dict.fromkeys([system.layout, *(own.layout for own in system.released)]):
        source = "LIST SET --data DATA" if layout == "list" else f"SRC SET --layout {layout}"
        if layout:
            yield f"coreset ingest {source} --method {name}"
    yield from system.commands


def _listed(value: object) -> tuple[object, ...]:
    """Return the parts of a field, of which one that has no value has none."""
    return value if isinstance(value, tuple) else () if value is None else (value,)
