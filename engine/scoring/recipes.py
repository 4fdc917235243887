"""Recipes of the proxies: their training settings by name.

A recipe never changes; a better one gets a higher version.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

ProxyName: TypeAlias = Literal["resnet18", "linear", "concept", "neighbours"]
FEATURE_PROXIES: tuple[ProxyName, ...] = ("linear", "concept")
"""Proxies that are trained on features of a frozen backbone instead of images."""

# From crops of 16 pixels a strided 3 x 3 convolution of ResNet-18 gets a single pixel; oneDNN's
# bfloat16 gradient of that reads memory nobody wrote: garbage, or NaN in one run of three.
SMALLEST_SIZE: Mapping[ProxyName, int] = {
    "resnet18": 17,
    "linear": 8,
    "concept": 0,
    "neighbours": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Training settings of a proxy; `coreset score --help` explains the fields."""

    name: str
    version: int = 1
    proxy: ProxyName = "resnet18"
    epochs: int = 60
    batch: int = 256
    size: int = 224
    start_size: int = 0
    crop_scale: float = 0.08
    lr: float = 0.1
    min_lr: float = 1e-4
    warmup: float = 0.0
    weight_decay: float = 1e-4
    optimiser: Literal["sgd", "adam"] = "sgd"
    scaling: Literal["standardised", "none"] = "none"

    @property
    def stamp(self) -> str:
        """Name and version, and whether a field was changed."""
        changed = "" if self == RECIPES[self.name] else "+changed"
        return f"{self.name}@{self.version}{changed}"

    def side_at(self, epoch: int) -> int:
        """Return the side in pixels of the training crops of an epoch.

        It grows linearly over half of the epochs, in steps of 32 (``get_resolution`` of
        libffcv/ffcv-imagenet).
        """
        if self.start_size == 0 or 2 * epoch >= self.epochs:
            return self.size
        if epoch == 0:
            return self.start_size
        linear = self.start_size + (self.size - self.start_size) * 2 * epoch / self.epochs
        return min(self.size, max(self.start_size, 32 * round(linear / 32)))

    def settings(self) -> dict[str, Any]:
        """Return the fields that shape the training."""
        choices = set[str]() if self.proxy == "concept" else {"optimiser", "scaling"}
        unused = {"name", "version"} | choices  # nobody chose them: they are not recorded
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def changed(self, given: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with other values for some fields; those that are None stay."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


RECIPES: Mapping[str, Recipe] = {
    # The study's: ResNet-18 from scratch, CCS's ImageNet recipe.
    "full": Recipe(name="full"),
    # Batch, epochs, growing crops and weight decay after FFCV's ResNet-18 for ImageNet
    # (libffcv/ffcv-imagenet, rn18_configs/rn18_16_epochs.yaml) without its label smoothing,
    # which distorts margins, and at smaller sizes; the rate is CCS's scaled with the batch.
    "fast": Recipe(
        name="fast",
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
    # A linear classifier on features of a frozen backbone: seconds.
    "linear": Recipe(name="linear", proxy="linear", lr=0.01),
    # The study's second score: 100 epochs; the paper leaves the rest open. The size is the bank's.
    "concept": Recipe(
        name="concept",
        proxy="concept",
        epochs=100,
        batch=512,
        size=0,
        lr=1e-3,
        min_lr=1e-3,
        weight_decay=0.0,
        optimiser="adam",
        scaling="standardised",
    ),
    # Scores of the same features without training: only the side of the images counts.
    "neighbours": Recipe(name="neighbours", proxy="neighbours", epochs=0),
}
