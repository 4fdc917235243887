"""Names in tables and lists: of columns, of classes in cells, and of samples."""

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import chain

from coreset.shards.arrow import ArrowColumn
from coreset.shards.images.probe import FORMAT_OF_EXTENSION

UNKNOWN, SEVERAL = -1, -2

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


def plain_name(column: str) -> str:
    """Normalise the name of a column: ``Image_ID`` and ``imageId`` are one name."""
    return re.sub(r"[\s_-]+", "", column.lower())


def looks_like_path(cell: str) -> bool:
    """Test for a folder or the extension of an image format in a cell."""
    extension = cell.strip().rpartition(".")[2].lower()
    return "/" in cell or "\\" in cell or ("." in cell and extension in FORMAT_OF_EXTENSION)


def wnids_in(cells: Iterable[str]) -> set[str]:
    """Find WordNet ids (n01440764) that stand as words of their own in some cells."""
    return {wnid for cell in cells for wnid in _WNID.findall(cell)}


def class_in(text: str) -> str:
    """Take the one WordNet id that stands in a text as the class, else the text."""
    wnids = wnids_in([text])
    return wnids.pop() if len(wnids) == 1 else text


class SampleNames:
    """Matcher of names with samples, by sample keys and source paths.

    A name is a source path or a sample key, with or without the extension of an image format; a
    longer path that ends in one, folder included; or a file name without any folder that only one
    sample has. Of several meanings the longest path counts, and a source path before a key.
    """

    def __init__(self, keys: ArrowColumn, sources: ArrowColumn, *, folder: str = "") -> None:
        """Index sample keys, each once, and source paths, which begin in ``folder`` if known."""
        self._folder = folder
        self._keys, self._sources = (
            _index(("/".join(_parts(name)), row) for row, name in enumerate(names.to_pylist()))
            for names in (keys, sources)
        )
        self._depth = 1 + max(name.count("/") for name in chain(("",), self._keys, self._sources))

    def position(self, entry: str) -> int:
        """Return the position of the sample that an entry names, ``UNKNOWN`` or ``SEVERAL``."""
        parts = _parts(entry)
        # A file name alone names no sample of another folder.
        shortest = 1 if parts[-2:-1] in ([], [self._folder]) else 2
        for length in range(min(len(parts), self._depth), shortest - 1, -1):
            end = "/".join(parts[-length:])
            for rows, name in (self._sources, end), (self._keys, end), (self._keys, _stem(end)):
                if name in rows:
                    return rows[name]
        return self._files.get(_stem(parts[0]), UNKNOWN) if len(parts) == 1 else UNKNOWN

    def known(self, entries: Iterable[str]) -> set[str]:
        """Pick the entries that name a sample; integers alone never do."""
        texts = (text for text in entries if not INTEGER.fullmatch(text))
        return {text for text in texts if self.position(text) != UNKNOWN}

    @cached_property
    def _files(self) -> dict[str, int]:
        return _index((name.rpartition("/")[2], row) for name, row in self._keys.items())


def _index(named_rows: Iterable[tuple[str, int]]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, row in named_rows:
        rows[name] = SEVERAL if name in rows else row
    return rows


def _parts(path: str) -> list[str]:
    parts = path.strip().replace("\\", "/").split("/")
    return [part for part in parts if part not in {"", "."}]


def _stem(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return stem if dot and extension.lower() in FORMAT_OF_EXTENSION else path
