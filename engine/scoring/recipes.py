"""Recipes of the proxies: frozen and versioned, so that scores made by one can be compared.

A recipe never changes; a better one gets a higher version.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

ProxyName: TypeAlias = Literal["resnet18", "linear"]
RecipeName: TypeAlias = Literal["full", "fast", "linear"]

# From crops of 16 pixels a strided 3 x 3 convolution of ResNet-18 gets a single pixel; oneDNN's
# bfloat16 gradient of that reads memory nobody wrote: garbage, or NaN in one run of three.
SMALLEST_SIZE: Mapping[ProxyName, int] = {"resnet18": 17, "linear": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Training settings of a proxy; `coreset score --help` explains the fields."""

    name: RecipeName
    version: int
    summary: str
    proxy: ProxyName
    epochs: int
    batch: int
    size: int
    start_size: int = 0
    crop_scale: float = 0.08
    lr: float
    min_lr: float = 1e-4
    warmup: float = 0.0
    """Epochs in which the learning rate rises linearly from nothing."""
    weight_decay: float

    @property
    def stamp(self) -> str:
        """Name and version, and whether a field was changed."""
        changed = "" if self == RECIPES[self.name] else "+changed"
        return f"{self.name}@{self.version}{changed}"

    def settings(self) -> dict[str, Any]:
        """Return the fields that shape the training."""
        description = {"name", "version", "summary"}
        return {name: value for name, value in asdict(self).items() if name not in description}

    def changed(self, given: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with other values for some fields; those that are None stay."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


RECIPES: Mapping[RecipeName, Recipe] = MappingProxyType(
    {
        "full": Recipe(
            name="full",
            version=1,
            summary="the study's: ResNet-18 from scratch, CCS's ImageNet recipe, 60 epochs",
            proxy="resnet18",
            epochs=60,
            batch=256,
            size=224,
            lr=0.1,
            weight_decay=1e-4,
        ),
        # Batch, epochs, growing crops and weight decay after FFCV's ResNet-18 for ImageNet
        # (libffcv/ffcv-imagenet, rn18_configs/rn18_16_epochs.yaml) without its label smoothing,
        # which distorts margins, and at smaller sizes; the rate is CCS's scaled with the batch.
        "fast": Recipe(
            name="fast",
            version=1,
            summary="a tenth of the arithmetic: large batches, 16 epochs, crops from 96 to 128 px",
            proxy="resnet18",
            epochs=16,
            batch=1024,
            size=128,
            start_size=96,
            crop_scale=0.25,
            lr=0.4,
            min_lr=0.0,
            warmup=2.0,
            weight_decay=5e-5,
        ),
        "linear": Recipe(
            name="linear",
            version=1,
            summary="a linear classifier on features of a frozen backbone: seconds",
            proxy="linear",
            epochs=60,
            batch=256,
            size=224,
            lr=0.01,
            weight_decay=1e-4,
        ),
    }
)
