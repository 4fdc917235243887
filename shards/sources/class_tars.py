"""Images of classes in tars, read where they lie: no tar is unpacked.

Three layouts: one tar of class tars (``ILSVRC2012_img_train.tar`` as distributed: members
``n01440764.tar``, each a tar of ``n01440764_10026.JPEG``), a folder of class tars, and one tar of
an image folder tree. Sample keys are those of ``shards.sources.folder`` for the unpacked tree, so
packing a tar or its tree makes the same data set.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.advice import OTHERS, require_classes
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.finder import Finder
from coreset.shards.sources.names import sample_key, visible_entries
from coreset.shards.sources.tar_scan import REGULAR_FILE
from coreset.shards.sources.tars import (
    Member,
    add_members,
    in_threads,
    range_contents,
    tars_of,
    visible_members,
)


class _ClassTar(NamedTuple):
    """Tar of one class: a file, or a member of one."""

    class_name: str
    place: str
    """Name of the tar below the source, for messages."""
    path: Path
    file: int
    start: int = 0
    end: int | None = None


def find_class_tars(src: Path, options: SourceOptions | None = None) -> Source:
    """Find the images of a tar of class tars, of a folder of class tars, or of a tar of a tree.

    Of a class tar whose members all lie in a folder of the class's name, that folder is left away.
    Of a tree, the folders above the class folders are (``./``, ``train/``). Links and devices are
    found, and refused by packing.

    Raises:
        UsageError: There is no class, one is empty or asked for and not there, or two images have
            one sample key.
        DataError: A tar is damaged or cut, or a member has a name that no file should have.
    """
    options = options or SourceOptions()
    finder = Finder(place=src, repeats=options.repeats)
    if src.is_dir():
        tars = _tars_of_folder(finder, src)
        _add_class_tars(finder, tars, options)
        files = [tar.path for tar in tars]
    else:
        _add_tar(finder, src, options)
        files = [src]
    samples = finder.sorted()
    return samples.source(range_contents(samples, files))


def _tars_of_folder(finder: Finder, src: Path) -> list[_ClassTar]:
    paths = tars_of(src)
    n_others = len(visible_entries(src)) - len(paths)
    if n_others:
        finder.skipped.append(f"{n_others:,} files and folders of {src} that are no tars")
    return [_ClassTar(path.stem, path.name, path, file) for file, path in enumerate(paths)]


def _add_tar(finder: Finder, src: Path, options: SourceOptions) -> None:
    members, finder.passed_over.n_hidden = visible_members(src)
    nested = [member for member in members if member.extension == "tar"]
    if not nested:
        _add_tree(finder, members, options)
        return
    if len(members) > len(nested):
        n_others = len(members) - len(nested)
        finder.skipped.append(f"{n_others:,} members of {src} that are no class tars")
    _add_class_tars(finder, [_nested(src, member) for member in nested], options)


def _nested(src: Path, member: Member) -> _ClassTar:
    if member.kind != REGULAR_FILE:
        raise DataError(
            f"{src} has a {member.kind} in place of the class tar {member.name}; make the tar "
            "again with the files themselves"
        )
    class_name = Path(member.name).stem
    end = member.offset + member.size
    return _ClassTar(class_name, member.name, src, 0, member.offset, end)


def _add_class_tars(finder: Finder, tars: Iterable[_ClassTar], options: SourceOptions) -> None:
    by_class: dict[str, _ClassTar] = {}
    for tar in tars:
        if tar.class_name in by_class:
            raise UsageError(
                f"{by_class[tar.class_name].place} and {tar.place} of {finder.place} are tars of "
                "one class; remove or rename one"
            )
        by_class[tar.class_name] = tar
    if options.only is None:
        require_classes(
            sorted(by_class),
            finder.place,
            holds_folders=lambda _: False,  # known only after reading the tars
            remedy=lambda name: f"name the tar of one split, such as {by_class[name].place}",
        )
    chosen = [by_class[name] for name in options.chosen(by_class, finder.place)]
    for tar, (members, n_hidden) in zip(chosen, in_threads(_members_of, chosen), strict=True):
        finder.passed_over.n_hidden += n_hidden
        _add_class(finder, tar, members)


def _members_of(tar: _ClassTar) -> tuple[list[Member], int]:
    try:
        return visible_members(tar.path, start=tar.start, end=tar.end)
    except DataError as error:
        if tar.end is None:
            raise
        raise DataError(f"class tar {tar.place}: {error}") from error


def _add_class(finder: Finder, tar: _ClassTar, members: Sequence[Member]) -> None:
    images = finder.passed_over.without_side_cars(
        members, lambda member: f"{tar.place}/{member.name}"
    )
    if not images:
        raise UsageError(
            f"class {tar.class_name} of {finder.place} holds no images; fill {tar.place} or remove "
            f"it, or {OTHERS}"
        )
    own_folder = f"{tar.class_name}/"
    prefix = own_folder if all(image.name.startswith(own_folder) for image in images) else ""
    names = [image.name.removeprefix(prefix) for image in images]
    keys = [sample_key(f"{tar.class_name}/{name}") for name in names]
    add_members(finder, [tar.class_name] * len(keys), keys, images, place=tar.place, file=tar.file)


def _add_tree(finder: Finder, members: Sequence[Member], options: SourceOptions) -> None:
    src = finder.place
    depth = _class_depth(members)
    by_class: dict[str, list[Member]] = {}
    for member in members:
        by_class.setdefault(_class_of(member, depth), []).append(member)
    outside = by_class.pop("", [])
    if outside:
        finder.skipped.append(f"{len(outside):,} files of {src} that lie in no class folder")
    if not by_class:
        raise UsageError(
            f"{src} has neither class folders nor class tars; name a tar that holds one folder per "
            "class"
        )
    if options.only is None:
        require_classes(
            sorted(by_class),
            src,
            holds_folders=lambda name: any(
                member.name.count("/") > depth + 1 for member in by_class[name]
            ),
            remedy=lambda _: "unpack it and name the folder of one split",
        )
    for name in options.chosen(by_class, src):
        images = finder.passed_over.without_side_cars(by_class[name], attrgetter("name"))
        if not images:
            raise UsageError(
                f"class {name} of {src} holds no images; make the tar without it, or {OTHERS}"
            )
        keys = [sample_key(image.name.split("/", depth)[depth]) for image in images]
        add_members(finder, [name] * len(keys), keys, images, place=src.name)


def _class_of(member: Member, depth: int) -> str:
    """Return the class folder at a depth; empty for a file that lies in none."""
    parts = member.name.split("/", depth + 1)
    return parts[depth] if len(parts) > depth + 1 else ""


def _class_depth(members: Sequence[Member]) -> int:
    """Count the folders above the class folders: those that are alone and hold folders."""
    folders = {tuple(member.name.split("/")[:-1]) for member in members}
    depth = 0
    while True:
        here = {folder[depth] for folder in folders if len(folder) > depth}
        if len(here) != 1 or not any(len(folder) > depth + 1 for folder in folders):
            return depth
        depth += 1
