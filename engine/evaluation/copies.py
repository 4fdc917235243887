"""Images of a condensed set that occur twice, in it or in the reference: exactly, or nearly."""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from coreset.engine.evaluation.subject import Subject

NEAR = 0.95
"""Cosine of features above which two images are near copies."""
MOST_COPIES = 8
"""Near copies of an image that are looked for, its exact ones included."""


class Pair(NamedTuple):
    """An image of the set and a copy of it."""

    kind: str
    """``exact``: the stored bytes are equal; ``near``: the cosine is above `NEAR`."""
    place: str
    """Where the copy is: ``set`` (told once of two images) or ``reference``."""
    image: int
    """Position in the set."""
    copy: int
    """Position in the place."""
    cosine: float = 1.0


def pairs_of(subject: "Subject") -> list[Pair]:
    """Find equal and nearly equal images in the set, and between set and reference."""
    pairs: list[Pair] = []
    for place in ("set", "reference"):
        exact = list(_exact(subject, place))
        known = {(pair.image, pair.copy) for pair in exact}
        near = (pair for pair in _near(subject, place) if (pair.image, pair.copy) not in known)
        pairs += [*exact, *near]
    return pairs


def share_of_copies(subject: "Subject", kind: str, place: str) -> float:
    """Return the share of the set's images that have a copy of a kind in a place."""
    found = [pair for pair in subject.copies if (pair.kind, pair.place) == (kind, place)]
    images = {pair.image for pair in found}
    if place == "set":
        images |= {pair.copy for pair in found}
    return len(images) / subject.condensed.ids.size


def _exact(subject: "Subject", place: str) -> Iterator[Pair]:
    """Find images of equal stored bytes by the digests in the tables; nothing is decoded."""
    own = subject.column("content_hash")
    places: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(
        own if place == "set" else subject.column("content_hash", place)
    ):
        places[digest].append(position)
    for image, digest in enumerate(own):
        for copy in places.get(digest, ()):
            if place != "set" or image < copy:
                yield Pair("exact", place, image, copy)


def _near(subject: "Subject", place: str) -> Iterator[Pair]:
    from coreset.kernels.neighbours import nearest, unit_rows

    inside = place == "set"
    rows = unit_rows(subject.set_features)
    base = rows if inside else unit_rows(subject.reference_features)
    found = nearest(rows, base, min(MOST_COPIES + inside, len(base)), subject.device)
    told: set[tuple[int, int]] = set()
    for row, neighbours in enumerate(found.tolist()):
        cosines = base[neighbours] @ rows[row]
        for other, cosine in zip(neighbours, cosines.tolist(), strict=True):
            image, copy = sorted((row, other)) if inside else (row, other)
            is_own = inside and row == other
            if cosine > NEAR and not is_own and (image, copy) not in told:
                told.add((image, copy))
                yield Pair("near", place, image, copy, min(cosine, 1.0))
