"""Faulty inputs of the scoreboard: odd files, odd folders, damage to packed data.

Every sample has a label of its own, so that whatever comes out can be told apart. ``place`` is what
``coreset`` is given; ``tars`` what readers of shards are given, empty for image folders, which
``webdataset.ShardWriter`` packs first.
"""

import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from coreset.bench.processes import CORESET
from coreset.bench.robustness.crafted import CRAFTED_IMAGES
from coreset.bench.robustness.faults import (
    ODD_IMAGES,
    OddImage,
    Pixels,
    class_name,
    encoded,
    jpeg,
    photo,
    quietly_wrong_jpeg,
    rgb,
    write_class_names,
    write_photos,
)
from coreset.bench.robustness.outcomes import Expected, run

N = 12
"""Samples of every case."""
ODD = 5
"""Label of the one that is odd."""
SAMPLES_PER_SHARD = 6
Kind: TypeAlias = Literal["folder", "shards", "packed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Files of one case, and what is expected of them."""

    place: Path
    """Source, or packed data set."""
    expected: Expected
    tars: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    """Of ``coreset pack``."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault."""

    row: int
    fault: str
    injected: str
    kind: Kind
    prepare: Callable[[Path], Inputs]
    """Makes the inputs in an empty folder."""


def cases() -> Iterator[Case]:
    """Yield cases of odd files and folders, and of damage to packed data."""
    for odd in (*ODD_IMAGES, *CRAFTED_IMAGES):
        yield Case(odd.row, odd.fault, odd.made, "folder", partial(_with_odd, odd))
    for fault, injected, folder in _FOLDERS:
        yield Case(20, fault, injected, "folder", partial(_changed, folder))
    for row, fault, injected, damage in _DAMAGES:
        yield Case(row, fault, injected, "packed", partial(_damaged, damage))


def photo_truths() -> dict[int, Pixels | None]:
    """Return the pixels of ``write_photos`` and ``sample_members``."""
    return {label: rgb(jpeg(label)) for label in range(N)}


def _with_odd(odd: OddImage, folder: Path) -> Inputs:
    src, data = write_photos(folder / "src", N), odd.make()
    # The photo stays: a class whose every file is refused would stop the packing.
    (src / class_name(ODD) / odd.name).write_bytes(data)
    truths = photo_truths()
    beside = {ODD: rgb(jpeg(ODD))}
    truths[ODD] = odd.truth(data) if odd.truth else None
    expected = Expected(truths=truths, beside=beside, culprits=("odd",))
    return Inputs(place=src, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """Twelve photos in class folders, and what is done to them."""

    change: Callable[[Path], object]
    culprit: str
    lost: Sequence[int] = ()
    """Labels of which nothing right is left."""
    options: tuple[str, ...] = ()
    """Of ``coreset pack``; CLASSES stands for a list of all classes."""


def _changed(folder: _Folder, work: Path) -> Inputs:
    src = write_photos(work / "src", N)
    folder.change(src)
    classes = str(write_class_names(work / "classes.txt", N))
    expected = Expected(
        truths=photo_truths() | dict.fromkeys(folder.lost), culprits=(folder.culprit,)
    )
    options = tuple(classes if word == "CLASSES" else word for word in folder.options)
    return Inputs(place=src, expected=expected, options=options)


def _odd_photo(src: Path) -> Path:
    return next((src / class_name(ODD)).iterdir())


def _hide_a_photo(src: Path) -> None:
    (src / ".cache").mkdir()
    (src / ".cache" / "photo.JPEG").write_bytes(jpeg(99))


def _add_side_cars(src: Path) -> None:
    for image in sorted(src.glob("*/*")):
        image.with_suffix(".json").write_text('{"seen": true}')
        image.with_name("Thumbs.db").write_bytes(b"thumbnails")


def _put_side_car_first(src: Path) -> None:
    image = _odd_photo(src)
    image.unlink()
    image.with_suffix(".png").write_bytes(encoded(photo(ODD), "PNG"))
    image.with_suffix(".json").write_text('{"seen": true}')


def _split(src: Path) -> None:
    classes = sorted(src.iterdir())
    for name in ("extra", "train", "val"):
        for folder in classes:
            shutil.copytree(folder, src / name / folder.name)
    for folder in classes:
        shutil.rmtree(folder)


def _put_in_one(src: Path) -> None:
    (src / "images").mkdir()
    lines: list[str] = []
    for label in range(N):
        name, folder = f"val_{label:02d}.JPEG", src / class_name(label)
        next(folder.iterdir()).rename(src / "images" / name)
        folder.rmdir()
        lines.append(f"{name}\t{class_name(label)}\n")
    (src / "val_annotations.txt").write_text("".join(lines))


_ODD_CLASS = class_name(ODD)
_FOLDERS: tuple[tuple[str, str, _Folder], ...] = (
    ("a class is missing", "11 of 12 folders; the class list has 12",
     _Folder(change=lambda src: shutil.rmtree(src / _ODD_CLASS), culprit=_ODD_CLASS, lost=(ODD,),
             options=("--classes", "CLASSES"))),
    ("a class is empty", "one of 12 folders holds nothing",
     _Folder(change=lambda src: _odd_photo(src).unlink(), culprit=_ODD_CLASS, lost=(ODD,))),
    ("a hidden folder", "an image in .cache beside the 12 class folders",
     _Folder(change=_hide_a_photo, culprit=".cache")),
    ("a class of one bad file", "a web page instead of the only image of a class",
     _Folder(change=lambda src: _odd_photo(src).write_bytes(b"<html></html>"),
             culprit=_ODD_CLASS, lost=(ODD,))),
    ("side-cars", "Thumbs.db and a .json of the image's name in every class",
     _Folder(change=_add_side_cars, culprit="Thumbs.db")),
    ("a side-car before its image", "a .json before a .png of its name; the first is kept",
     _Folder(change=_put_side_car_first, culprit=f"photo-{ODD:02d}",
             options=("--duplicates", "first"))),
    # Whichever split was meant, images of the others are not of its classes.
    ("splits as classes", "train and val beside a third folder",
     _Folder(change=_split, culprit="train, val", lost=range(N))),
    ("one folder of all images", "images, beside the file that has their labels",
     _Folder(change=_put_in_one, culprit="a single class, images")),
)  # fmt: skip


def _damaged(damage: Callable[[Path], None], folder: Path) -> Inputs:
    src, data = write_photos(folder / "src", N), folder / "DATA"
    ran = run([*CORESET, "pack", src, data, "--samples-per-shard", str(SAMPLES_PER_SHARD)])
    if ran.code:
        raise ValueError(f"the photos cannot be packed: {ran.text}")
    damage(data / "shard-000001.tar")
    expected = Expected(truths=photo_truths(), culprits=("shard-000001",))
    return Inputs(place=data, expected=expected, tars=tuple(sorted(data.glob("*.tar"))))


def _offsets(path: Path) -> list[tuple[int, int, int]]:
    """Return offset of header, offset of content and size of every member."""
    with tarfile.open(path) as tar:
        return [(member.offset, member.offset_data, member.size) for member in tar]


def _cut_at(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def _swap_for_quiet(path: Path) -> None:
    """Flip a bit that no decoder warns of, in the first image that has one."""
    _, start, size = _offsets(path)[0]
    content = path.read_bytes()
    wrong = quietly_wrong_jpeg(content[start : start + size])
    path.write_bytes(content[:start] + wrong + content[start + size :])


_DAMAGES: tuple[tuple[int, str, str, Callable[[Path], None]], ...] = (
    (6, "tar cut in an image", "a shard ends amid its fourth image",
     lambda path: _cut_at(path, _offsets(path)[6][1] + 700)),
    (6, "tar cut in a header", "a shard ends amid the header of its fourth image",
     lambda path: _cut_at(path, _offsets(path)[6][0] + 200)),
    (6, "tar cut before a label", "a shard ends between its fourth image and the label",
     lambda path: _cut_at(path, _offsets(path)[7][0])),
    (6, "tar cut between samples", "a shard ends after three of six samples",
     lambda path: _cut_at(path, _offsets(path)[6][0])),
    (6, "tar without end mark", "the last two blocks of zeros are gone",
     lambda path: _cut_at(path, path.stat().st_size - 1024)),
    (7, "bit flip in an image", "one bit, which no decoder warns of", _swap_for_quiet),
    (7, "bit flip in a tar header", "one bit of a member's name",
     lambda path: _flip(path, _offsets(path)[6][0] + 3)),
)  # fmt: skip
