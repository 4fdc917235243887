"""CSV as it is written everywhere here: no cell that a spreadsheet would run as a formula.

A spreadsheet runs text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return (CWE
1236), and class names and paths come from strangers. Such text gets an apostrophe in front, numbers
do not. The way back: take one apostrophe off text that begins with apostrophes and one of these.
"""

import csv
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")


class _Lines(list[str]):
    """File of a CSV writer, which writes line by line."""

    def write(self, line: str) -> None:
        self.append(line)


def csv_table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Encode a CSV file of these rows in UTF-8; None is an empty cell."""
    lines = _Lines()
    # With this end of a line a carriage return in a cell is quoted; written is a line feed alone.
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(map(guarded, header))
    writer.writerows(map(guarded, row) for row in rows)
    return "".join(f"{line[:-2]}\n" for line in lines).encode()


def guarded(cell: object) -> object:
    """Put an apostrophe in front of a cell if a spreadsheet would run it."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def unguarded(cell: str) -> str:
    """Return the text that `guarded` made this cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
