"""``coreset embed``: write the pooled features of a frozen backbone to a Zarr store."""

from dataclasses import dataclass, field

from coreset.engine.models.features import embed, remember
from coreset.engine.stages.options import DataPath, Decoding, Extractor, FeaturesPath, Flat, Result
from coreset.shards.format.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Compute features of every image with a frozen backbone, one row per sample id.

    They are float16, of inception-2015 float32. Continues after an interruption. `measure` and
    `score --proxy linear` find them again (the cache, CORESET_CACHE, points to them).
    """

    data: DataPath
    """Packed data set."""
    features: FeaturesPath
    """Directory to make."""
    extractor: Flat[Extractor] = field(default_factory=Extractor)
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def run(self) -> Result:
        """Open the data set, compute its features, publish the store."""
        from coreset.engine.models.backbones import input_geometry

        dataset = Dataset.open(self.data)
        spec = self.extractor.spec(self.decoding)
        work = embed(dataset, spec, self.features)
        remember(self.features, dataset, spec)
        same = f"--backbone {spec.backbone}" + (f" --size {spec.size}" if spec.size != 224 else "")
        same += f" --weights {spec.weights}" if spec.weights else ""
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        lines = (
            *self.decoding.notice(bicubic=input_geometry(spec.backbone, spec.size).bicubic),
            *self.extractor.notice(),
            f"features of {len(dataset):,} images ({spec.backbone}) {how}: {self.features}",
            f"next: coreset score {self.data} SCORES --proxy linear {same}",
        )
        return Result(lines, {"features": str(self.features), "images": len(dataset)})
