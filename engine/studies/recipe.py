"""Recipe of a study: a TOML file of data sets, sets, IPCs, protocols, students and seeds.

Tables of ``data``, ``steps`` and ``sets`` name a verb, its inputs, and its options by their flags.
``@NAME`` stands for the output of another table, ``{ipc}`` and ``{data}`` for those of the cell; an
option may be a table of values by IPC.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from coreset.engine.evaluation.protocols import split_name
from coreset.engine.models.student_names import require_student
from coreset.shards.errors import UsageError

RECIPES = Path(__file__).parent / "recipes"
TRAIN, VAL = "train", "val"
VERBS = {
    "data": ("pack", "synth"),
    "steps": ("score", "concepts visual", "concepts import", "teach", "decode", "distill"),
    "sets": ("select", "distill", "ingest"),
}
WITH_IPC = ("select", "distill")
"""Verbs of sets that get the cell's ``--ipc``."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_OF_THE_CELL = ("student", "seed", "repeats")
Table: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Artifact to make by a verb; without a verb, one that is there at its only input."""

    verb: str
    inputs: tuple[str, ...]
    options: Table

    @property
    def references(self) -> Iterator[str]:
        """Names of the artifacts that it is made from."""
        return references([*self.inputs, *self.options.values()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Study: every set of every data set and IPC, under every protocol, student and seed."""

    ipcs: tuple[int, ...]
    students: tuple[str, ...]
    seeds: tuple[int, ...]
    data: Mapping[str, Mapping[str, Step]]
    """By data set, its ``train`` and ``val``."""
    steps: Mapping[str, Step] = field(default_factory=dict[str, Step])
    """What sets and teachers are made from, once per data set."""
    sets: Mapping[str, Step]
    protocols: Mapping[str, Table]
    """Options of `coreset train`."""
    measure: Table | None = None
    report: Table | None = None

    def __post_init__(self) -> None:
        if both := self.steps.keys() & self.sets.keys():
            raise UsageError(f"{min(both)} is a step and a set; rename one")
        for place, named, known in self._references():
            if unknown := [name for name in named if name not in known]:
                choice = f"name one of {', '.join(known)}" if known else "name files"
                raise UsageError(f"{place}: there is no @{unknown[0]} for it; {choice}")
        for name in (*self.steps, *self.sets):
            self._require_no_circle(name, ())
        for name, options in self.protocols.items():
            _require_possible(f"protocols.{name}", options, self.students)

    def _references(self) -> Iterator[tuple[str, Iterator[str], tuple[str, ...]]]:
        """Yield every place of the recipe with the names behind ``@``, and those it may name."""
        steps, every = tuple(self.steps), (TRAIN, VAL, *self.steps, *self.sets)
        for data, splits in self.data.items():
            yield from (
                (f"data.{data}.{name}", step.references, ()) for name, step in splits.items()
            )
        for kind, named in (("steps", self.steps), ("sets", self.sets)):
            yield from ((f"{kind}.{name}", step.references, every) for name, step in named.items())
        for name, options in self.protocols.items():
            yield f"protocols.{name}", references(options.values()), steps
        yield "measure", references((self.measure or {}).values()), every
        yield "report", references((self.report or {}).values()), ()

    def _require_no_circle(self, name: str, before: tuple[str, ...]) -> None:
        if name in before:
            raise UsageError(f"{' needs '.join([*before, name])}: a circle; break it")
        step = self.steps.get(name) or self.sets.get(name)
        for reference in step.references if step else ():
            self._require_no_circle(reference, (*before, name))


def references(values: Any) -> Iterator[str]:  # noqa: ANN401 - of TOML
    """Yield the names behind ``@`` in values, also in lists of them."""
    for value in values:
        if isinstance(value, str) and value.startswith("@"):
            yield value[1:]
        elif isinstance(value, list | dict):
            yield from references(value.values() if isinstance(value, dict) else value)


