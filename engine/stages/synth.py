"""``coreset synth``: generate a data set with known truth, for benchmarks and tests at scale."""

from dataclasses import asdict, dataclass
from pathlib import Path

from coreset.engine.artifacts.pack_inputs import Account, bound
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import DataPath, Flat, Result
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.files import replacing
from coreset.shards.packing.pack import list_path, pack, thread_count
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.synthetic import Synthetic, position_of, synthetic_source

TRUTH_NAME = "truth.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Synth:
    """Generate a packed data set of synthetic images with known wrong labels and difficulty.

    Sizes and bytes follow ImageNet's. The class of an image shows in its colours and its pattern;
    truth.parquet beside the shards holds the true label and the difficulty of every sample.
    """

    data: DataPath
    """Packed data set to make."""
    synthetic: Flat[Synthetic]
    split: str = "train"
    """Split to record."""
    samples_per_shard: int = 2000
    """Images per shard."""
    workers: int = 0
    """Threads; 0 is one per core. They do not change the result."""

    def __post_init__(self) -> None:
        require_at_least("samples_per_shard", self.samples_per_shard, 1)
        thread_count(self.workers)  # refused before anything is made

    def run(self) -> Result:
        """Generate and pack in threads, write the truth in id order, publish."""
        config = asdict(self.synthetic) | {"size": str(self.synthetic.size), "split": self.split}
        config |= {"samples_per_shard": self.samples_per_shard}
        provenance = Provenance(kind="dataset", stage="synth", config=config)
        with create_artifact(self.data, provenance, resumable=True) as work:
            if not work.done:
                self._fill(work)
        manifest = Manifest.read(self.data)
        how = "are there already"
        if not work.done:
            seconds = work.meter.wall_seconds
            per_core = work.meter.images / seconds / thread_count(self.workers)
            how = f"made in {seconds:.1f} s, {per_core:,.0f} images/s per core"
        made = f"{manifest.n_samples:,} images of {len(manifest.classes):,} classes {how}"
        place = f"{self.data} (truth: {self.data / TRUTH_NAME})"
        lines = f"{made}: {place}", f"next: coreset score {self.data} SCORES"
        return Result(lines, {"data": str(self.data), "samples": manifest.n_samples})

    def _fill(self, work: ArtifactWriter) -> None:
        source = synthetic_source(self.synthetic).in_order("shuffled", self.synthetic.seed)
        plan = Plan(
            source=source,
            labels=source.labels,
            samples_per_shard=self.samples_per_shard,
            name="synthetic",
            split=self.split,
            settings={"samples_per_shard": self.samples_per_shard, "store": "original"},
            check=False,
        )
        listed, workers = list_path(self.data), thread_count(self.workers)
        with progress("synth", len(source)) as bar:
            observer = Account(work.meter, bar, work.scratch)
            manifest = pack(plan, work.scratch, workers=workers, listed=listed, observer=observer)
        _write_truth(self.synthetic, work.scratch)
        work.provenance = bound(work.provenance, manifest)


def _write_truth(synthetic: Synthetic, data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    positions = [position_of(key) for key in Dataset.open(data).keys]
    truth, path = pa.table(synthetic.truth()).take(positions), data / TRUTH_NAME
    with replacing(path) as file:
        pq.write_table(truth, file, compression="zstd")
