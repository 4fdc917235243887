"""Language of the rules that test claims: expressions of a few node types and functions over cells.

A rule reads `Cells` at a place, such as one data set and IPC, which keywords change:
``best(DD, protocol='rded')``. Nothing else of Python is evaluated.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import partial
from math import isnan
from statistics import fmean, median
from typing import Any, TypeAlias, TypeVar, cast

from coreset.engine.evaluation.cells import Accuracy, Cell, Cells
from coreset.engine.evaluation.published import ALL, BETAS, LISTS
from coreset.engine.evaluation.sensitivity import kendall_tau_b, rank_agreements, reversals
from coreset.shards.errors import UsageError

_Read = TypeVar("_Read")
Registry: TypeAlias = Callable[[str, str], str | None]
"""Property of a method by its name in the study; None where it is not known."""
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.BitAnd: operator.and_,
    ast.Mult: lambda a, b: Decimal(a) * Decimal(b), ast.Div: operator.truediv,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


class AbsentError(Exception):
    """A value that a rule reads is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Evaluation of expressions at one place."""

    cells: Cells
    domain: tuple[Cell, ...]
    """Cells in scope."""
    at: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Columns of the place."""
    names: Mapping[str, Any] = field(default_factory=lambda: dict(LISTS))
    """Lists and variables."""
    registry: Registry | None = None
    reads: dict[str, str] = field(default_factory=dict[str, str])
    """Values that were read."""

    def value(self, text: str) -> Any:  # noqa: ANN401 - a number, a truth, a name or a set
        """Evaluate an expression.

        Raises:
            AbsentError: A value that it needs is not there.
            UsageError: It is not of the language.
        """
        try:
            return self._visit(ast.parse(text.strip(), mode="eval").body)
        except (ZeroDivisionError, InvalidOperation) as error:
            raise AbsentError("quotient by 0") from error
        except (SyntaxError, MemoryError) as error:
            raise UsageError(f"rule {text!r} cannot be parsed ({error}); correct it") from error

    def _visit(self, node: ast.expr) -> Any:  # noqa: ANN401, C901, PLR0912 - a case per node
        match node:
            case ast.Constant(value=float() as number):
                value = Decimal(repr(number))
            case ast.Constant(value=str() | int() as value):
                pass
            case ast.Name(id=name) if name in self.names:
                value = self.names[name]
            case ast.List(elts=parts):
                value = [self._visit(part) for part in parts]
            case ast.Set(elts=parts):
                value = {self._visit(part) for part in parts}
            case ast.UnaryOp(op=ast.Not(), operand=part):
                value = not self._visit(part)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                value = _OPERATORS[type(op)](self._visit(left), self._visit(right))
            case ast.BoolOp(op=op, values=parts):
                value = (all if isinstance(op, ast.And) else any)(map(self._visit, parts))
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(
                type(op) in _OPERATORS for op in ops
            ):
                values = [self._visit(part) for part in (left, *rest)]
                pairs = zip(ops, values, values[1:], strict=False)
                value = all(_OPERATORS[type(op)](a, b) for op, a, b in pairs)
            case ast.IfExp(test=test, body=yes, orelse=no):
                value = self._visit(yes if self._visit(test) else no)
            case ast.GeneratorExp(
                elt=part, generators=[ast.comprehension(target=ast.Name(id=name), iter=of, ifs=[])]
            ):
                rules = (self.naming({name: each}) for each in self._visit(of))
                value = [rule._visit(part) for rule in rules]  # noqa: SLF001 - of this class
            case ast.Call(func=ast.Name(id=name), args=args, keywords=words) if name in _FUNCTIONS:
                values = []
                for part in args:
                    starred = isinstance(part, ast.Starred)
                    values += self._visit(part.value) if starred else [self._visit(part)]
                moved = self.moved({str(each.arg): self._visit(each.value) for each in words})
                value = _FUNCTIONS[name](moved, *values)
            case _:
                raise UsageError(f"rules do not know {ast.unparse(node)!r}; rewrite the rule")
        return value

    def naming(self, names: Mapping[str, Any]) -> "Rule":
        """Return the evaluation with further variables."""
        return replace(self, names={**self.names, **names})

    def moved(self, columns: Mapping[str, Any]) -> "Rule":
        """Return the evaluation at another place."""
        return replace(self, at={**self.at, **columns})

    def accuracy(self, method: str) -> Accuracy:
        """Read mean and std of a method at this place."""
        cell = Cell(**self.at)
        return self.read((*cell, method), self.cells.accuracies.get(cell, {}).get(method))

    def read(self, what: tuple[object, ...], value: _Read | None) -> _Read:
        """Keep and return a value that was looked up; refuse None."""
        if value is None:
            raise AbsentError(" ".join(map(str, what)))
        self.reads[" ".join(map(str, what))] = str(value)
        return value

    def row(self, **columns: object) -> dict[str, Accuracy]:
        """Read all methods at this place, or at another."""
        there = self.moved(columns)
        return {method: there.accuracy(method) for method in ALL}


