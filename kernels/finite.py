"""The first batch in which something is not finite, kept on the device until somebody asks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class FirstNonFinite:
    """Remembers which samples made the first batch with a NaN or an infinity, and its number.

    One bad update makes every later number bad, so only the first batch tells anything. Watching
    does not wait for the device; `found` does.
    """

    def __init__(self, batch: int, device: torch.device | str) -> None:
        """Start with nothing found; ``batch`` is the most rows of a batch."""
        self._number = torch.full((), -1, dtype=torch.int64, device=device)
        self._ids = torch.full((batch,), -1, dtype=torch.int64, device=device)

    def watch(self, values_b: Float[Tensor, " b"], ids_b: Int[Tensor, " b"], number: int) -> None:
        """Look at a number per sample of batch ``number``; padding (a negative id) is skipped."""
        bad_b = ~torch.isfinite(values_b) & (ids_b >= 0)
        first = bad_b.any() & (self._number < 0)
        self._number.copy_(torch.where(first, number, self._number))
        kept = self._ids[: len(ids_b)]
        kept.copy_(torch.where(first, torch.where(bad_b, ids_b, -1), kept))

    def found(self) -> tuple[int, list[int]] | None:
        """Number of the first bad batch and the samples that were bad in it; waits."""
        number = int(self._number)
        return None if number < 0 else (number, [i for i in self._ids.tolist() if i >= 0])
