"""Layouts of released condensed sets: which class and which slot the path of an image stands for.

Sources of the layouts: the codes that write them, named in docs/sets.md. A path is matched with the
name of the folder or tar before it, where some codes tell what a set is.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.images.probe import is_image_name
from coreset.shards.sources.base import Source
from coreset.shards.sources.detect import files_below
from coreset.shards.sources.finder import FileContents, Finder, Found, RangeContents
from coreset.shards.sources.names import listed_entries, sample_key
from coreset.shards.sources.tars import visible_members

Numbering = Callable[[int], Sequence[str]]
"""Return the class of each number below n, or refuse to."""
FOLDERS, PARQUET, TENSORS = "folders", "parquet", "tensors"
_SHOWN_SETS = 10
_MOST_SLOTS = 100_000  # keys CLASS/SLOT have five digits, which sort as numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Record of a layout: paths of groups ``set`` (what lies above), ``token`` and ``slot``."""

    path: str
    """For people."""
    pattern: re.Pattern[str]
    method: str = "imported"
    """Method of its sets, if a single one writes it."""


def _layout(path: str, pattern: str, method: str = "imported", *, above: str = "") -> Layout:
    whole = re.compile(rf"(?P<set>(?:.*/)?{above}){pattern}", re.ASCII)  # digits 0 to 9 alone
    return Layout(path=path, pattern=whole, method=method)


LAYOUTS: dict[str, Layout] = {
    "sre2l": _layout(
        "new003/class003_id007.png",
        r"new(?P<token>\d{3,})/class(?P=token)_id(?P<slot>\d{3,})\.(?:png|jpe?g)",
    ),
    "rded": _layout(
        "00003/class00003_id00007.jpg",
        r"(?P<token>\d{5})/class(?P=token)_id(?P<slot>\d{5})\.(?:png|jpe?g)",
        "rded",
    ),
    "vlcp": _layout(
        "SET_s0.7_g10.0_kmexpand1/n01440764/n01440764-image70.png",
        r"(?P<token>n\d{8}|\d{5})/(?P=token)-image(?P<slot>\d+)0\.png",
        "vlcp",
        above=r"[^/]*_s0\.7_g10\.0_kmexpand1(?:_seed\d+)?/",
    ),
    "d4m": _layout(
        "SET_s0.7_g8.0_kmexpand1/3/3-image70.png",
        r"(?P<token>\d+)/(?P=token)-image(?P<slot>\d+)0\.png",
        "d4m",
        above=r"[^/]*_s0\.7_g8\.0_kmexpand1(?:_seed\d+)?/",
    ),
    "wnid": _layout("n01440764/7.png", r"(?P<token>n\d{8})/(?P<slot>\d+)\.png"),
}
"""Layouts that are recognised, by name; no path matches two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Part of a released set to take."""

    numbering: Numbering
    classes: tuple[str, ...] = ()
    """In the order of their labels; empty: all, sorted."""
    ipc: int | None = None
    """First slots of each class; None: all."""
    layout: str | None = None
    replica: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidSet:
    """Images of a released set, whose sample keys CLASS/SLOT sort by slot."""

    layout: str
    source: Source
    replica: str = ""
    """What lies above its class folders, where there are several sets."""
    found_classes: tuple[str, ...] = ()
    """Classes of all its images, sorted."""
    numbered: tuple[str, ...] = ()
    """Class of each number, if folders are named by numbers."""


def find_set(src: Path, wanted: Wanted) -> LaidSet | None:
    """Find the images of a set in a folder or a tar; None if their folders are its classes.

    Raises ``UsageError`` for paths of no known layout, of two, or of several sets.
    """
    finder = Finder(place=src)
    listed = list(_listed(finder))
    images = sorted((found for found in listed if is_image_name(found.name)), key=_by_name)
    finder.skip(len(listed) - len(images), f"files of {src} that are no images by their names")
    name, matches = _matched(src, [found.name for found in images], wanted.layout)
    if name == FOLDERS:
        return None
    chosen = _of_one_set(src, matches, wanted.replica)
    numbers = [int(match["token"]) for match in matches if match["token"].isdecimal()]
    numbered = tuple(wanted.numbering(max(numbers) + 1)) if numbers else ()
    placed = [
        _placed(found, match, numbered)
        for found, match in zip(images, matches, strict=True)
        if match["set"] == chosen
    ]
    found_classes = tuple(sorted({found.class_name for found in placed}))
    classes = wanted.classes or tuple(sorted({*numbered, *found_classes}))
    _require_classes(src, classes, found_classes)
    finder.add(_taken(placed, wanted))
    reader = partial(FileContents, src) if src.is_dir() else partial(RangeContents, [src])
    several = len({match["set"] for match in matches}) > 1
    return LaidSet(
        layout=name,
        source=finder.source(reader, classes=classes),
        replica=_short(chosen) if several else "",
        found_classes=found_classes,
        numbered=numbered,
    )


