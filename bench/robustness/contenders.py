"""Contenders of the scoreboard: each in a process of its own, with a limit of time."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from coreset.bench.robustness.cases import CORESET, Case, Inputs
from coreset.bench.robustness.outcomes import Observed, Ran, Sample, read_found, run
from coreset.shards.format.dataset import Dataset
from coreset.shards.packing.encode import as_rgb

_SAMPLES_PER_SHARD = 6


def coreset(case: Case, inputs: Inputs, work: Path) -> Observed:
    """Run ``coreset pack``, or ``coreset verify`` of what was packed before it was damaged."""
    if case.kind == "packed":
        ran = run([*CORESET, "verify", inputs.place])
        return Observed(ran=ran, samples=[] if ran.code else packed_samples(inputs.place))
    data = work / "DATA"
    options = ["--samples-per-shard", str(_SAMPLES_PER_SHARD), *inputs.options]
    ran = run([*CORESET, "pack", inputs.place, data, *options])
    if ran.code:
        left = [f"left {data.name}"] if data.exists() else []
        return Observed(ran=ran, samples=[], notes=left)
    listed = run([*CORESET, "quarantine", "show", data])
    reported = Ran(code=0, text=ran.text + listed.text, peak_mb=ran.peak_mb)
    return Observed(ran=reported, samples=packed_samples(data))


def packed_samples(data: Path) -> list[Sample]:
    """Decode every sample of a packed data set; its class tells which sample it is."""
    dataset = Dataset.open(data)
    return [_packed_sample(data, row) for row in dataset.samples.to_pylist()]


def _packed_sample(data: Path, row: Mapping[str, object]) -> Sample:
    with (data / f"shard-{row['shard']:06d}.tar").open("rb") as file:
        file.seek(int(str(row["offset"])))
        stored = file.read(int(str(row["bytes"])))
    with Image.open(BytesIO(stored)) as image:
        pixels = np.asarray(as_rgb(image))
    number = re.search(r"\d+", str(row["class"]))  # c05, or a WordNet id; others are no sample's
    label = int(number[0]) if number else None
    return Sample(label=label, key=str(row["key"]), shape=pixels.shape, pixels=pixels)


def webdataset(case: Case, inputs: Inputs, work: Path) -> Observed:
    """Write a folder with ``ShardWriter`` in the usual loop, then read with the usual loop."""
    written, tars = _tars(case, inputs, work)
    if written is not None and written.code:
        return Observed(ran=written, samples=[])
    return _read_by("webdataset", tars, work)


def dali(case: Case, inputs: Inputs, work: Path) -> Observed:
    """Read shards with DALI; of a folder, those that ``ShardWriter`` makes."""
    written, tars = _tars(case, inputs, work)
    if written is not None and written.code:
        return Observed(ran=written, samples=[])
    return _read_by("dali", tars, work)


def img2dataset(packages: Path) -> Callable[[Case, Inputs, Path], Observed]:
    """Return the packer of files and addresses; it reads no shards."""

    def meet(_case: Case, inputs: Inputs, work: Path) -> Observed:
        found = work / "found"
        module = "coreset.bench.peers.faults_img2dataset"
        words = [packages, inputs.place, work / "out", found]
        quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "TQDM_DISABLE": "1"}
        ran = run([sys.executable, "-m", module, *words], env=quiet)
        return Observed(ran=ran, samples=read_found(found))

    return meet


def img2dataset_version(packages: Path) -> str | None:
    """Return the version of the whole package, None if it cannot be imported from there."""
    code = (
        f"import sys; sys.path.append({str(packages)!r}); import img2dataset;"
        "from importlib.metadata import version; print('version', version('img2dataset'))"
    )
    ran = run([sys.executable, "-c", code], env={"NO_ALBUMENTATIONS_UPDATE": "1"})
    return None if ran.code else ran.text.rpartition("version ")[2].strip()


def versions() -> dict[str, str]:
    """Return versions of the peers that are dependencies."""
    return {"webdataset": version("webdataset"), "dali": version("nvidia-dali-cuda130")}


def _read_by(peer: str, tars: Sequence[Path], work: Path) -> Observed:
    found = work / "found"
    ran = run([sys.executable, "-m", f"coreset.bench.peers.faults_{peer}", "read", found, *tars])
    return Observed(ran=ran, samples=read_found(found))


def _tars(case: Case, inputs: Inputs, work: Path) -> tuple[Ran | None, Sequence[Path]]:
    if case.kind != "folder":
        return None, inputs.tars
    shards = work / "shards"
    shards.mkdir()
    ran = write_shards(inputs.place, shards, _SAMPLES_PER_SHARD)
    return ran, sorted(shards.glob("*.tar"))


def write_shards(src: Path, shards: Path, samples_per_shard: int) -> Ran:
    """Run ``ShardWriter`` in the usual loop."""
    return run(shards_command(src, shards, samples_per_shard))


def shards_command(src: Path, shards: Path, samples_per_shard: int) -> list[str | Path]:
    """Return the command of ``write_shards``."""
    module = "coreset.bench.peers.faults_webdataset"
    return [sys.executable, "-m", module, "write", src, shards, str(samples_per_shard)]
