"""Image folders whose classes are not what they should be."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from coreset.bench.robustness.cases import ODD, Case, Inputs, N, photo_truths
from coreset.bench.robustness.faults import (
    class_name,
    encoded,
    jpeg,
    photo,
    write_class_names,
    write_photos,
)
from coreset.bench.robustness.outcomes import Expected


def folder_cases() -> Iterator[Case]:
    """Yield cases of image folders."""
    cases: tuple[tuple[str, str, Callable[[Path], Inputs]], ...] = (
        ("a class is missing", "11 of 12 folders; the class list has 12", _without_class),
        ("a class is empty", "one of 12 folders holds nothing", _with_empty_class),
        ("a hidden folder", "an image in .cache beside the 12 class folders", _with_hidden),
        ("a class of one bad file", "a web page instead of the only image of a class", _with_page),
        ("side-cars", "Thumbs.db and a .json of the image's name in every class", _with_side_cars),
        (
            "a side-car before its image",
            "a .json before a .png of its name; the first is kept",
            _keeping_first,
        ),
        ("splits as classes", "train and val beside a third folder", _with_splits),
        ("one folder of all images", "images, beside the file that has their labels", _in_one),
    )
    for fault, injected, prepare in cases:
        yield Case(row=20, fault=fault, injected=injected, kind="folder", prepare=prepare)


def _without_class(folder: Path) -> Inputs:
    src = write_photos(folder / "src", N)
    shutil.rmtree(src / class_name(ODD))
    names = write_class_names(folder / "classes.txt", N)
    expected = Expected(truths=photo_truths() | {ODD: None}, culprits=(class_name(ODD),))
    return Inputs(place=src, expected=expected, options=("--classes", str(names)))


def _with_empty_class(folder: Path) -> Inputs:
    src = write_photos(folder / "src", N)
    next((src / class_name(ODD)).iterdir()).unlink()
    expected = Expected(truths=photo_truths() | {ODD: None}, culprits=(class_name(ODD),))
    return Inputs(place=src, expected=expected)


def _with_hidden(folder: Path) -> Inputs:
    src = write_photos(folder / "src", N)
    (src / ".cache").mkdir()
    (src / ".cache" / "photo.JPEG").write_bytes(jpeg(99))
    return Inputs(place=src, expected=Expected(truths=photo_truths(), culprits=(".cache",)))


def _with_page(folder: Path) -> Inputs:
    src = write_photos(folder / "src", N)
    next((src / class_name(ODD)).iterdir()).write_bytes(b"<html></html>")
    expected = Expected(truths=photo_truths() | {ODD: None}, culprits=(class_name(ODD),))
    return Inputs(place=src, expected=expected)


def _with_side_cars(folder: Path) -> Inputs:
    src = write_photos(folder / "src", N)
    for image in sorted(src.glob("*/*")):
        image.with_suffix(".json").write_text('{"seen": true}')
        image.with_name("Thumbs.db").write_bytes(b"thumbnails")
    return Inputs(place=src, expected=Expected(truths=photo_truths(), culprits=("Thumbs.db",)))


def _keeping_first(folder: Path) -> Inputs:
    src = write_photos(folder / "src", N)
    image = next((src / class_name(ODD)).iterdir())
    image.unlink()
    image.with_suffix(".png").write_bytes(encoded(photo(ODD), "PNG"))
    image.with_suffix(".json").write_text('{"seen": true}')
    expected = Expected(truths=photo_truths(), culprits=(image.stem,))
    return Inputs(place=src, expected=expected, options=("--duplicates", "first"))


def _with_splits(folder: Path) -> Inputs:
    src = folder / "src"
    for name in ("extra", "train", "val"):
        write_photos(src / name, N)
    # Whichever split was meant, images of the others are not of its classes.
    nothing = dict.fromkeys(range(N))
    return Inputs(place=src, expected=Expected(truths=nothing, culprits=("train, val",)))


def _in_one(folder: Path) -> Inputs:
    images = folder / "src" / "images"
    images.mkdir(parents=True)
    lines: list[str] = []
    for label in range(N):
        name = f"val_{label:02d}.JPEG"
        (images / name).write_bytes(jpeg(label))
        lines.append(f"{name}\t{class_name(label)}\n")
    (folder / "src" / "val_annotations.txt").write_text("".join(lines))
    expected = Expected(truths=photo_truths(), culprits=("a single class, images",))
    return Inputs(place=folder / "src", expected=expected)
