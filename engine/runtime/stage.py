"""What every stage shares: path arguments, checks of fields, and the outcome that it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias

import tyro

from coreset.kernels.scores import SCORES
from coreset.shards.errors import CoresetError, UsageError

_Positional = tyro.conf.Positional
SourcePath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="SRC")]
DataPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="DATA")]
ScoresPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="SCORES")]
FeaturesPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="FEATURES")]
PixelsPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="PIXELS")]
SetPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="SET")]
ValPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="VAL")]
ResultsPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="RESULTS")]
HtmlPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="HTML")]

DecoderChoice: TypeAlias = Literal["auto", "dali", "turbo", "fast", "pillow"]
_ONE_OF_SCORES = tyro.conf.arg(metavar=f"{{{','.join(SCORES)}}}")
ScoreName: TypeAlias = Annotated[str, _ONE_OF_SCORES]
"""Name of a score; the help lists all of them. Which were stored, the scores artifact tells."""
ScoreNameOrNone: TypeAlias = Annotated[str | None, _ONE_OF_SCORES]


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb says at its end."""

    lines: tuple[str, ...]
    """For people; the last one names the next command."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For machines (``--json``)."""
    failure: CoresetError | None = None
    """Raised once the lines are out, by verbs whose findings are worth reading when they fail."""


class Stage(Protocol):
    """A frozen dataclass that is its own command line."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def run(self) -> Result:
        """Do it."""
        ...


def shaping_fields(stage: Stage, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields that shape the result: everything but paths and the fields named in ``without``."""
    chosen: dict[str, Any] = {}
    for one in fields(stage):
        value = getattr(stage, one.name)
        if one.name not in without and not isinstance(value, PathLike):
            chosen[one.name] = list(value) if isinstance(value, tuple) else value
    return chosen


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise ``UsageError`` unless ``value >= least``."""
    if not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ``UsageError`` unless ``low <= value < high``."""
    if not low <= value < high:
        raise UsageError(f"{name} must be in [{low}, {high}), got {value}")
