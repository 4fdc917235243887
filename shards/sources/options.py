"""What to look for in a source: which classes, the names of integer labels, what about repeats.

Every finder takes one of these, so that the same fields mean the same for every layout.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.sources.base import Repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How a source is to be read."""

    only: tuple[str, ...] | None = None
    """Classes to take, all of which must be there; None takes all."""
    class_names: tuple[str, ...] | None = None
    """Names of integer labels, for layouts that store no names."""
    truth: Path | None = None
    """Labels of the ILSVRC validation images: ground-truth file or development kit."""
    one_class: bool = True
    """Whether a source may hold a single class that ``only`` does not ask for; often it is a folder
    that holds the images of all classes."""
    repeats: Repeats = "error"
    """What to do about two samples with one key."""
    spool: Path | None = None
    """Folder for the decompressed images of sources that cannot be read at random."""
    room_to_pack: bool = True
    """Whether all of the source will be packed on the disk of ``spool``, which must then have room
    for both at once."""
    on_spooled: Callable[[int, int], None] | None = None
    """Told how many bytes of how many are decompressed; never where nothing is to be."""

    def chosen(
        self, names: Iterable[str], place: Path, *, advice: Callable[[str], str] | None = None
    ) -> list[str]:
        """Choose the classes to take, in the order of their sample keys.

        Args:
            names: Classes of the source.
            place: The source, for error messages.
            advice: Says what to do if there is a single class, given its name.

        Raises:
            UsageError: A class that is asked for is missing, or there is a single class and
                ``one_class`` does not allow it.
        """
        there = set(names)
        missing = sorted(set(self.only or ()) - there)
        if missing:
            raise UsageError(
                f"class {missing[0]} is not in {place} ({len(missing):,} of "
                f"{len(self.only or ()):,} asked for are not); name another class list or source"
            )
        if self.only is None and not self.one_class and len(there) == 1:
            name = there.pop()
            how = advice(name) if advice else "name a source that tells the classes apart"
            raise UsageError(
                f"{place} holds a single class, {name}; {how}, or pack one class with --one-class"
            )
        return sorted(there if self.only is None else self.only, key=lambda name: f"{name}/")

    def takes(self, name: str) -> bool:
        """Whether samples of a class are taken."""
        return self.only is None or name in self.only

    def name_of(self, label: int, there: Sequence[str] | None, place: Path) -> str:
        """Class name of an integer label, by ``class_names`` or the names that the source holds.

        Raises:
            UsageError: There are no names, or the label is not a position in them.
        """
        names = self.class_names or there
        if names is None:
            raise UsageError(
                f"{place} holds integer labels without names; name a class list with --class-names"
            )
        if not 0 <= label < len(names):
            raise UsageError(
                f"label {label} of {place} is not in [0, {len(names)}), the range of the class "
                "list; name the right list with --class-names"
            )
        return names[label]
