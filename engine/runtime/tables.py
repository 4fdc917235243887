"""Plain tables and readable quantities for the output of verbs."""

from collections.abc import Sequence

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Lines of a table whose columns are as wide as their widest cell; numbers to the right.

    A column is one of numbers if every cell below its header starts with a digit.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [bool(rows) and all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    return tuple(_line(row, widths, numeric) for row in (header, *rows))


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    )
    return "  ".join(cells).rstrip()


def readable_bytes(n_bytes: float | None) -> str:
    """Format a size in the unit that leaves it below 1024: ``1.5 GiB``; a dash for None."""
    if n_bytes is None:
        return "-"
    unit = 0
    while n_bytes >= 1024 and unit < len(_BINARY_UNITS) - 1:
        n_bytes /= 1024
        unit += 1
    return f"{n_bytes:.0f} B" if unit == 0 else f"{n_bytes:.1f} {_BINARY_UNITS[unit]}"


def readable_seconds(seconds: float) -> str:
    """A duration: ``0.42 s``, ``12.3 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 59.95:  # what would be rounded up to a minute is one
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"