def _mean(rule: Rule, method: str) -> Decimal:
    return rule.accuracy(method).mean


def _std(rule: Rule, method: str) -> Decimal:
    return _defined(rule.accuracy(method).std, f"std of {method}, trained once")


def _has(rule: Rule, method: str) -> bool:
    table = rule.cells.accuracies
    _defined(any(cell in table for cell in rule.domain) or None, "cell in scope")
    return method in table.get(Cell(**rule.at), {})


def _arg(rule: Rule, methods: Sequence[str]) -> set[str]:
    means = {method: _mean(rule, method) for method in methods}
    return {method for method in methods if means[method] == max(means.values())}


def _noise(rule: Rule, *lists: Sequence[str]) -> Decimal:
    """Combine the std of the best method of each list; of tied ones the largest."""
    stds = [max(_std(rule, method) for method in _arg(rule, each)) for each in lists]
    return sum((std * std for std in stds), Decimal()).sqrt()


def _avg(rule: Rule, text: str) -> Decimal:
    """Average an expression over the cells in scope at this place."""
    cells = [cell for cell in rule.domain if cell.matches(rule.at)]
    return _mean_of([Decimal(rule.moved(cell._asdict()).value(text)) for cell in cells])


def _mean_of(values: Sequence[Decimal]) -> Decimal:
    return sum(values, Decimal()) / len(values)


def _hours(rule: Rule, method: str, ipc: int) -> Decimal:
    return _number("hours", rule.moved({"ipc": ipc}), method)


def _best_beta(rule: Rule, method: str) -> Decimal:
    return max(BETAS, key=partial(_number, "acc", rule, method))


def _tau_beta(rule: Rule, method: str) -> float:
    accuracies = [_number("acc", rule, method, beta) for beta in BETAS]
    return _defined(kendall_tau_b(BETAS, accuracies), "ranking")


def _tau(rule: Rule, first: str, second: str) -> float:
    rows = [rule.row(protocol=each).values() for each in (first, second)]
    return _defined(kendall_tau_b(*([each.mean for each in row] for row in rows)), "ranking")


def _reversals(rule: Rule, first: str, second: str) -> int:
    rows = [rule.row(protocol=each) for each in (first, second)]
    stds = [accuracy.std for row in rows for accuracy in row.values()]
    _defined(sum(stds, Decimal()), "std of a single training")
    return len(reversals(*rows))


def _mean_tau(rule: Rule, column: str) -> float:
    table = {cell: rule.row(**cell._asdict()) for cell in rule.domain}
    return fmean(_defined(each.tau, "ranking") for each in rank_agreements(table, column))


def _registry(rule: Rule, method: str, name: str) -> str:
    return rule.read((name, "of", method), rule.registry and rule.registry(method, name))


def _defined(value: _Read | None, what: str) -> _Read:
    if value is None or isnan(cast("float", value)):
        raise AbsentError(what)
    return value


def _number(what: str, rule: Rule, method: str, *more: object) -> Decimal:
    others = [str(rule.at[name]) for name in sorted(rule.at.keys() - Cell._fields)]
    key = (what, rule.at["dataset"], method, rule.at.get("ipc"), *more, *others)
    return rule.read(key, rule.cells.values.get(key))


def _defined_by(text: str, rule: Rule, *values: object) -> Any:  # noqa: ANN401
    """Evaluate a function of A, or of A and B, that is defined in the language itself."""
    return rule.naming(dict(zip("AB", values, strict=False))).value(text)


def _plain(function: Callable[..., object], _rule: Rule, *values: object) -> object:
    return function(*values)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mean": _mean, "std": _std, "has": _has, "arg": _arg, "noise": _noise,
    "avg": _avg, "share": _avg, "hours": _hours, "best_beta": _best_beta, "tau_beta": _tau_beta,
    "tau": _tau, "reversals": _reversals, "mean_tau": _mean_tau, "registry": _registry,
    **{name: partial(_number, name) for name in ("acc", "rep", "div", "fid")},
} | {
    name: partial(_plain, function)
    for name, function in {
        "abs": abs, "min": min, "max": max, "set": set, "count": sum, "median": median,
        "mean_of": _mean_of,
    }.items()
} | {
    name: partial(_defined_by, text)
    for name, text in {
        "best": "max(mean(m) for m in A)",
        "worst": "min(mean(m) for m in A)",
        "avg_mean": "avg('mean(A)')",
        "spread": "max(A) - min(A)",
        "max_acc": "max(acc(A, b) for b in BETAS)",
        "acc_range": "spread(acc(A, b) for b in BETAS)",
        "excess": "hours(A, 10) - hours(B, 10)",
        "growth": "hours(A, 50) - hours(A, 10)",
        "breakeven": "10 + 40 * excess(A, B) / (growth(B) - growth(A))",
    }.items()
}  # fmt: skip
"""Lines through two costs of each, at IPC 10 and 50, meet at ``breakeven``."""
