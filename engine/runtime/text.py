"""Tables, quantities, quartiles and histograms as text for a terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
NUMBER_WIDTH = 9  # of three digits, -1.23e-05 included
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_FULL, _ASCII = "█", "#"
_NUMBERS = {
    "low": "min", "lower_quartile": "25 %", "median": "median", "upper_quartile": "75 %",
    "high": "max", "mean": "mean",
}  # fmt: skip


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Lay out a table; columns whose every cell starts with a digit are aligned to the right."""
    padded: list[list[str]] = []
    for column in zip(header, *rows, strict=True):
        numeric = bool(rows) and all(cell[:1].isdigit() for cell in column[1:])
        width = max(map(len, column))
        padded.append([cell.rjust(width) if numeric else cell.ljust(width) for cell in column])
    return tuple("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def readable_bytes(n_bytes: float | None) -> str:
    """Format a size in the unit that leaves it below 1024: ``1.5 GiB``; a dash for None."""
    if n_bytes is None:
        return "-"
    power = min(max(0, int(n_bytes).bit_length() - 1) // 10, len(_BINARY_UNITS) - 1)
    return f"{n_bytes / 1024**power:.{min(power, 1)}f} {_BINARY_UNITS[power]}"


def readable_seconds(seconds: float) -> str:
    """Format a duration: ``0.42 s``, ``12.3 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 59.95:  # what would be rounded up to a minute is one
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Quartiles and mean of the finite numbers among some; NaN where there are none."""

    n: int
    not_finite: int
    low: float
    lower_quartile: float
    median: float
    upper_quartile: float
    high: float
    mean: float

    @staticmethod
    def of(values: NDArray[Any]) -> "Summary":
        """Summarise numbers; quartiles by linear interpolation."""
        finite = values[np.isfinite(values)].astype(np.float64)
        numbers = [math.nan] * 6
        if finite.size:
            numbers = [*np.percentile(finite, (0, 25, 50, 75, 100)).tolist(), float(finite.mean())]
        named = dict(zip(_NUMBERS, numbers, strict=True))
        return Summary(n=values.size, not_finite=values.size - finite.size, **named)

    def facts(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return without_nan(asdict(self))


def spread_table(
    first: str, second: str, rows: Mapping[str, tuple[str, Summary]]
) -> tuple[str, ...]:
    """Lay out a table of summaries: name, description, quartiles, how many are not finite."""
    header = (first, second, *(name.rjust(NUMBER_WIDTH) for name in _NUMBERS.values()), "NaN")
    cells = [
        (name, text, *(short(getattr(row, field)) for field in _NUMBERS), f"{row.not_finite:,}")
        for name, (text, row) in rows.items()
    ]
    return aligned(header, cells)


def without_nan(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN, which JSON does not have, by None."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in facts.items()
    }


def short(number: float, form: str = ".3g") -> str:
    """Format a number for the right of a column; a dash for NaN."""
    return ("-" if math.isnan(number) else f"{number:{form}}").rjust(NUMBER_WIDTH)


def binned(values: NDArray[Any], n_bins: int) -> tuple[list[int], list[float]]:
    """Count the finite numbers in bins of equal width over their range; return counts and edges."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    room = max(abs(low), 1.0) / 2 if low == high else 0.0
    counts, edges = np.histogram(finite, bins=n_bins, range=(low - room, high + room))
    return counts.tolist(), edges.tolist()


def histogram(
    counts: Sequence[int], edges: Sequence[float], *, width: int, encoding: str
) -> Iterator[str]:
    """Yield a line per bin: where it begins, how many it holds, and a bar; none for no numbers.

    ``width`` is that of a line; bars are of blocks where the terminal's encoding has them.
    """
    if not any(counts):
        return
    digits = len(f"{max(counts):,}")
    room = max(1, width - NUMBER_WIDTH - digits - 4)
    blocks = bool(_FULL.encode(encoding, "ignore"))
    places = 1 - math.floor(math.log10(edges[1] - edges[0]))  # two digits of the width of a bin
    for count, edge in zip(counts, edges, strict=False):  # the last edge begins no bin
        begins = f"{edge:.{places}f}" if 0 <= places <= 5 else f"{edge:.3g}"
        length = count / max(counts) * room  # rounded up, so that a single image shows
        whole, eighths = divmod(math.ceil(length * 8), 8)
        bar = _FULL * whole + _EIGHTHS[eighths] if blocks else _ASCII * math.ceil(length)
        yield f"{begins:>{NUMBER_WIDTH}}  {count:>{digits},}  {bar}".rstrip()
