"""Class lists of well-known data sets, sorted by WordNet id, and class lists in files."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from coreset.shards.errors import MachineError, UsageError
from coreset.shards.tables.table import (
    CLASS_COLUMNS,
    NUMBER_COLUMNS,
    Table,
    class_in,
    plain_name,
    read_table,
    wnids_in,
)

IMAGENETTE_WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
# Tian et al., Contrastive Multiview Coding (ECCV 2020), imagenet100.txt, in the order of its lines.
IMAGENET_100_CMC_WNIDS = (
    "n02869837", "n01749939", "n02488291", "n02107142", "n13037406", "n02091831", "n04517823",
    "n04589890", "n03062245", "n01773797", "n01735189", "n07831146", "n07753275", "n03085013",
    "n04485082", "n02105505", "n01983481", "n02788148", "n03530642", "n04435653", "n02086910",
    "n02859443", "n13040303", "n03594734", "n02085620", "n02099849", "n01558993", "n04493381",
    "n02109047", "n04111531", "n02877765", "n04429376", "n02009229", "n01978455", "n02106550",
    "n01820546", "n01692333", "n07714571", "n02974003", "n02114855", "n03785016", "n03764736",
    "n03775546", "n02087046", "n07836838", "n04099969", "n04592741", "n03891251", "n02701002",
    "n03379051", "n02259212", "n07715103", "n03947888", "n04026417", "n02326432", "n03637318",
    "n01980166", "n02113799", "n02086240", "n03903868", "n02483362", "n04127249", "n02089973",
    "n03017168", "n02093428", "n02804414", "n02396427", "n04418357", "n02172182", "n01729322",
    "n02113978", "n03787032", "n02089867", "n02119022", "n03777754", "n04238763", "n02231487",
    "n03032252", "n02138441", "n02104029", "n03837869", "n03494278", "n04136333", "n03794056",
    "n03492542", "n02018207", "n04067472", "n03930630", "n03584829", "n02123045", "n04229816",
    "n02100583", "n03642806", "n04336792", "n03259280", "n02116738", "n02108089", "n03424325",
    "n01855672", "n02090622",
)  # fmt: skip
IMAGENET_100_WNIDS = tuple(sorted(IMAGENET_100_CMC_WNIDS))
_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_LAST_NUMBER = re.compile(r"(?:^|[\s,;:|])([0-9]{1,9})[\s,;:|]+$")
_FIRST_NUMBER = re.compile(r"[\s,;:|]+([0-9]{1,9})(?:[\s,;:|]|$)")
_NUMBER_AND_NAME = re.compile(r"(?P<number>[0-9]{1,9})[\s,;:|]+(?P<name>.*\S)")
_UNNAMED = frozenset({"", "unnamed:0"})
_NamesAndNumbers: TypeAlias = tuple[tuple[str, ...], list[tuple[int, ...]]]


def recognise(classes: Sequence[str]) -> str | None:
    """Return imagenette, imagenet-100 or imagenet-1k if these are its classes in any order.

    Any 1000 WordNet ids count as ImageNet-1K.
    """
    ordered = tuple(sorted(classes))
    for name in ("imagenette", "imagenet-100"):
        if ordered == class_list(name):
            return name
    if len(ordered) == 1000 and all(_WNID.fullmatch(name) for name in ordered):
        return "imagenet-1k"
    return None


def class_list(name: str, *, ordered: bool = True) -> tuple[str, ...]:
    """Return the class names of a well-known data set (with or without the hyphen) or of a file.

    A file has one class a line, row or entry. The name is its WordNet id if each has one
    (``n01440764 tench``), else the whole line, or the column with a known name. Numbers beside the
    names are labels from 0: names come in their order if ``ordered``.
    """
    known = name.lower().replace("-", "").replace("_", "")
    if known == "imagenette":
        return IMAGENETTE_WNIDS
    if known == "imagenet100":
        return IMAGENET_100_WNIDS
    if known in {"imagenet", "imagenet1k"}:
        return _classes_of_file(_timm_file("imagenet_synsets.txt"), ordered=ordered)
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"class list {name} is neither imagenette, imagenet-100 or imagenet-1k nor a file; "
            "name one of these"
        )
    return _classes_of_file(path, ordered=ordered)


def _classes_of_file(path: Path, *, ordered: bool) -> tuple[str, ...]:
    table = read_table(path, "class list", class_list=True)
    rows = [[cell.strip() for cell in cells] for _, cells in table.rows()]
    if not rows:
        raise UsageError(f"class list {path} is empty; write one class name a line")
    single = len(table.header) <= 1 and all(len(row) == 1 for row in rows)
    names, numbers = _lines(path, [row[0] for row in rows]) if single else _columns(table, rows)
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated or "" in names:
        problem = f"names {repeated[0]} twice" if repeated else "has a row without a name"
        raise UsageError(f"class list {path} {problem}; remove one line")
    if not ordered:
        return names
    if numbers:
        return _in_order(table, names, numbers)
    if single and table.may_have_header and not wnids_in(rows[0]):
        raise UsageError(
            f"class list {path} begins with {names[0]!a}, which may be a header or a class; write "
            "the header class above it, or save the list as .txt"
        )
    return names


def _in_order(
    table: Table, names: Sequence[str], numbers: Sequence[tuple[int, ...]]
) -> tuple[str, ...]:
    """Sort names by their numbers; several columns of numbers must be equal."""
    if len(set(numbers)) > 1 or sorted(numbers[0]) != list(range(len(names))):
        seen = ", ".join(str(number) for column in numbers for number in column[:3])
        raise UsageError(
            f"class list {table.path} has {table.described()}, with numbers ({seen} ...) that are "
            f"not one label from 0 to {len(names) - 1} for each name; leave the numbers out and "
            "list the names in the order of the labels"
        )
    return tuple(name for _, name in sorted(zip(numbers[0], names, strict=True)))


def _lines(path: Path, lines: Sequence[str]) -> _NamesAndNumbers:
    """Split lines into names, and the numbers directly before or after all of them."""
    wnids = _wnids([[line] for line in lines])
    if wnids:
        parts = [line.split(wnid, 1) for line, wnid in zip(lines, wnids, strict=True)]
        before = [_LAST_NUMBER.search(part[0]) for part in parts]
        after = [_FIRST_NUMBER.match(part[1]) for part in parts]
        columns = [[match[1] for match in side if match] for side in (before, after)]
        return wnids, [tuple(map(int, column)) for column in columns if len(column) == len(lines)]
    mixed = [line for line in lines if wnids_in([line]) and not _WNID.fullmatch(line)]
    if mixed:
        raise UsageError(
            f"class list {path} has {mixed[0][:60]!a}, but not one WordNet id in every line; write "
            "one name a line"
        )
    # The number may be at either end, the second time the start of the reversed line.
    for step in (1, -1):
        matches = [match for line in lines if (match := _NUMBER_AND_NAME.fullmatch(line[::step]))]
        numbers = tuple(int(match["number"][::step]) for match in matches)
        n = len(lines)
        if sorted(numbers) in (list(range(n)), list(range(1, n + 1))):
            return tuple(match["name"][::step] for match in matches), [numbers]
    return tuple(lines), []


def _columns(table: Table, rows: Sequence[Sequence[str]]) -> _NamesAndNumbers:
    width = min(map(len, rows))
    integers = [at for at in range(width) if all(_NUMBER.fullmatch(row[at]) for row in rows)]
    texts = [at for at in range(max(map(len, rows))) if at not in integers]
    known = [at for at in table.columns_named(CLASS_COLUMNS) if at in texts] or texts
    names = _wnids(rows)
    if not names and len(known) == 1 and known[0] < width:
        names = tuple(class_in(row[known[0]]) for row in rows)
    if not names:
        raise table.ambiguous("the class names", "class")
    numbered = [at for at in table.columns_named(NUMBER_COLUMNS) if at in integers] or integers
    numbers = {at: tuple(int(row[at]) for row in rows) for at in numbered}
    # The index that pandas saves counts the rows of a frame, which may have been sorted since.
    header = table.header and [*table.header, *[""] * width]  # which may be shorter than the rows
    unsure = [at for at in numbers if header and plain_name(header[at]) in _UNNAMED]
    if any(list(numbers[at]) != sorted(numbers[at]) for at in unsure):
        raise table.ambiguous("the labels", "label")
    return names, [numbers[at] for at in numbers if at not in unsure]


def _wnids(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    of_rows = [wnids_in(row) for row in rows]
    return tuple(ids.pop() for ids in of_rows) if all(len(ids) == 1 for ids in of_rows) else ()


def wordnet_names() -> tuple[str, ...]:
    """Return WordNet's names of the classes of ImageNet-1K in their order: ``tench, Tinca tinca``.

    Two classes may have one name, such as ``crane``.
    """
    lines = _timm_file("imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    names = dict(line.split("\t", 1) for line in lines)
    return tuple(names[wnid] for wnid in class_list("imagenet"))


def _timm_file(name: str) -> Path:
    """Find a file on ImageNet in timm, whose import would import torch."""
    spec = find_spec("timm")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "data/_info" / name
        if path.is_file():
            return path
    raise MachineError("the class list of ImageNet-1K comes with timm, which is not installed")
