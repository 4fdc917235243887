"""``coreset embed``: pooled features of a frozen backbone into a Zarr store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coreset.engine.models.features import FeatureSpec, embed, remember
from coreset.engine.runtime.openmp import use_passive_wait
from coreset.engine.runtime.stage import (
    DataPath,
    DecoderChoice,
    FeaturesPath,
    Result,
    require_at_least,
)
from coreset.shards.format.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Compute features of every image with a frozen backbone, one row per sample id (float16).

    Continues after an interruption. `measure` and `score --proxy linear` find these features again
    (the cache, CORESET_CACHE, points to them).
    """

    data: DataPath
    """Packed data set."""
    features: FeaturesPath
    """Directory to make."""
    backbone: str = "auto"
    """auto: the first whose weights are on this machine: resnet18 (torchvision), resnet50,
    tf_efficientnet_lite0 (weights by the extra `offline`). Or one of them by name,
    mobilenetv2_100_same, or any timm model."""
    weights: Path | None = None
    """File of weights or a checkpoint (.safetensors, .pth); by default what torchvision and timm
    left on this machine. Nothing is downloaded."""
    size: int = 224
    """Images are squashed to a square of this many pixels."""
    batch: int = 64
    """Images per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    decoder: DecoderChoice = "auto"
    """auto: DALI on a GPU, libjpeg-turbo threads on a CPU."""
    decoder_exact: bool = False
    """Pixels equal to Pillow's, several times slower; others are at most 1 level off."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 8)
        require_at_least("batch", self.batch, 1)

    def run(self) -> Result:
        """Open the data set, compute its features, publish the store."""
        use_passive_wait(self.device)
        from coreset.engine.data.decoders.choose import decoder_notice
        from coreset.engine.models.backbones import choose_backbone, told_backbone
        from coreset.engine.runtime.device import resolve_device

        dataset = Dataset.open(self.data)
        backbone = choose_backbone(self.backbone, self.weights)
        spec = FeatureSpec(
            backbone=backbone,
            weights=self.weights,
            size=self.size,
            batch=self.batch,
            device=self.device,
            decoder=self.decoder,
            exact=self.decoder_exact,
            workers=self.workers,
        )
        work = embed(dataset, spec, self.features)
        device = resolve_device(self.device).type
        remember(self.features, dataset, spec)
        same = f"--backbone {backbone}" + (f" --size {self.size}" if self.size != 224 else "")
        verb = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        return Result(
            (
                *decoder_notice(self.decoder, device, exact=self.decoder_exact),
                *told_backbone(self.backbone, self.weights),
                f"features of {len(dataset):,} images ({backbone}) {verb}: {self.features}",
                f"next: coreset score {self.data} SCORES --proxy linear {same}",
            ),
            {"features": str(self.features), "images": len(dataset)},
        )
