"""Command-line fields that a registry supplies: the choice of an entry, and its parameters.

The parameters of an entry are a frozen dataclass whose fields have defaults and are annotated with
``tyro.conf.arg(help=...)``. The registry is read when a command is parsed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal, Protocol, get_type_hints

import tyro


class Described(Protocol):
    """Record of a registry."""

    @property
    def summary(self) -> str:
        """Description of the entry, for the help."""
        ...


class Entry(Described, Protocol):
    """Record with parameters of its own."""

    @property
    def parameters(self) -> type[Any]:
        """Dataclass of the fields that the entry adds to the command."""
        ...


@dataclass(frozen=True, slots=True)
class NoParameters:
    """Parameters of an entry that has none."""


def choice_of(registry: Mapping[str, Described], *, default: str, optional: bool = False) -> object:
    """Annotate a field whose values are the names in a registry.

    Args:
        registry: Entries by name.
        default: Name that the field has without a word, or a sentence on how it is found.
        optional: Accept None.
    """
    summaries = " ".join(f"{name}: {entry.summary}." for name, entry in registry.items())

    def names() -> Any:  # noqa: ANN401 - a form of typing
        known: Any = Literal[tuple(registry)]  # pyright: ignore[reportInvalidTypeForm] - at run time
        return known | None if optional else known

    return tyro.conf.arg(
        help=summaries, help_behavior_hint=f"(default: {default})", constructor_factory=names
    )


def parameters_of(registry: Mapping[str, Entry]) -> object:
    """Annotate the field that holds the parameters of all entries of a registry."""
    return tyro.conf.arg(name="", constructor_factory=lambda: _all_parameters(registry))


def default_parameters(registry: Mapping[str, Entry]) -> Any:  # noqa: ANN401 - a class made here
    """Return the parameters of all entries at their defaults."""
    return _all_parameters(registry)()


def own_parameters(entry: Entry, given: object) -> Any:  # noqa: ANN401 - of the entry's class
    """Pick an entry's parameters from those of all entries, and check them."""
    names = (one.name for one in fields(entry.parameters))
    return entry.parameters(
        **{name: getattr(given, name) for name in names if hasattr(given, name)}
    )


def _all_parameters(registry: Mapping[str, Entry]) -> type[Any]:
    columns = {
        one.name: (one.name, hints[one.name], field(default=one.default))
        for entry in registry.values()
        for hints in [get_type_hints(entry.parameters, include_extras=True)]
        for one in fields(entry.parameters)
    }
    return make_dataclass("Parameters", columns.values(), kw_only=True)
