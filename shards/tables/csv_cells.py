"""CSV files without cells that a spreadsheet would run as formulas (CWE 1236).

A spreadsheet runs text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return, and
class names and paths are not ours. Such text gets an apostrophe in front, numbers do not. Reading
takes one apostrophe off text that begins with apostrophes and one of these characters.
"""

import csv
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")


class _Lines(list[str]):
    """Output of a CSV writer, which writes line by line."""

    def write(self, line: str) -> None:
        self.append(line)


def csv_table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Encode a CSV file of these rows in UTF-8; None is an empty cell."""
    lines = _Lines()
    # With this line ending the writer quotes carriage returns. The file has line feeds alone.
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
    """Undo `guarded`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
