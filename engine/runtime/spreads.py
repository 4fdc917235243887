"""How numbers are spread: quartiles as rows of a table, and a histogram of bars, for a terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.runtime.tables import aligned

NUMBER_WIDTH = 9
"""Characters of a number of three digits, -1.23e-05 included."""
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_FULL, _ASCII = "█", "#"
_HEADER = ("min", "25 %", "median", "75 %", "max", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Quartiles and mean of the finite ones of some numbers; NaN where there are none."""

    n: int
    """All numbers."""
    not_finite: int
    """Those among them that are NaN or infinite."""
    low: float
    lower_quartile: float
    median: float
    upper_quartile: float
    high: float
    mean: float

    @staticmethod
    def of(values: NDArray[Any]) -> "Summary":
        """Sum some numbers up; quartiles by linear interpolation."""
        finite = values[np.isfinite(values)].astype(np.float64)
        quartiles = np.percentile(finite, (0, 25, 50, 75, 100)) if finite.size else [math.nan] * 5
        low, lower, median, upper, high = (float(one) for one in quartiles)
        return Summary(
            n=values.size,
            not_finite=values.size - finite.size,
            low=low,
            lower_quartile=lower,
            median=median,
            upper_quartile=upper,
            high=high,
            mean=float(finite.mean()) if finite.size else math.nan,
        )

    def facts(self) -> dict[str, Any]:
        """For JSON, by field."""
        return without_nan(asdict(self))

    def cells(self) -> tuple[str, ...]:
        """Minimum, quartiles, maximum, mean, and how many were not finite."""
        numbers = (
            self.low,
            self.lower_quartile,
            self.median,
            self.upper_quartile,
            self.high,
            self.mean,
        )
        return (*map(short, numbers), f"{self.not_finite:,}")


def spread_table(
    first: str, second: str, rows: Mapping[str, tuple[str, Summary]]
) -> tuple[str, ...]:
    """Lines of a table: a name, something said of it, and the spread of its numbers."""
    header = (first, second, *(name.rjust(NUMBER_WIDTH) for name in _HEADER), "NaN")
    return aligned(header, [(name, said, *one.cells()) for name, (said, one) in rows.items()])


def without_nan(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with None for NaN, which JSON does not have."""
    return {
        name: None if isinstance(fact, float) and math.isnan(fact) else fact
        for name, fact in facts.items()
    }


def short(number: float) -> str:
    """Three digits, to the right of a column; a dash for NaN."""
    return ("-" if math.isnan(number) else f"{number:.3g}").rjust(NUMBER_WIDTH)


def decimals(number: float) -> str:
    """Four decimals, to the right of a column; a dash for NaN."""
    return ("-" if math.isnan(number) else f"{number:.4f}").rjust(NUMBER_WIDTH)


def binned(values: NDArray[Any], n_bins: int) -> tuple[list[int], list[float]]:
    """Count the finite ones of some numbers in bins of equal width over their range.

    Returns:
        Counts, and the edges of the bins, one more; equal numbers lie in the middle bin of some.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    room = max(abs(low), 1.0) / 2 if low == high else 0.0
    counts, edges = np.histogram(finite, bins=n_bins, range=(low - room, high + room))
    return counts.tolist(), edges.tolist()


def histogram(
    counts: Sequence[int], edges: Sequence[float], *, width: int, encoding: str
) -> Iterator[str]:
    """Yield a line per bin: where it begins, how many it holds, and a bar; none for no numbers.

    Args:
        counts: Numbers per bin.
        edges: Edges of the bins, one more.
        width: Characters of a line.
        encoding: Of the terminal: bars are of blocks where it has them, else of ``#``.
    """
    if not any(counts):
        return
    digits = len(f"{max(counts):,}")
    room = max(1, width - NUMBER_WIDTH - digits - 4)
    blocks = _encodes(encoding, _FULL)
    places = 1 - math.floor(math.log10(edges[1] - edges[0]))  # two digits of the width of a bin
    for count, edge in zip(counts, edges, strict=False):  # the last edge begins no bin
        begins = f"{edge:.{places}f}" if 0 <= places <= 5 else f"{edge:.3g}"
        drawn = bar(count / max(counts) * room, blocks=blocks)
        yield f"{begins:>{NUMBER_WIDTH}}  {count:>{digits},}  {drawn}".rstrip()


def bar(length: float, *, blocks: bool) -> str:
    """A bar of so many characters; rounded up, so that a single image shows."""
    if not blocks:
        return _ASCII * math.ceil(length)
    whole, eighths = divmod(math.ceil(length * 8), 8)
    return _FULL * whole + _EIGHTHS[eighths]


def _encodes(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
