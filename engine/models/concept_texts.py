"""Concepts as texts: read from a file, found for the classes of a data set, cleaned."""

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

from coreset.engine.models.concept_bank import Concept
from coreset.engine.runtime.progress import say
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import class_list, wordnet_names
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import missing, parse
from coreset.shards.tables.table import class_in

IMAGENET_CLASSES = 1000
_NAMED = 5  # classes that an error names
_WORD = re.compile(r"[^\W_]+")
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")
Texts: TypeAlias = Mapping[str, Sequence[str]]
"""Texts of each class."""


def read_texts(path: Path) -> Texts:
    """Read ``{class: [concept, ...]}`` from a JSON file; anything else is a ``UsageError``."""
    form = 'a JSON file of {"class": ["concept", ...]}'
    if not path.is_file():
        raise missing(path, f"name {form}", otherwise="is no file")
    try:
        document = parse(path.read_bytes())
        return {name: _texts(name, value) for name, value in document.items()}
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as concepts ({error}); write {form}") from error


def _texts(name: str, value: object) -> list[str]:
    texts = cast("list[object]", value if isinstance(value, list) else [value])
    if texts is not value or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"class {name!r} has no list of strings")
    "".join(map(str, texts)).encode()  # half of a surrogate pair is a ValueError
    return cast("list[str]", texts)


def texts_by_class(path: Path, dataset: Dataset) -> tuple[Texts, dict[str, str]]:
    """Read the texts of each class of a data set; return them, and names of the classes.

    Raises:
        UsageError: The file cannot be read, or lacks a class.
    """
    texts = read_texts(path)
    keys = keys_by_class(dataset.classes, texts)
    if absent := [name for name in dataset.classes if name not in keys]:
        named = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
        raise UsageError(
            f"{path} has no concepts of {len(absent)} of {len(dataset.classes)} classes of "
            f"{dataset.path}: {named}; add them by name, WordNet id or WordNet name, or give "
            "1,000 keys in the order of ImageNet"
        )
    words = class_words(dataset.classes)
    names = {name: ", ".join({words[name]: 1, keys[name]: 1}) for name in dataset.classes}
    return {name: texts[keys[name]] for name in dataset.classes}, names


def keys_by_class(classes: Sequence[str], keys: Collection[str]) -> dict[str, str]:
    """Find the key of each class: by name, WordNet id, ImageNet name, or position in ImageNet.

    Names are compared without case and punctuation. The position counts where there are 1,000 keys,
    unless most of those that are known otherwise lie elsewhere. Classes without a key are left out.
    """
    by_name = _unambiguous((_plain(key), key) for key in keys)
    named = {name: name if name in keys else by_name.get(_plain(name)) for name in classes}
    found = {name: key for name, key in named.items() if key is not None}
    if len(found) == len(classes):
        return found
    numbers = [_imagenet_number(key) for key in keys]
    in_place = [number == at for at, number in enumerate(numbers) if number is not None]
    if len(keys) == IMAGENET_CLASSES and 2 * sum(in_place) >= len(in_place):
        numbers = range(IMAGENET_CLASSES)
    by_number = _unambiguous(zip(numbers, keys, strict=True))
    others = {n: by_number.get(_imagenet_number(n)) for n in classes if n not in found}
    return found | {name: key for name, key in others.items() if key is not None}


def class_words(classes: Sequence[str]) -> dict[str, str]:
    """Name each class in words: open_clip's name of an ImageNet class, else its own."""
    numbers = {wnid: number for number, wnid in enumerate(class_list("imagenet"))}
    return {
        name: _imagenet_words()[numbers[wnid]] if (wnid := class_in(name)) in numbers else name
        for name in classes
    }


def _imagenet_words() -> Sequence[str]:
    from coreset.engine.models.clip import class_names

    return class_names()


def _imagenet_number(name: str) -> int | None:
    """Return the position in ImageNet of a class by its WordNet id or name, or None."""
    return _imagenet_numbers().get(_plain(class_in(name)))


@cache
def _imagenet_numbers() -> dict[str, int]:
    """Return positions by WordNet ids and by names that one class has, the surest names first."""
    wordnet = wordnet_names()
    single = [(name, at) for at, names in enumerate(wordnet) for name in names.split(",")]
    numbers: dict[str, int] = {}
    for names in (class_list("imagenet"), _imagenet_words(), wordnet):
        numbers = _unambiguous((_plain(name), at) for at, name in enumerate(names)) | numbers
    return _unambiguous((_plain(name), at) for name, at in single) | numbers


def _plain(name: str) -> str:
    return " ".join(_WORD.findall(name.lower()))


def _unambiguous(pairs: Iterable[tuple[_Key, _Value]]) -> dict[_Key, _Value]:
    """Return a dictionary of pairs, without the keys that come more than once."""
    values: dict[_Key, list[_Value]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: own[0] for key, own in values.items() if len(own) == 1}


def cleaned(by_class: Texts, names: Mapping[str, str]) -> list[Concept]:
    """Clean the texts of classes, and merge those that classes share into one concept.

    Texts become lower case with single blanks and no full stop at their end. Dropped are texts that
    hold a name of their class (``names``, with commas between), and what a class has twice. Where
    that would leave nothing, the texts with the name stay, which is said.

    Raises:
        UsageError: A class has no text.
    """
    classes: dict[str, list[str]] = {}
    with_names: list[str] = []
    for name, texts in by_class.items():
        plain = dict.fromkeys(" ".join(text.lower().split()).rstrip(". ") for text in texts)
        every = list(filter(None, plain))
        if not every:
            raise UsageError(f"class {name} has no concept ({names[name]}); describe it in words")
        own = [text for text in every if not _holds_name(text, names[name])]
        with_names += [] if own else [name]
        for text in own or every:
            classes.setdefault(text, []).append(name)
    if with_names:
        shown = "; ".join(f"{name} ({names[name]})" for name in with_names[:_NAMED])
        say(f"classes with texts that all hold their names, which are kept: {shown}")
    return [Concept(text=text, classes=tuple(own)) for text, own in classes.items()]


def _holds_name(text: str, names: str) -> bool:
    """Test for one of several names among the words of a text, in singular or plural."""
    words = _plain(text).split()
    for name in filter(None, (_plain(name).split() for name in names.split(","))):
        starts = range(len(words) - len(name) + 1)
        if any(all(map(_same_word, name, words[at:])) for at in starts):
            return True
    return False


def _same_word(first: str, second: str) -> bool:
    return first == second or first in _plurals(second) or second in _plurals(first)


def _plurals(word: str) -> tuple[str, ...]:
    return f"{word}s", f"{word}es", f"{word[:-1]}ies"