def read_recipe(named: str) -> Recipe:
    """Read a recipe file, or one that is shipped by its name; what is wrong is one line."""
    shipped = sorted(file.stem for file in RECIPES.glob("*.toml"))
    path = RECIPES / f"{named}.toml" if named in shipped else Path(named)
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        choice = f"name a TOML file or one of {', '.join(shipped)}"
        raise UsageError(f"recipe {named} cannot be read ({error.strerror}); {choice}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"recipe {path} is not TOML: {error}; mend that line") from error
    try:
        return _built(_expanded("", document))
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error


def _built(document: Table) -> Recipe:
    _require_keys("", document, [own.name for own in fields(Recipe)])
    for name in ("data", "sets", "protocols", "ipcs", "students", "seeds"):
        if not document.get(name):
            raise UsageError(f"{name} is empty, so there are no cells; name at least one")
    tables = {name: _tables(name, document.get(name, {})) for name in (*VERBS, "protocols")}
    data = {name: _data(f"data.{name}", table) for name, table in tables.pop("data").items()}
    protocols = {
        name: {"protocol": name} | _without(f"protocols.{name}", table, _OF_THE_CELL)
        for name, table in tables.pop("protocols").items()
    }
    steps = {
        kind: {name: _step(f"{kind}.{name}", table, VERBS[kind]) for name, table in named.items()}
        for kind, named in tables.items()
    }
    return Recipe(
        ipcs=_checked("ipcs", document["ipcs"], int, least=1),
        students=_checked("students", document["students"], str),
        seeds=_checked("seeds", document["seeds"], int, least=0),
        data=data,
        protocols=protocols,
        measure=_optional("measure", document),
        report=_optional("report", document),
        **steps,
    )


def _data(path: str, table: Table) -> dict[str, Step]:
    _require_keys(path, table, (TRAIN, VAL))
    return {
        split: _step(f"{path}.{split}", table.get(split), VERBS["data"], usual=())
        for split in (TRAIN, VAL)
    }


def _step(
    path: str,
    table: Any,  # noqa: ANN401 - of TOML
    verbs: tuple[str, ...],
    usual: tuple[str, ...] = (f"@{TRAIN}",),
) -> Step:
    if isinstance(table, str):
        return Step(verb="", inputs=(table,), options={})
    if not isinstance(table, dict) or table.get("verb") not in verbs:
        got = table.get("verb") if isinstance(table, dict) else table
        raise UsageError(f"{path}.verb must be one of {', '.join(verbs)}, got {got}")
    of_the_cell = path.startswith("sets.") and table["verb"] in WITH_IPC
    options = _without(path, table, ("ipc",) if of_the_cell else ())
    inputs = _checked(f"{path}.inputs", options.pop("inputs", usual), str)
    return Step(verb=options.pop("verb"), inputs=inputs, options=options)


def _checked(path: str, values: Any, kind: type, least: int = 0) -> tuple[Any, ...]:  # noqa: ANN401
    if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
        raise UsageError(f"{path} must be a list of {kind.__name__}, got {values!r}")
    if kind is int and (low := [value for value in values if value < least]):
        raise UsageError(f"{path} must be at least {least}, got {low[0]}")
    if len(set(values)) < len(values):
        raise UsageError(f"{path} names something twice, got {values!r}")
    return tuple(values)


def _tables(path: str, named: Any) -> dict[str, Any]:  # noqa: ANN401 - of TOML
    if not isinstance(named, dict) or not all(isinstance(one, dict) for one in named.values()):
        raise UsageError(f"{path} must hold tables, such as [{path}.NAME], got {named!r}")
    if odd := [name for name in named if not _NAME.fullmatch(name)]:
        raise UsageError(f"{path}.{odd[0]}: names are letters, digits and . + _ -; rename it")
    return dict(named)


def _optional(path: str, document: Table) -> Table | None:
    table = document.get(path)
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path} must be a table, such as [{path}], got {table!r}")
    return table


def _require_keys(path: str, table: Table, known: Any) -> None:  # noqa: ANN401
    if unknown := [name for name in table if name not in known]:
        where = f"{path}.{unknown[0]}".strip(".")
        raise UsageError(f"{where} is no key of a recipe; there are {', '.join(known)}")


def _without(path: str, table: Table, given: tuple[str, ...]) -> dict[str, Any]:
    if both := [name for name in given if name in table]:
        raise UsageError(f"{path}.{both[0]} is given by each cell; remove it")
    return dict(table)


def _require_possible(path: str, options: Table, students: tuple[str, ...]) -> None:
    """Refuse a protocol with soft labels without teachers, and students that it cannot train."""
    try:
        name, _ = split_name(str(options["protocol"]))
        for student in students:
            size = options.get("size")
            require_student(student, size if isinstance(size, int) else None)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if (name == "hard") == bool(options.get("teachers")):
        wanted = "takes no teachers" if name == "hard" else "takes teachers, got none; name them"
        raise UsageError(f"{path}.teachers: protocol {name} {wanted}")


def _expanded(path: str, value: Any) -> Any:  # noqa: ANN401 - of TOML
    """Replace ``$NAME`` and ``${NAME}`` in every text by the environment variable."""
    if isinstance(value, dict):
        return {name: _expanded(f"{path}.{name}".strip("."), one) for name, one in value.items()}
    if isinstance(value, list):
        return [_expanded(path, one) for one in value]
    text = os.path.expandvars(value) if isinstance(value, str) else value
    if isinstance(text, str) and (unset := re.search(r"\$\{?\w+\}?", text)):
        raise UsageError(f"{path}: environment variable {unset[0]} is not set; export it")
    return text
