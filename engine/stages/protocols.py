"""``coreset protocols``: what a protocol sets, value by value, and where each is from."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import tyro

from coreset.engine.evaluation.protocols import PROTOCOLS, named_protocol, split_name
from coreset.engine.evaluation.protocols.variants import variants_of
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.text import aligned
from coreset.engine.stages.options import Result

DATA_SETS = {"imagenette": 10, "imagenet100": 100, "imagenet1k": 1000}
"""Classes of the study's data sets."""
Action: TypeAlias = Annotated[Literal["show"], tyro.conf.Positional, tyro.conf.arg(metavar="show")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocols:
    """Print every value of an evaluation protocol with its source and how certain it is.

    Example: coreset protocols show rded@1+factor1 --data imagenet100 --ipc 50
    """

    action: Action
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME[+VARIANT]")]
    """hard, rded or edc, with variants or without; --help of `coreset train` tells which is which.
    """
    data: Literal["imagenette", "imagenet100", "imagenet1k"] = "imagenette"
    """Data set of the study, whose number of classes counts."""
    classes: int | None = None
    """Number of classes of any other data set."""
    ipc: int = 10
    """Images per class."""

    def __post_init__(self) -> None:
        split_name(self.name)
        require_at_least("ipc", self.ipc, 1)
        if self.classes is not None:
            require_at_least("classes", self.classes, 1)

    def run(self) -> Result:
        """Print the table."""
        from coreset.engine.evaluation.protocols.base import MARKS, told_settings

        n_classes = self.classes or DATA_SETS[self.data]
        protocol = named_protocol(self.name, n_classes, self.ipc)
        settings, (name, _) = told_settings(protocol), split_name(self.name)
        rows = [row for setting in settings for row in _rows(*setting)]
        lines = (
            f"{protocol.stamp}, {n_classes} classes, IPC {self.ipc}: {PROTOCOLS[name]}",
            *aligned(("setting", "value", "mark", "source"), rows),
            *(f"mark {mark}: {meaning}" for mark, meaning in MARKS.items()),
            f"variants, each added to the name with a plus, as in {name}@1+bf16:",
            *(f"  +{key}: {one.why}" for key, one in variants_of(name).items()),
        )
        values = {setting: value for setting, value, _, _ in settings}
        return Result(lines, {"protocol": protocol.stamp, "settings": values})


def _rows(name: str, value: str, mark: str, source: str) -> list[tuple[str, str, str, str]]:
    """Lay out a setting, each of several values on a line of its own."""
    first, *others = value.split(", ")
    return [(name, first, mark, source), *(("", other, "", "") for other in others)]
