"""Tables and lists: CSV with any common separator, parquet, JSON, or plain lines.

Columns are chosen by known names, else by their cells. A first row that names a sample is a sample,
not a header. A table that can be read in two ways is refused with the columns that were seen.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from coreset.shards.errors import UsageError
from coreset.shards.images.probe import is_image_name
from coreset.shards.tables import formats
from coreset.shards.tables.formats import SEPARATED, Row, Rows

# A column that ranks before another one is taken where both are there.
SAMPLE_COLUMNS = (
    ("path",),
    ("filepath", "imagepath", "file", "filename", "imagefile", "image", "img", "source"),
    ("key", "samplekey"),
)
# Taken where no other column names samples: they may also count the rows.
ID_COLUMNS = (("imageid", "sampleid", "sample", "id", "ids"), ("idx", "index", "indices"))
LABEL_COLUMNS = (
    "label", "labels", "fine_label", "class", "class_name", "category", "target", "wnid", "synset",
    "prediction_string",
)  # fmt: skip
CLASS_COLUMNS = (
    ("wnid", "synset", "synsetid"),
    ("class", "classes", "classname", "classnames", "name", "names", "category", "categories"),
    ("label", "labels"),
)
NUMBER_COLUMNS = (
    ("label", "labels", "labelid", "target", "classid", "classidx", "classindex", "classlabel"),
    ("index", "idx", "id"),
)
OF_CLASSES = {name for rank in (*CLASS_COLUMNS, *NUMBER_COLUMNS) for name in rank}
OF_SAMPLES = {
    name.replace("_", "") for rank in (*SAMPLE_COLUMNS, *ID_COLUMNS, LABEL_COLUMNS) for name in rank
}
INTEGER = re.compile(r"\s*[0-9]{1,18}\s*")
_WNID = re.compile(r"(?<![\w-])n\d{8}(?![\w-])")
SEPARATORS = "comma, semicolon, tab or |"
_HEAD_ROWS = 50
Named: TypeAlias = Callable[[Iterable[str]], Collection[str]]
"""Picks out of some cells those that name a sample."""


def plain_name(column: str) -> str:
    """Normalise the name of a column: ``Image_ID`` and ``imageId`` are one name."""
    return re.sub(r"[\s_-]+", "", column.lower())


def looks_like_path(cell: str) -> bool:
    """Test for a folder or the extension of an image format in a cell."""
    return "/" in cell or "\\" in cell or is_image_name(cell.strip())


def wnids_in(cells: Iterable[str]) -> set[str]:
    """Find WordNet ids (n01440764) that stand as words of their own in some cells."""
    return {wnid for cell in cells for wnid in _WNID.findall(cell)}


def class_in(text: str) -> str:
    """Take the one WordNet id that stands in a text as the class, else the text."""
    wnids = wnids_in([text])
    return wnids.pop() if len(wnids) == 1 else text


@dataclass(frozen=True, slots=True)
class Table:
    """Table whose header, if it has one, is told apart from its rows."""

    path: Path
    unit: str
    """Unit of ``Row.at``: line, row or entry."""
    header: tuple[str, ...]
    """Names of the columns; empty where the file has none."""
    head: tuple[Row, ...]
    named: Collection[str]
    """Cells of the first rows that name a sample."""
    read: Rows

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are not blank, without the header."""
        rows = self.read()
        if self.header and self.unit == "line":
            next(rows, None)
        return rows

    @property
    def may_have_header(self) -> bool:
        """Test for a file that should have a header, but whose first row was read as data."""
        return not self.header and self.path.suffix.lower() in SEPARATED

    def where(self, at: int) -> str:
        """Format the place of a row for a message."""
        return f"{self.path} {self.unit} {at}"

    def described(self) -> str:
        """Say which columns were seen, for a message."""
        if self.header:
            return f"the columns {', '.join(name or '(no name)' for name in self.header)}"
        if not self.head:
            return "no header and no rows"
        first = self.head[0]
        return f"no header, and {self.unit} {first.at} is {_shortened(first.cells)}"

    def columns_named(self, ranks: Iterable[Collection[str]]) -> list[int]:
        """Return the columns with a known name of the first rank that the table has."""
        for rank in ranks:
            columns = [at for at, name in enumerate(self.header) if plain_name(name) in rank]
            if columns:
                return columns
        return []

    def sample_column(self) -> int:
        """Choose the column that names samples; UsageError if several may be meant.

        It is the one with a known name; else the one whose first cells name a sample, or look like
        paths of images; else one of ids; else the only one.
        """
        width = max([len(self.header), *(len(row.cells) for row in self.head)], default=0)
        columns = (
            self.columns_named(SAMPLE_COLUMNS)
            or self._columns_of(lambda cell: cell in self.named)
            or self._columns_of(looks_like_path)
            or self.columns_named(ID_COLUMNS)
            or list(range(max(width, 1)))
        )
        if len(columns) > 1:
            raise self.ambiguous("the names of the samples", "path")
        return columns[0]

    def ambiguous(self, what: str, name: str) -> UsageError:
        """Make the error of a table whose columns do not tell where something is."""
        return UsageError(
            f"{self.path} has {self.described()}, which do not tell where {what} are; call that "
            f"column {name}, or keep it alone"
        )

    def _columns_of(self, holds: Callable[[str], bool]) -> list[int]:
        cells = ((at, cell) for row in self.head for at, cell in enumerate(row.cells))
        return sorted({at for at, cell in cells if holds(cell) and not INTEGER.fullmatch(cell)})


