"""``coreset decode``: decode a whole data set once, for work that reads it many times."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.limits import decoded_bytes
from coreset.engine.runtime.progress import progress
from coreset.engine.runtime.text import readable_bytes
from coreset.engine.stages.options import DataPath, Decoding, Flat, Result
from coreset.shards.errors import MachineError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import sha256_of_file, temporary_name

if TYPE_CHECKING:
    from coreset.engine.data.geometry import Geometry

SPARE_BYTES = 1 << 24
"""For index, provenance and ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Decode every image once to uint8 at one size, as one file that `score --pixels` maps.

    Images that cannot be decoded become black rows, are listed, and are left out by what reads the
    pixels. Continues after an interruption at its last whole chunk (64 MiB).
    """

    data: DataPath
    """Packed data set."""
    pixels: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PIXELS")]
    """Directory to make: 3 x size x size bytes an image."""
    size: int = 176
    """Side in pixels: the short side is resized to it and the central square kept."""
    squash: bool = False
    """Squash the whole image to the square instead."""
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 1)

    def run(self) -> Result:
        """Open the data set, check the disk, decode chunk by chunk, publish the pixels."""
        from coreset.engine.data.decoders import choose_decoder, decoder_reason
        from coreset.engine.data.geometry import Geometry

        dataset = Dataset.open(self.data)
        geometry = Geometry(self.size, None if self.squash else self.size)
        device, manifest = self.decoding.resolved_device().type, dataset.manifest
        exact = self.decoding.decoder_exact
        chosen = choose_decoder(self.decoding.decoder, device, exact=exact)
        binds = {"identity": manifest.identity, "content": manifest.content}
        provenance = Provenance(
            kind="pixels",
            stage="decode",
            config={"size": self.size, "squash": self.squash, "decoder": chosen.value},
            runtime={"device": device},
            binds=binds | {"n_samples": len(dataset)},
            inputs=(Provenance.read(self.data).as_input("data", self.data, self.pixels),),
        )
        if not self.pixels.exists():
            self._require_space(len(dataset))
        with create_artifact(
            self.pixels, provenance, inputs=[self.data], device=device, resumable=True
        ) as work:
            if not work.done:
                self._decode(work, dataset, geometry)
        return self._outcome(work, decoder_reason(chosen, device))

    def _require_space(self, n_images: int) -> None:
        """Check before anything is written that the rest of the pixels fits on the disk."""
        from coreset.engine.data.image_cache import PIXELS_NAME

        begun = temporary_name(self.pixels) / PIXELS_NAME
        written = begun.stat().st_size if begun.is_file() else 0
        disk = next(folder for folder in self.pixels.absolute().parents if folder.exists())
        needed = decoded_bytes(n_images, self.size) - written + SPARE_BYTES
        free = shutil.disk_usage(disk).free
        if needed > free:
            raise MachineError(
                f"pixels of --size {self.size} need {needed:,} bytes in {disk}, {free:,} are free; "
                "free some space, or choose a smaller --size or another output"
            )

    def _decode(self, work: ArtifactWriter, dataset: Dataset, geometry: "Geometry") -> None:
        from coreset.engine.data.image_cache import INDEX_NAME, begun, write_cache

        stored_bytes, before = dataset.ints("bytes"), begun(work.scratch)
        with (
            self.decoding.stream(dataset, geometry, skip_damaged=True) as source,
            progress("decode", len(dataset)) as bar,
        ):
            bar.resume(before.done if before else 0)

            def on_chunk(first: int, n: int) -> None:
                work.meter.images += n
                work.meter.bytes_read += int(stored_bytes[first : first + n].sum())
                work.meter.bytes_written += decoded_bytes(n, self.size)
                work.meter.checkpoint(work.scratch)
                bar.advance(n, undecodable=len(source.undecodable))

            index = write_cache(source, work.scratch, on_chunk)
        work.meter.notes["undecodable"] = len(index.undecodable)
        # It holds the digest of every chunk: no need to read them all again.
        work.provenance = replace(work.provenance, digest=sha256_of_file(work.scratch / INDEX_NAME))

    def _outcome(self, work: ArtifactWriter, reason: str) -> Result:
        from coreset.engine.data.image_cache import INDEX_NAME, PixelsIndex

        listed = self.pixels / INDEX_NAME
        index = PixelsIndex.read(listed)
        n_lost = len(index.undecodable)
        lost = f"{n_lost} of them cannot be decoded and are left out; listed in {listed}"
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        what = f"{self.size} x {self.size}, {readable_bytes(index.n_bytes)}"
        crops = round(self.size * 7 / 8)  # the side that score would decode to itself
        lines = (
            reason,
            f"pixels of {index.n_samples:,} images ({what}) {how}: {self.pixels}",
            *([lost] if n_lost else []),
            f"next: coreset score {self.data} SCORES --pixels {self.pixels} --size {crops}",
        )
        data = {"pixels": str(self.pixels), "images": index.n_samples, "bytes": index.n_bytes}
        return Result(lines, data | {"undecodable": n_lost})
