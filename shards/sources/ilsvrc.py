"""ILSVRC2012 validation images: a flat folder or tar, whose labels lie in another file.

``ILSVRC2012_img_val.tar`` and the folder unpacked from it hold ``ILSVRC2012_val_00000001.JPEG``
and so on, without classes; ``shards.sources.ground_truth`` reads those. Sample keys are those of
``coreset.shards.sources.folder`` for the same images sorted into a folder per WordNet id.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.contents import FileContents
from coreset.shards.sources.finder import Finder
from coreset.shards.sources.ground_truth import read_truth
from coreset.shards.sources.names import is_image_name, stem_of, visible_entries
from coreset.shards.sources.tars import (
    VALIDATION_NAME,
    Member,
    add_members,
    range_contents,
    tar_layout,
    visible_members,
)


def is_validation(src: Path) -> bool:
    """Test for a tar of validation images, or for a folder of them that holds no folders."""
    if not src.is_dir():
        return tar_layout(src) == "validation"
    entries = visible_entries(src)
    if any(entry.is_dir() for entry in entries):
        return False
    return any(VALIDATION_NAME.fullmatch(entry.name) for entry in entries)


def find_validation(src: Path, options: SourceOptions) -> Source:
    """Find the images of a flat folder or tar, labelled by ``options.truth``.

    The images may also lie in the only folder of a folder (``val/images``).

    Raises:
        UsageError: ``options.truth`` is missing or no ground truth that can be used, an image has
            no label or a label no image, or a class asked for is not there.
        DataError: The tar or the ground truth is damaged.
    """
    if options.truth is None:
        raise UsageError(
            f"{src} holds images without class folders; name their labels with --ground-truth: "
            "ILSVRC2012_devkit_t12 (folder or tar.gz), or a file with a WordNet id per image"
        )
    if src.is_dir():
        finder = Finder(place=_folder_of_images(src), repeats=options.repeats)
        return _find_in_folder(finder, options, options.truth)
    finder = Finder(place=src, repeats=options.repeats)
    members, finder.passed_over.n_hidden = visible_members(src)
    return _find_in_tar(finder, members, options, options.truth)


def _folder_of_images(src: Path) -> Path:
    """Return the folder itself, or its only folder if no image lies beside that."""
    entries = visible_entries(src)
    folders = [entry.name for entry in entries if entry.is_dir()]
    beside = any(is_image_name(entry.name) for entry in entries)
    return src / folders[0] if len(folders) == 1 and not beside else src


def _find_in_folder(finder: Finder, options: SourceOptions, truth: Path) -> Source:
    src = finder.place
    images = _images(finder, [entry.name for entry in visible_entries(src)])
    chosen = _labelled(images, options, truth, src)
    statuses = [_status(src / images[stem]) for stem in chosen]
    finder.add(
        list(chosen.values()),
        _keys(chosen),
        [images[stem] for stem in chosen],
        [status.st_size for status in statuses],
        mtimes_ns=[status.st_mtime_ns for status in statuses],
    )
    samples = finder.sorted()
    return samples.source(FileContents(src, samples.mtimes_ns))


def _status(path: Path) -> os.stat_result:
    if not path.is_file():
        raise UsageError(f"{path} is a folder, a broken link or a device; remove it")
    return path.stat()


def _find_in_tar(
    finder: Finder, members: Sequence[Member], options: SourceOptions, truth: Path
) -> Source:
    src = finder.place
    by_name = {member.name: member for member in members}
    images = _images(finder, [member.name for member in members])
    chosen = _labelled(images, options, truth, src)
    some = [by_name[images[stem]] for stem in chosen]
    add_members(finder, list(chosen.values()), _keys(chosen), some, place=src.name)
    samples = finder.sorted()
    return samples.source(range_contents(samples, [src]))


def _images(finder: Finder, names: Sequence[str]) -> dict[str, str]:
    """Map the stems of the images, in order, to their paths."""
    images: dict[str, str] = {}
    paths = [name for name in names if is_image_name(name)]
    for name in sorted(paths, key=stem_of):
        if stem_of(name) in images:
            raise UsageError(
                f"{images[stem_of(name)]} and {name} of {finder.place} have the same name but for "
                "folder and extension; rename or remove one"
            )
        images[stem_of(name)] = name
    if len(names) > len(paths):
        finder.skipped.append(f"{len(names) - len(paths):,} files of {finder.place}, no images")
    if not images:
        raise UsageError(f"{finder.place} holds no images; name a folder or tar that does")
    return images


def _labelled(
    images: Mapping[str, str], options: SourceOptions, truth: Path, src: Path
) -> dict[str, str]:
    """Map the stems of the images to take to their classes."""
    classes = read_truth(truth, tuple(images), options, src)
    options.chosen(classes.values(), src)
    return {stem: name for stem, name in classes.items() if options.takes(name)}


def _keys(chosen: Mapping[str, str]) -> list[str]:
    return [f"{name}/{stem}" for stem, name in chosen.items()]