def _by_name(found: Found) -> str:
    return found.name


def _require_classes(src: Path, classes: Sequence[str], found: Sequence[str]) -> None:
    if absent := sorted(set(classes) - set(found)):
        raise UsageError(
            f"{src} has no images of class {absent[0]} ({len(absent):,} of {len(classes):,} have "
            "none); get the rest of the set, or name the classes that are there with --classes"
        )


def _placed(found: Found, match: re.Match[str], numbered: Sequence[str]) -> Found:
    token, slot = match["token"], int(match["slot"])
    if slot >= _MOST_SLOTS:
        raise UsageError(f"{found.name} has slot {slot}, not below {_MOST_SLOTS:,}; rename it")
    class_name = numbered[int(token)] if token.isdecimal() else token
    return found._replace(class_name=class_name, key=f"{class_name}/{slot:05d}")


def _taken(placed: Sequence[Found], wanted: Wanted) -> list[Found]:
    """Keep the classes, and of each the first slots, that are asked for."""
    ordered = sorted(placed, key=lambda found: found.key)
    taken, slots = list[Found](), dict[str, set[str]]()
    for found in ordered:
        if wanted.classes and found.class_name not in wanted.classes:
            continue
        own = slots.setdefault(found.class_name, set())
        if wanted.ipc is None or found.key in own or len(own) < wanted.ipc:
            own.add(found.key)  # two images for one slot are refused by the finder
            taken.append(found)
    return taken


def _listed(finder: Finder) -> Iterator[Found]:
    """Yield the files below a folder, or the members of a tar."""
    src = finder.place
    if src.is_file():
        members, finder.n_hidden = visible_members(src)
        for member in members:
            key = sample_key(member.name)
            yield Found("", key, member.name, member.size, 0, 0, member.offset, member.kind)
        return
    visible, finder.n_hidden = listed_entries(src)
    for entry in visible:
        if entry.is_dir():
            yield from files_below(finder, entry.name, ())
        elif entry.is_file():
            yield Found("", entry.name, entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        else:
            raise UsageError(f"{src / entry.name} is a broken link or a device; remove it")


def _matched(src: Path, paths: Sequence[str], told: str | None) -> tuple[str, list[re.Match[str]]]:
    """Return the layout of all paths with their matches; folders have none."""
    if told == FOLDERS:
        return FOLDERS, []
    above = src.name if src.is_dir() else src.stem
    known = LAYOUTS if told is None else {told: LAYOUTS[told]}
    found = {
        name: [match for path in paths if (match := one.pattern.fullmatch(f"{above}/{path}"))]
        for name, one in known.items()
    }
    name = max(found, key=lambda one: len(found[one]))
    if paths and len(found[name]) == len(paths):
        return name, found[name]
    if told is None and not any(found.values()) and all("/" in path for path in paths) and paths:
        return FOLDERS, []
    raise UsageError(_mismatch(src, paths, {one: m for one, m in found.items() if m}, known))


def _mismatch(
    src: Path,
    paths: Sequence[str],
    found: dict[str, list[re.Match[str]]],
    known: dict[str, Layout],
) -> str:
    expected = ", ".join(f"{one.path} ({name})" for name, one in known.items())
    if not paths:
        return f"{src} holds no images; name a folder or tar with {expected}"
    if not found:
        return (
            f"{src} has paths such as {paths[0]}, which are of no known layout; expected "
            f"{expected}, or a folder per class"
        )
    seen = {match.string.split("/", 1)[1] for matches in found.values() for match in matches}
    counts = [
        f"{len(matches):,} images as {name} ({matches[0].string.split('/', 1)[1]})"
        for name, matches in found.items()
    ]
    others = [path for path in paths if path not in seen]
    counts += [f"{len(others):,} others ({others[0]})"] if others else []
    return f"{src} mixes layouts: {' and '.join(counts)}; name a folder that holds one set alone"


def _of_one_set(src: Path, matches: Sequence[re.Match[str]], replica: str) -> str:
    """Return what lies above the classes of the set that is asked for, or of the only one."""
    above = sorted({match["set"] for match in matches})
    fitting = [one for one in above if replica in {"", _short(one)}]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(map(_short, above[:_SHOWN_SETS])) + (" ..." if above[_SHOWN_SETS:] else "")
    if replica:
        raise UsageError(f"{src} holds no set {replica}; it has {names}")
    raise UsageError(
        f"{src} holds {len(above)} sets ({names}), replicas or of several IPCs; choose one with "
        "--replica"
    )


def _short(above: str) -> str:
    """Return the path of a set within the source, or the source's own name."""
    own, _, below = above.rstrip("/").partition("/")
    return below or own
