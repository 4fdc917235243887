"""State of one row per sample and one of scratch: out to the host, and back from there."""

from collections.abc import Mapping

from torch import Tensor


def saved(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU without the last row, which is scratch."""
    return {name: one[:-1].to("cpu", copy=True) for name, one in rows.items()}


def restore(rows: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy what `saved` returned back into ``rows``; other names in ``state`` are left alone.

    Raises:
        ValueError: A name, shape or type is not that of ``rows``.
    """
    for name, one in rows.items():
        found, expected = state.get(name), (one.dtype, (len(one) - 1, *one.shape[1:]))
        if found is None or (found.dtype, tuple(found.shape)) != expected:
            what = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
            raise ValueError(f"{name} must be {expected[0]} {expected[1]}, got {what}")
        one[:-1].copy_(found)
