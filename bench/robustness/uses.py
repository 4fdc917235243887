"""Faults that show after packing: in a loader, and in lists of samples that come back."""

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from coreset.bench.robustness.cases import CORESET, ODD, N
from coreset.bench.robustness.contenders import write_shards
from coreset.bench.robustness.faults import Pixels, class_name, encoded, jpeg, write_photos
from coreset.bench.robustness.findings import Finding, ProcessCase, last_line, pack
from coreset.bench.robustness.outcomes import Expected, Observed, Outcome, judge, read_found, run
from coreset.shards.format.dataset import Dataset
from coreset.shards.tables.csv_cells import unguarded

_FORMULA = '=HYPERLINK("example.org")'
_GROWTH_MB = 200
"""More than this for one image of some kilobytes is no guard."""
_TALL = 6000
_EVERY_OTHER = range(1, N, 2)
"""Labels of a list; that of the odd sample is one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Odd image among plain ones, and the squares that are cut out of all of them."""

    name: str
    make: Callable[[], bytes]
    truth: Callable[[bytes], Pixels] | None = None
    """Pixels of its square; None where it cannot be decoded."""
    size: int
    resize: int
    epochs: int = 1


Reader: TypeAlias = Callable[[Loaded, Path, Path], Observed]
"""Packs a source into an empty folder, and loads it."""


