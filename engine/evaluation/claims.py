"""The study's claims, each judged by its rule on the cells of the study or on ours.

A rule is ``each K: E``, ``some K: E``, ``most K: E`` (K: columns or ``x in LIST``), one comparison,
``value: E`` or ``winner: A if E, B if E, else C``. Columns run over the study's cells in scope, so
that what was not run counts: with values missing no verdict is given that they could change.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from coreset.engine.evaluation import published
from coreset.engine.evaluation.cells import Cell, Cells, published_cells
from coreset.engine.evaluation.rules import AbsentError, Registry, Rule
from coreset.shards.errors import UsageError

NOT_RUN, NOT_CHECKABLE = "not run", "not checkable"
_QUANTIFIED = re.compile(r"(each|some|most) (.+?): (.+)")
_COMMA = re.compile(r", (?![^\[]*\])")
_CHOICE = re.compile(r"(\w+) if (.+?), (?=\w+ if |else )")
_BROKEN = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim, its scope and its rule."""

    id: str
    section: str
    claim: str
    scope: str
    test: str
    from_published: str
    note: str

    @property
    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of cells that the scope restricts."""
        pairs = (part.partition("=") for part in self.scope.split(";"))
        named = {name: words.split("|") for name, _, words in pairs if words != "*"}
        return {
            name: [int(word) for word in words] if name == "ipc" else words
            for name, words in named.items()
            if name in Cell._fields
        }


class Instance(NamedTuple):
    """One place where a rule was evaluated."""

    place: str
    outcome: Any
    """Result of the rule; None where a value is absent."""
    absent: str
    """The first absent value; empty if there is none."""
    reads: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Judgement of a rule over the cells."""

    word: str
    """holds, fails, mixed, not run, not checkable, or a value."""
    instances: tuple[Instance, ...] = ()
    counts: bool = False
    """Tells in how many places the rule is true."""

    def __str__(self) -> str:
        outcomes = [each.outcome for each in self.instances]
        n_absent = outcomes.count(None)
        if not self.counts or n_absent == len(outcomes):
            return self.word
        absent = f" ({n_absent} absent)" if n_absent else ""
        return f"{self.word} {outcomes.count(True)}/{len(outcomes) - n_absent}{absent}"


def read_claims() -> dict[str, Claim]:
    """Read the claims that are shipped, by id."""
    return {row["id"]: Claim(**row) for row in published.rows("claims")}


def judge(claim: Claim, cells: Cells, registry: Registry | None = None) -> Verdict:
    """Evaluate the rule of a claim.

    Raises:
        UsageError: It is not a rule.
    """
    if claim.test.startswith("no rule"):
        return Verdict(word=NOT_CHECKABLE)
    columns = claim.columns
    domain = tuple(cell for cell in published_cells().accuracies if cell.matches(columns))
    at = {name: values[0] for name, values in columns.items() if len(values) == 1}
    rule = Rule(cells=cells, domain=domain, at=at, registry=registry)
    try:
        return _verdict(rule, claim.test)
    except _BROKEN as error:
        text = f"rule of {claim.id} cannot be evaluated ({type(error).__name__}: {error})"
        raise UsageError(f"{text}; see coreset.engine.evaluation.rules") from error


def _verdict(rule: Rule, test: str) -> Verdict:
    kind, _, rest = test.partition(": ")
    if kind == "value":
        return _value(rule, rest.partition(";")[0])
    if kind == "winner":
        return _winner(rule, rest)
    found = _QUANTIFIED.fullmatch(test)
    quantifier, keys, expression = found.groups() if found else ("each", "", test)
    instances = tuple(_instance(*place, expression) for place in _places(rule, keys))
    word = _word(quantifier, [each.outcome for each in instances])
    return Verdict(word=word, instances=instances, counts=bool(found))


def _word(quantifier: str, outcomes: Sequence[bool | None]) -> str:
    """Judge a quantifier; what is absent may be either."""
    n_true, n_false, n = outcomes.count(True), outcomes.count(False), len(outcomes)
    if quantifier == "each" and n_true and n_false:
        return "mixed"
    holds, fails = {
        "each": (n_true == n, n_false == n),
        "some": (n_true > 0, n_false == n),
        "most": (2 * n_true > n, 2 * n_false >= n),
    }[quantifier]
    return "holds" if n and holds else "fails" if n and fails else NOT_RUN


def _instance(place: str, rule: Rule, expression: str) -> Instance:
    try:
        return Instance(place, rule.value(expression), "", rule.reads)
    except AbsentError as error:
        return Instance(place, None, str(error), rule.reads)


def _places(rule: Rule, keys: str) -> Iterator[tuple[str, Rule]]:
    """Yield each combination of columns in scope and of values of lists, with its name."""
    parts = [part.partition(" in ") for part in _COMMA.split(keys) if part]
    columns = [name for name, _, values in parts if not values]
    columns = list(Cell._fields) if columns == ["cell"] else columns
    lists = {name: rule.value(values) for name, _, values in parts if values}
    at = dict.fromkeys(tuple(getattr(cell, name) for name in columns) for cell in rule.domain)
    for place, values in product(at, product(*lists.values())):
        here = {**rule.at, **dict(zip(columns, place, strict=True))}
        moved = replace(rule, at=here, reads={}).naming(dict(zip(lists, values, strict=True)))
        yield " ".join(map(str, (*here.values(), *values))), moved


def _value(rule: Rule, text: str) -> Verdict:
    """Give a value, ``tau=0.270``, or several named by what they are of, ``DiT/AUM=42.9``."""
    expression, _, keys = text.partition(" for ")
    places = list(_places(rule, keys))
    instances = tuple(_instance(*place, expression) for place in places)
    if any(each.outcome is None for each in instances):
        return Verdict(word=NOT_RUN, instances=instances)
    call = expression.removesuffix(")").replace("(", ", ").split(", ")
    shown = [
        f"{'/'.join(place.names[name] for name in call[1:])}={instance.outcome:.1f}"
        if keys
        else f"{call[0]}={instance.outcome:.3f}"
        for (_, place), instance in zip(places, instances, strict=True)
    ]
    return Verdict(word=", ".join(shown), instances=instances)


def _winner(rule: Rule, text: str) -> Verdict:
    """Give the name of the first comparison that is true, or the last name."""
    (place,) = _places(rule, "")
    found = [(name, _instance(*place, test)) for name, test in _CHOICE.findall(text)]
    tie = text.rpartition(" else ")[2], found[-1][1]
    name, instance = next((each for each in found if each[1].outcome is not False), tie)
    return Verdict(word=NOT_RUN if instance.absent else name, instances=(instance,))
