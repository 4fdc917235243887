"""Column names that tables use, and kinds of cells."""

import re
from collections.abc import Iterable

from coreset.shards.images.probe import FORMAT_OF_EXTENSION

# A column that ranks before another one is taken where both are there.
SAMPLE_COLUMNS = (
    ("path",),
    ("filepath", "imagepath", "file", "filename", "imagefile", "image", "img", "source"),
    ("key", "samplekey"),
)
# Taken where no other column names samples: they may also count the rows.
ID_COLUMNS = (
    ("imageid", "sampleid", "sample", "id", "ids"),
    ("idx", "index", "indices"),
)
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
INTEGER = re.compile(r"\s*[0-9]{1,18}\s*")
_WNID = re.compile(r"(?<![\w-])n\d{8}(?![\w-])")
_FOLDER = re.compile(r"[/\\]")


def plain_name(column: str) -> str:
    """Normalise the name of a column: ``Image_ID`` and ``imageId`` are one name."""
    return re.sub(r"[\s_-]+", "", column.lower())


def looks_like_path(cell: str) -> bool:
    """Test for a folder or the extension of an image format in a cell."""
    extension = cell.strip().rpartition(".")[2].lower()
    return bool(_FOLDER.search(cell)) or ("." in cell and extension in FORMAT_OF_EXTENSION)


def wnids_in(cells: Iterable[str]) -> set[str]:
    """Find WordNet ids (n01440764) that stand as words of their own in some cells."""
    return {wnid for cell in cells for wnid in _WNID.findall(cell)}


def class_in(text: str) -> str:
    """Take the one WordNet id that stands in a text as the class, else the text."""
    wnids = wnids_in([text])
    return wnids.pop() if len(wnids) == 1 else text


OF_CLASSES = {name for rank in (*CLASS_COLUMNS, *NUMBER_COLUMNS) for name in rank}
OF_SAMPLES = {name for rank in (*SAMPLE_COLUMNS, *ID_COLUMNS) for name in rank} | set(
    map(plain_name, LABEL_COLUMNS)
)
