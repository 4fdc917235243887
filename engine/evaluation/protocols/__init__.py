"""Evaluation protocols, one file each, and their registry; importing it loads no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coreset.engine.evaluation.protocols.variants import VARIANTS, variants_of
from coreset.shards.errors import UsageError

if TYPE_CHECKING:
    from coreset.engine.evaluation.protocols.base import Protocol


PROTOCOLS = {
    "hard": "hard labels, SGD, CutMix, instance norm; epochs by IPC and number of classes",
    "rded": "soft labels of one teacher, KL divergence at temperature 20, shuffled quarters",
    "edc": "mean logits of several teachers, squared error, averaged weights",
}
"""What each protocol is; its class is in `protocol_classes`."""


def protocol_classes() -> "Mapping[str, type[Protocol]]":
    """Import the classes of the protocols, and torch with them."""
    from coreset.engine.evaluation.protocols.edc import Edc
    from coreset.engine.evaluation.protocols.hard import HardLabels
    from coreset.engine.evaluation.protocols.rded import Rded

    return {"hard": HardLabels, "rded": Rded, "edc": Edc}


def split_name(text: str) -> tuple[str, list[str]]:
    """Split ``rded@1+factor1`` into protocol and variants, or refuse what is neither."""
    versioned, *variants = text.split("+")
    name, _, version = versioned.partition("@")
    if name not in PROTOCOLS or version not in {"", "1"}:
        protocols = ", ".join(f"{one}@1" for one in PROTOCOLS)
        raise UsageError(f"protocol must be one of {protocols}, got {text}")
    known = variants_of(name)
    if not set(variants) <= known.keys():
        raise UsageError(f"protocol {name}@1 has the variants {', '.join(known)}, got {text}")
    return name, variants


def named_protocol(text: str, n_classes: int, ipc: int) -> "Protocol":
    """Return the protocol of a name such as ``rded`` or ``edc@1+linear+bf16``."""
    name, variants = split_name(text)
    protocol = protocol_classes()[name].published(n_classes, ipc)
    for variant in sorted(set(variants)):
        protocol = protocol.changed(variant, **VARIANTS[variant].changes(protocol))
    return protocol
