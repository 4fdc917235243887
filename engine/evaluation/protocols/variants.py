"""Variants of the protocols: other answers to what the study leaves open, each with a name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coreset.engine.evaluation.protocols.base import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Settings that differ from those of a protocol, and why anybody would take them."""

    of: str
    """Name of the protocol; empty: of any."""
    why: str
    changes: Callable[[Protocol], Mapping[str, Any]]


def variants_of(protocol: str) -> dict[str, Variant]:
    """Return the variants that a protocol has."""
    return {name: one for name, one in VARIANTS.items() if one.of in {"", protocol}}


def _rule_epochs(protocol: Protocol) -> Mapping[str, Any]:
    from coreset.engine.evaluation.protocols.hard import published_epochs

    return {"epochs": published_epochs(protocol.n_classes, protocol.ipc)}


_ALEXNET = ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet")

VARIANTS: Mapping[str, Variant] = {
    "bf16": Variant(
        of="",
        why="forward and backward passes in bfloat16, for speed",
        changes=lambda _: {"precision": "bfloat16"},
    ),
    "bn": Variant(
        of="hard",
        why="batch norm in place of instance norm, which every published command passes",
        changes=lambda _: {"norm": "batch"},
    ),
    "rule-epochs": Variant(
        of="hard",
        why="epochs of the published rule also over 100 classes: 2000 at IPC 10, 1500 at IPC 50",
        changes=_rule_epochs,
    ),
    "factor1": Variant(
        of="rded",
        why="--factor 1: whole images, neither shuffled nor cut (the least crop is all)",
        changes=lambda _: {"shuffle": 1, "crop_scale": 1.0},
    ),
    "epochs500": Variant(
        of="rded",
        why="500 epochs, as VLCP's scripts for ImageNet-1K; evaluations every ten of the last 100",
        changes=lambda _: {"epochs": 500, "evaluations": 10},
    ),
    "linear": Variant(
        of="edc",
        why="the schedule that the published ImageNet-1K code runs, for lack of an elif",
        changes=lambda _: {"rates": "linear"},
    ),
    "ssrs": Variant(
        of="edc",
        why="the schedule of EDC's ImageNet-10 branch (cos2), for many images per class",
        changes=lambda _: {"rates": "ssrs"},
    ),
    "alexnet": Variant(
        of="edc",
        why="AlexNet in the place of EfficientNet, as the published ImageNet-1K code",
        changes=lambda _: {"teachers": _ALEXNET},
    ),
    "randaugment": Variant(
        of="edc",
        why="RandAugment before the crop, as EDC's ImageNet-10 branch",
        changes=lambda _: {"randaugment": True},
    ),
}
