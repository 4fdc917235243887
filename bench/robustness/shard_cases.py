"""Faulty inputs of the scoreboard: shards with odd keys, labels and members."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from coreset.bench.robustness.cases import ODD, Case, Inputs, N, photo_truths
from coreset.bench.robustness.faults import (
    TarMember,
    jpeg,
    pickle_that_touches,
    rgb,
    sample_members,
    write_class_names,
    write_tar,
)
from coreset.bench.robustness.outcomes import Expected


def shard_cases() -> Iterator[Case]:
    """Yield every case."""
    for row, fault, injected, members in _SHARDS:
        yield Case(row, fault, injected, "shards", partial(_with_members, members))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """Twelve samples, of which ODD is ``odd`` (None: as it should be), in one shard or two."""

    odd: Callable[[], Sequence[TarMember]] | None = None
    culprit: str = f"{ODD:04d}"
    after: Callable[[], Sequence[TarMember]] = tuple
    """At the end of the last shard."""
    shards: int = 1
    empty: bool = False
    """Whether the last shard has no members."""
    interleaved: bool = False
    pickle: str = ""
    """Ending of a member of ODD that creates a file when it is unpickled."""
    beside: bool = False
    """Whether a plain sample of ODD's label comes last, so that its class is not empty."""
    truth: Literal["own", "none", "before"] = "own"
    """What is right for ODD: its own pixels, nothing, or the pixels of the sample before it."""


def _with_members(members: _Members, folder: Path) -> Inputs:
    canary = folder / "canary"
    tars = [
        write_tar(folder / "src" / f"train-{number:04d}.tar", shard)
        for number, shard in enumerate(_shards_of(members, canary))
    ]
    truths = photo_truths()
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