def tall_png() -> bytes:
    """Return a PNG of one column of random pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (_TALL, 1, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def square_of_column(data: bytes, size: int, resize: int) -> Pixels:
    """Return the central square of one column enlarged ``resize`` times, row by row."""
    with Image.open(BytesIO(data)) as image:
        column = np.asarray(image)[:, 0]
    first = (resize * len(column) - size) // 2
    rows = (np.arange(first, first + size) + 0.5) / resize - 0.5
    each = [np.interp(rows, np.arange(len(column)), channel) for channel in column.T]
    square = np.repeat(np.stack(each, axis=1)[:, None], size, axis=1)
    return square.round().astype(np.uint8)


def square_of(data: bytes, size: int, resize: int) -> Pixels:
    """Return the central square after the short side became ``resize`` pixels, by Pillow."""
    with Image.open(BytesIO(data)) as image:
        width, height = (resize * side // min(image.size) for side in image.size)
        whole = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in (width, height))
    return np.asarray(whole.crop((left, top, left + size, top + size)))


def with_repeated_frame() -> bytes:
    """Return a JPEG with a second frame header before its end, where libjpeg gives up."""
    whole = jpeg()
    begin = whole.index(b"\xff\xc0")
    end = begin + 2 + int.from_bytes(whole[begin + 2 : begin + 4], "big")
    return whole[:-2] + whole[begin:end] + whole[-2:]


TALL = Loaded(
    name="odd.png", make=tall_png, size=224, resize=256,
    truth=partial(square_of_column, size=224, resize=256),
)  # fmt: skip
# Squares that reach to the last row, behind which libjpeg looks for the end.
REPEATED = Loaded(name="odd.JPEG", make=with_repeated_frame, size=72, resize=72, epochs=300)


def _loaded(odd: Loaded, read: Reader, work: Path) -> Finding:
    src = write_photos(work / "src", N)
    usual = read(odd, src, work / "usual").ran.peak_mb
    data = odd.make()
    (src / class_name(ODD) / odd.name).write_bytes(data)
    squares = {label: square_of(jpeg(label), odd.size, odd.resize) for label in range(N)}
    truth = odd.truth(data) if odd.truth else None
    expected = Expected(
        truths=squares | {ODD: truth}, beside={ODD: squares[ODD]}, both=True, culprits=("odd",)
    )
    observed = read(odd, src, work / "odd")
    judged = judge(observed, expected)
    growth = max(0, observed.ran.peak_mb - usual)
    unguarded_memory = observed.ran.code == 0 and growth > _GROWTH_MB
    outcome = Outcome.NO_GUARD if unguarded_memory else judged.outcome
    return outcome, f"{judged.detail}, {growth} MB more for it"


def _by_coreset(odd: Loaded, src: Path, work: Path) -> Observed:
    # Without the check of the pixels, which would keep a damaged image from the loader.
    packed = run(pack(src, work / "DATA", "--no-check"))
    if packed.code:
        return Observed(ran=packed, samples=[])
    numbers = (str(number) for number in (odd.size, odd.resize, odd.epochs))
    return _read(
        ["coreset.bench.robustness.loading", work / "found", *numbers, work / "DATA"], work
    )


def _by_webdataset(odd: Loaded, src: Path, work: Path) -> Observed:
    (work / "shards").mkdir(parents=True)
    written = write_shards(src, work / "shards", N)
    if written.code:
        return Observed(ran=written, samples=[])
    tars = sorted((work / "shards").glob("*.tar"))
    words = ["crop", work / "found", str(odd.size), str(odd.resize), *tars]
    return _read(["coreset.bench.peers.faults_webdataset", *words], work)


def _read(words: Sequence[str | Path], work: Path) -> Observed:
    ran = run([sys.executable, "-m", *words])
    return Observed(ran=ran, samples=read_found(work / "found"))


def _saved_frame(work: Path) -> Finding:
    """Ingest a list as ``DataFrame.to_csv`` writes it, with the index as its first column."""
    data = work / "DATA"
    run(pack(write_photos(work / "src", N), data))
    names = [f"{class_name(label)}/photo-{label:02d}.JPEG" for label in _EVERY_OTHER]
    rows = "".join(f"{at},{name}\n" for at, name in enumerate(names))
    (work / "list.csv").write_text(f",path\n{rows}")
    return _ingested(work, names)


def _formula(work: Path) -> Finding:
    """Export and ingest a class whose name a spreadsheet runs."""
    src, listed = write_photos(work / "src", N), work / "list.csv"
    (src / class_name(ODD)).rename(src / _FORMULA)
    run(pack(src, work / "DATA"))
    run([*CORESET, "export", work / "DATA", listed, "--to", "paths"])
    with listed.open(newline="") as file:
        header, *rows = csv.reader(file)
    if any(cell.startswith("=") for row in rows for cell in row):
        return Outcome.RUNS_CODE, "a cell of the list is a formula"
    at = header.index("path")
    rows = [row for row in rows if any(f"photo-{label:02d}." in row[at] for label in _EVERY_OTHER)]
    with listed.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return _ingested(work, [unguarded(row[at]) for row in rows])


def _ingested(work: Path, names: Sequence[str]) -> Finding:
    """Test whether the samples of ``list.csv`` are those of these source names."""
    words = [work / "list.csv", work / "SET", "--data", work / "DATA", "--allow-short"]
    ran = run([*CORESET, "ingest", *words])
    if ran.code:
        named = "list.csv" in last_line(ran.text)
        return (Outcome.NAMED if named else Outcome.NAMELESS), f"exit {ran.code}"
    samples = Dataset.open(work / "DATA").samples.to_pylist()
    taken = {samples[sample]["source"] for sample in np.load(work / "SET" / "ids.npy")}
    facts = f"{len(taken & set(names))} of {len(names)} samples taken, {len(taken)} in all"
    return (Outcome.RIGHT if taken == set(names) else Outcome.WRONG), facts


def _loader_case(fault: str, injected: str, odd: Loaded) -> ProcessCase:
    return ProcessCase(
        row=42, fault=fault, injected=injected, packs=False,
        coreset=partial(_loaded, odd, _by_coreset),
        webdataset=partial(_loaded, odd, _by_webdataset),
    )  # fmt: skip


CASES: tuple[ProcessCase, ...] = (
    _loader_case("an image in extreme proportions", f"a PNG of 1 x {_TALL:,}, resized to 256",
                 TALL),
    _loader_case("a JPEG that ends in an error",
                 f"its frame header before its end, {REPEATED.epochs} epochs", REPEATED),
    ProcessCase(
        row=43, fault="a list with a frame's index", injected="six paths, numbered from 0",
        coreset=_saved_frame, webdataset=None, packs=False,
    ),
    ProcessCase(
        row=43, fault="a class named as a formula", injected=f"{_FORMULA}, to a list and back",
        coreset=_formula, webdataset=None, packs=False,
    ),
)  # fmt: skip