def read_table(
    path: Path, what: str, named: Named = lambda _: (), *, asked: str = "", class_list: bool = False
) -> Table:
    """Open a table or list by its extension: ``.parquet``, ``.json``, else text in UTF-8.

    ``.csv`` and ``.tsv`` have separators; other text is one entry a line, unless its first line has
    known columns or names a sample only when it is separated. ``what`` is the kind of file, for
    messages; a first row with the column ``asked`` is a header; the header of a ``class_list`` has
    to have known names. A UsageError says that the file cannot be read, or that its first row may
    be a header or not.
    """
    if not path.is_file():
        reason = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{what} {path} {reason}; name a file (.csv, .tsv, .txt, .json, .parquet)")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _with_head(path, "row", *formats.parquet_rows(path), named)
    text = formats.text_head(path, what)
    separated = suffix in SEPARATED
    if suffix == ".json" or (text.lstrip()[:1] in {"{", "["} and not separated):
        return _with_head(path, "entry", *formats.json_rows(path, what), named)
    return _Text(path, what, named, asked, class_list, separated).table(text)


def _with_head(path: Path, unit: str, header: tuple[str, ...], rows: Rows, named: Named) -> Table:
    head = tuple(islice(rows(), _HEAD_ROWS))
    known = named({cell for row in head for cell in row.cells})
    return Table(path, unit, header, head, known, rows)


@dataclass(frozen=True, slots=True)
class _Text:
    """Text file whose separator and header are not known yet."""

    path: Path
    what: str
    named: Named
    asked: str
    class_list: bool
    separated: bool

    def table(self, text: str) -> Table:
        """Read the file as what its beginning shows."""
        several = (*("\t,;|" if self.path.suffix.lower() == ".tsv" else ",;\t|"), " ")
        # In the order of preference; none ("") is one entry a line.
        separators = several if self.separated else ("", *several)
        readings: dict[str, tuple[Row, ...]] = {}
        with formats.reading(self.path, self.what):
            for separator in separators:
                first_rows = formats.split_rows(StringIO(text, newline=""), separator)
                readings[separator] = tuple(islice(first_rows, _HEAD_ROWS))
        cells = {cell for rows in readings.values() for row in rows for cell in row.cells}
        named = self.named(cells)
        separator = self._choose(readings, named)
        rows = readings[separator]
        header: tuple[str, ...] = ()
        if rows and self._is_header(rows, named):
            header = tuple(cell.strip() for cell in rows[0].cells)
            rows = rows[1:]
        read = partial(formats.text_rows, self.path, self.what, separator)
        return Table(self.path, "line", header, rows, named, read)

    def _choose(self, readings: Mapping[str, Sequence[Row]], named: Collection[str]) -> str:
        """Take the separator by which the first row has most names that are known."""

        def fits(separator: str) -> tuple[int, bool]:
            cells = readings[separator][0].cells if readings[separator] else ()
            n_known, n_named = sum(map(self._is_known, cells)), sum(map(named.__contains__, cells))
            sure = self.separated and separator != " "
            counts = sure or n_named or n_known == len(cells)
            return n_known + n_named if counts else 0, sure and len(cells) > 1

        return max(readings, key=fits)

    def _is_known(self, cell: str) -> bool:
        names = OF_CLASSES if self.class_list else OF_SAMPLES
        return plain_name(cell) in names or cell.strip() == self.asked != ""

    def _is_header(self, rows: Sequence[Row], named: Collection[str]) -> bool:
        """Test for a header by its names, or by the rows below it; refuse what may be either."""
        first = rows[0].cells
        if self.asked and self.asked in map(str.strip, first):
            return True
        if any(map(looks_like_path, first)) or wnids_in(first):
            return False
        n_known = sum(map(self._is_known, first))
        below = [pair for row in rows[1:] for pair in zip(first, row.cells, strict=False)]
        unlike = any(self._is_entry(cell) and not self._is_entry(above) for above, cell in below)
        if n_known == len(first) or (n_known and (unlike or not below)):
            return True
        if any(cell in named for cell in first) or (len(first) == 1 and not self.separated):
            return False
        if all(map(str.strip, first)) and any(map(INTEGER.fullmatch, first)):
            return False
        if unlike or self.class_list or (n_known and any(cell in named for _, cell in below)):
            return unlike or not self.class_list
        raise UsageError(
            f"{self.what} {self.path} begins with {_shortened(first)}, which may be a header or "
            "not; write a header of known names above it, such as path, label or class, and "
            f"separate columns by {SEPARATORS}"
        )

    def _is_entry(self, cell: str) -> bool:
        """Test whether a cell cannot be the name of a column."""
        is_path = not self.class_list and looks_like_path(cell)
        return bool(is_path or INTEGER.fullmatch(cell) or wnids_in([cell]))


def _shortened(cells: Sequence[str]) -> str:
    return ascii(", ".join(f"{cell:.60}" for cell in cells[:20]))
