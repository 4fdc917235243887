"""Evaluation protocols, one file each, and their registry; importing it loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreset.engine.evaluation.protocols.variants import VARIANTS
from coreset.shards.errors import UsageError

if TYPE_CHECKING:
    from coreset.engine.evaluation.protocols.base import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolEntry:
    """Record of a protocol."""

    summary: str
    load: Callable[[], "type[Protocol]"]


def _hard() -> "type[Protocol]":
    from coreset.engine.evaluation.protocols.hard import HardLabels

    return HardLabels


def _rded() -> "type[Protocol]":
    from coreset.engine.evaluation.protocols.rded import Rded

    return Rded


def _edc() -> "type[Protocol]":
    from coreset.engine.evaluation.protocols.edc import Edc

    return Edc


PROTOCOLS: dict[str, ProtocolEntry] = {
    "hard": ProtocolEntry(
        summary="hard labels, SGD, CutMix, instance norm; epochs by IPC and number of classes",
        load=_hard,
    ),
    "rded": ProtocolEntry(
        summary="soft labels of one teacher, KL divergence at temperature 20, shuffled quarters",
        load=_rded,
    ),
    "edc": ProtocolEntry(
        summary="mean logits of several teachers, squared error, averaged weights",
        load=_edc,
    ),
}


def split_name(text: str) -> tuple[str, list[str]]:
    """Split ``rded@1+factor1`` into protocol and variants, or refuse what is neither."""
    versioned, *variants = text.split("+")
    name, _, version = versioned.partition("@")
    if name not in PROTOCOLS or version not in {"", "1"}:
        known = ", ".join(f"{one}@1" for one in PROTOCOLS)
        raise UsageError(f"protocol must be one of {known}, got {text}")
    for variant in variants:
        if variant not in VARIANTS or VARIANTS[variant].of not in {"", name}:
            known = ", ".join(key for key, one in VARIANTS.items() if one.of in {"", name})
            raise UsageError(f"protocol {name}@1 has the variants {known}, got {text}")
    return name, variants


def named_protocol(text: str, n_classes: int, ipc: int) -> "Protocol":
    """Return the protocol of a name such as ``rded`` or ``edc@1+linear+bf16``."""
    name, variants = split_name(text)
    protocol = PROTOCOLS[name].load().published(n_classes, ipc)
    for variant in sorted(set(variants)):
        protocol = protocol.changed(variant, **VARIANTS[variant].changes(protocol))
    return protocol
