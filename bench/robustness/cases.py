"""Faulty inputs of the scoreboard: odd files, odd shards, damage to packed data.

Every sample has a label of its own, so that whatever comes out can be told apart. ``place`` is what
``coreset`` is given; ``tars`` what readers of shards are given, empty for image folders, which
``webdataset.ShardWriter`` packs first.
"""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

from coreset.bench.processes import CORESET
from coreset.bench.robustness.faults import (
    ODD_IMAGES,
    OddImage,
    Pixels,
    TarMember,
    class_name,
    jpeg,
    pickle_that_touches,
    quietly_wrong_jpeg,
    rgb,
    sample_members,
    write_class_names,
    write_photos,
    write_tar,
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
    """Arguments of ``coreset pack``."""


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
    """Yield every case."""
    for odd in ODD_IMAGES:
        yield Case(odd.row, odd.fault, odd.made, "folder", partial(_with_odd, odd))
    for row, fault, injected, members in _SHARDS:
        yield Case(row, fault, injected, "shards", partial(_with_members, members))
    for row, fault, injected, damage in _DAMAGES:
        yield Case(row, fault, injected, "packed", partial(_damaged, damage))


def _truths() -> dict[int, Pixels | None]:
    """Return the pixels of ``write_photos`` and ``sample_members``."""
    return {label: rgb(jpeg(label)) for label in range(N)}


def _with_odd(odd: OddImage, folder: Path) -> Inputs:
    src, data = write_photos(folder / "src", N), odd.make()
    # The photo stays: a class whose every file is refused would stop the packing.
    (src / class_name(ODD) / odd.name).write_bytes(data)
    truths = _truths()
    beside = {ODD: rgb(jpeg(ODD))}
    truths[ODD] = odd.truth(data) if odd.truth else None
    expected = Expected(truths=truths, beside=beside, culprits=("odd",))
    return Inputs(place=src, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """Twelve samples, of which ODD is ``odd`` (None: as it should be), in one shard or two."""

    odd: Callable[[], Sequence[TarMember]] | None = None
    culprit: str = f"{ODD:04d}"
    after: Callable[[], Sequence[TarMember]] = tuple
    """At the end of the last shard."""
    shards: int = 1
    empty: bool = False
    """The last shard has no members."""
    interleaved: bool = False
    pickle: str = ""
    """Ending of a member of ODD that creates a file when it is unpickled."""
    beside: bool = False
    """A plain sample of ODD's label comes last, so that its class is not empty."""
    truth: Literal["own", "none", "before"] = "own"
    """Right output for ODD: its own pixels, nothing, or the pixels of the sample before it."""


def _with_members(members: _Members, folder: Path) -> Inputs:
    canary = folder / "canary"
    tars = [
        write_tar(folder / "src" / f"train-{number:04d}.tar", shard)
        for number, shard in enumerate(_shards_of(members, canary))
    ]
    truths = _truths()
    if members.truth != "own":
        truths[ODD] = None if members.truth == "none" else truths[ODD - 1]
    if members.empty and members.shards == 1:
        truths = dict.fromkeys(truths)
    beside = {ODD: rgb(jpeg(ODD))} if members.beside else {}
    culprits = ("train-", str(folder / "src")) if members.empty else (members.culprit,)
    expected = Expected(truths=truths, beside=beside, culprits=culprits, canary=canary)
    options = ("--class-names", str(write_class_names(folder / "classes.txt", N)))
    return Inputs(place=folder / "src", expected=expected, tars=tuple(tars), options=options)


def _shards_of(members: _Members, canary: Path) -> list[list[TarMember]]:
    samples = [list(sample_members(label)) for label in range(N)]
    if members.odd is not None:
        samples[ODD] = list(members.odd())
    if members.pickle:
        name = f"{ODD:04d}.{members.pickle}"
        samples[ODD].append(TarMember(name, pickle_that_touches(canary)))
    samples[-1] += members.after()
    if members.beside:
        samples[-1] += sample_members(ODD, "beside")
    if members.interleaved:
        samples = [[pair[0] for pair in samples], [pair[1] for pair in samples]]
    filled = members.shards - members.empty
    per_shard = -(-len(samples) // max(1, filled))
    starts = range(0, filled * per_shard, per_shard)
    shards = [list(chain(*samples[start : start + per_shard])) for start in starts]
    return [*shards, []] if members.empty else shards


def _keyed(key: str) -> _Members:
    return _Members(odd=lambda: sample_members(ODD, key), culprit=key)


def _labelled(cls: bytes) -> _Members:
    return _Members(odd=lambda: sample_members(ODD, cls=cls), truth="none")


def _instead_of_image(kind: bytes, link: str = "") -> _Members:
    member = TarMember(f"{ODD:04d}.jpg", kind=kind, link=link)
    return _Members(odd=lambda: (member, sample_members(ODD)[1]), beside=True, truth="none")


def _with_pickle(extension: str) -> tuple[int, str, str, _Members]:
    members = _Members(pickle=extension, culprit=f"{ODD:04d}.{extension}")
    injected = "a pickle that creates a file when it is loaded"
    return 31, f"pickle in a .{extension} member", injected, members


_SHARDS: tuple[tuple[int, str, str, _Members], ...] = (
    (17, "duplicate key, adjacent", "a sample twice in a row",
     _Members(odd=lambda: [*sample_members(ODD), *sample_members(ODD)])),
    (17, "duplicate key, apart", "a sample again at the end of the shard",
     _Members(after=lambda: sample_members(ODD))),
    (17, "duplicate key, in two shards", "a sample of the first shard again in the second",
     _Members(after=lambda: sample_members(ODD), shards=2)),
    (18, "interleaved members", "all images, then all labels", _Members(interleaved=True)),
    (18, "dots in a key", "a.b.0005.jpg", replace(_keyed("a.b.0005"), culprit="b.0005.jpg")),
    (18, "key that is not ASCII", "größe-五.jpg", _keyed("größe-五")),
    (18, "blanks in a key", "a photo.jpg", _keyed("a photo")),
    (18, "long key", "300 characters", replace(_keyed("k" * 300), culprit="k" * 40)),
    (18, "key with underscores", "__x__.jpg", _keyed("__x__")),
    (18, "extension in capitals", "0005.JPEG",
     _Members(odd=lambda: [TarMember(f"{ODD:04d}.JPEG", jpeg(ODD)), sample_members(ODD)[1]])),
    (19, "no label", "no .cls member", _Members(odd=lambda: sample_members(ODD)[:1], truth="none")),
    (19, "empty label", "a .cls member of 0 bytes", _labelled(b"")),
    (19, "label that is no number", "cat", _labelled(b"cat")),
    (19, "label out of range", "99 where there are 12 classes", _labelled(b"99")),
    (30, "path traversal", "../../etc/0005.jpg", _keyed("../../etc/0005")),
    (30, "absolute name", "/etc/0005.jpg", _keyed("/etc/0005")),
    (30, "symbolic link", "0005.jpg links to /etc/hostname",
     _instead_of_image(tarfile.SYMTYPE, "/etc/hostname")),
    (30, "hard link", "0005.jpg links to 0004.jpg",
     replace(_instead_of_image(tarfile.LNKTYPE, "0004.jpg"), truth="before")),
    (30, "device", "0005.jpg is a character device", _instead_of_image(tarfile.CHRTYPE)),
    (30, "very long name", "a name of 4 MB",
     replace(_keyed("k" * (4 << 20)), culprit="train-0000")),
    (18, "a shard without members", "the only one", _Members(empty=True)),
    (18, "a shard without members, among others", "the second of two",
     _Members(empty=True, shards=2)),
    *map(_with_pickle, ("pyd", "pkl", "npy")),
)  # fmt: skip


def _damaged(damage: Callable[[Path], None], folder: Path) -> Inputs:
    src, data = write_photos(folder / "src", N), folder / "DATA"
    ran = run([*CORESET, "pack", src, data, "--samples-per-shard", str(SAMPLES_PER_SHARD)])
    if ran.code:
        raise ValueError(f"the photos cannot be packed: {ran.text}")
    damage(data / "shard-000001.tar")
    expected = Expected(truths=_truths(), culprits=("shard-000001",))
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
