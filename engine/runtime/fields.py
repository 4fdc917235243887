"""Fields of commands: checks of their values, and fields that a registry supplies.

A registry holds entries by name, with a ``summary`` and, as ``parameters``, a frozen dataclass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import tyro

from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise ``UsageError`` unless ``value >= least``."""
    if not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ``UsageError`` unless ``low <= value < high``."""
    if not low <= value < high:
        raise UsageError(f"{name} must be in [{low}, {high}), got {value}")


def require_class_size(dataset: Dataset, option: str, asked: int, remedy: str = "") -> None:
    """Raise ``UsageError`` unless every class has as many images as an option asks."""
    sizes = np.bincount(dataset.labels, minlength=len(dataset.classes))
    if (size := int(sizes.min())) < asked:
        raise class_too_small(dataset.classes[sizes.argmin()], size, option, asked, remedy=remedy)


def class_too_small(
    name: str, size: int, option: str, asked: int, *, kind: str = "class", remedy: str = ""
) -> UsageError:
    """Make the error of a class, or of a group in its place, that has too few images."""
    return UsageError(
        f"{option} must be at most the size of every {kind}, got {asked}, but {kind} {name} has "
        f"{size} images; {remedy or f'lower --{option}'}"
    )


@dataclass(frozen=True, slots=True)
class NoParameters:
    """Parameters of an entry that has none."""


def choice_of(registry: Mapping[str, Any], *, default: str = "", optional: bool = False) -> object:
    """Annotate a field of names in a registry; ``optional``: None, too. Help shows ``default``."""
    summaries = " ".join(f"{name}: {entry.summary}." for name, entry in registry.items())

    def names() -> Any:  # noqa: ANN401 - a form of typing
        known: Any = Literal[tuple(registry)]  # pyright: ignore[reportInvalidTypeForm] - at run time
        return known | None if optional else known

    hint = f"(default: {default})" if default else "(required)"
    return tyro.conf.arg(help=summaries, help_behavior_hint=hint, constructor_factory=names)


def parameters_of(registry: Mapping[str, Any]) -> object:
    """Annotate the field with the parameters of all entries of a registry; None: the defaults.

    Entries may share a parameter. Where its defaults differ it is None, which `own_parameters`
    turns into the default of the entry that is meant; the hint of its help has to name them.
    """

    def parameters() -> type[Any]:
        columns = dict[str, tuple[str, Any, Any]]()
        for entry in registry.values():
            hints = get_type_hints(entry.parameters, include_extras=True)
            for own in fields(entry.parameters):
                hint, default = hints[own.name], own.default
                if own.name in columns and columns[own.name][2].default != default:
                    hint, default = Annotated[hint.__origin__ | None, *hint.__metadata__], None
                columns[own.name] = (own.name, hint, field(default=default))
        return make_dataclass("Parameters", columns.values(), kw_only=True)

    return tyro.conf.arg(name="", constructor_factory=parameters)


def own_parameters(entry: Any, given: object) -> Any:  # noqa: ANN401 - of any registry
    """Pick an entry's parameters from those of all entries, if given, and check them."""
    values = {own.name: getattr(given, own.name, None) for own in fields(entry.parameters)}
    return entry.parameters(**{name: one for name, one in values.items() if one is not None})
