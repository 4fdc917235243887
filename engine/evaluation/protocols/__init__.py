"""Evaluation protocols, one file each, and their registry; importing it loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coreset.engine.evaluation.students import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolEntry:
    """Record of a protocol."""

    summary: str
    load: Callable[[], "type[Protocol]"]


def _hard() -> "type[Protocol]":
    from coreset.engine.evaluation.protocols.hard import HardLabels

    return HardLabels


PROTOCOLS: dict[str, ProtocolEntry] = {
    "hard": ProtocolEntry(
        summary="hard labels, SGD, CutMix, instance norm; epochs by IPC and number of classes",
        load=_hard,
    )
}
