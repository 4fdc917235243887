"""What a scoring keeps beside its sums on request, on one process: every margin, and TDDS."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.artifacts.store import ROWS_PER_SCORE_CHUNK, RowWriter
from coreset.engine.data.images import device_bytes
from coreset.engine.runtime.progress import say
from coreset.kernels.margins import SampleStats
from coreset.kernels.tdds import WINDOW_EPOCHS, Tdds, state_bytes
from coreset.shards.errors import MachineError, UsageError

MARGINS_NAME = "margins.zarr"
"""In a scores artifact, if it was asked for: float16 of shape (epochs, n)."""
FEWEST_EPOCHS = 3
"""With TDDS: two epochs have one change, which is its own mean."""


class MarginRecord:
    """The probability margin of every sample in every epoch, NaN where it was not presented."""

    name = "margins"

    def __init__(self, n_samples: int, epochs: int, scratch: Path, device: torch.device) -> None:
        """Continue the record in ``scratch``, or begin one (2 bytes a sample and epoch)."""
        path = scratch / MARGINS_NAME
        chunks = (1, min(ROWS_PER_SCORE_CHUNK, n_samples))
        self._store = RowWriter(
            path, epochs, n_samples, {}, name=self.name, chunks=chunks, resume=path.exists()
        )
        self._margins = torch.full((n_samples,), torch.nan, dtype=torch.float16, device=device)

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to do: what is left of the last epoch was cleared at its end."""

    def update(self, logits: Tensor, presented: SampleStats, ids: Tensor) -> None:  # noqa: ARG002 - one of several
        """Keep the margins of a batch."""
        self._margins[ids] = presented.probability_margin.half()

    def end_epoch(self, epoch: int) -> None:
        """Write the epoch's row; written again with the same values if the epoch is repeated."""
        self._store.write(epoch, self._margins.cpu().numpy()[None])
        self._margins.fill_(torch.nan)

    def state(self) -> dict[str, Tensor]:
        """The margins of the epoch under way."""
        return {self.name: self._margins.to("cpu", copy=True)}

    def load_state(self, state: Mapping[str, Tensor], epochs: int) -> None:  # noqa: ARG002 - one of several
        """Continue the epoch under way."""
        self._margins.copy_(state[self.name])

    def scores(self) -> dict[str, NDArray[Any]]:
        """None: the record lies beside the scores."""
        return {}


def require_room_for_tdds(
    n_samples: int, n_classes: int, epochs: int, device: torch.device
) -> None:
    """Say what memory TDDS takes, before anything else is done.

    Raises:
        UsageError: Too few epochs for any change to differ from their mean.
        MachineError: The device has no room.
    """
    if epochs < FEWEST_EPOCHS:
        raise UsageError(f"epochs must be at least {FEWEST_EPOCHS} with --tdds, got {epochs}")
    needed = state_bytes(n_samples, n_classes, min(WINDOW_EPOCHS, epochs))
    available = device_bytes(device)
    fact = f"tdds keeps {needed / 1e9:.2f} GB on {device}"
    if needed > available:
        raise MachineError(
            f"{fact}, which has {available / 1e9:.2f} GB available; leave out --tdds"
        )
    say(f"{fact}, and writes them at every commit")


class TddsScore:
    """`coreset.kernels.tdds.Tdds` as part of a scoring."""

    name = "tdds"

    def __init__(
        self, n_samples: int, n_classes: int, epochs: int, device: torch.device, *, compiled: bool
    ) -> None:
        """Begin, where ``require_room_for_tdds`` found room."""
        window = min(WINDOW_EPOCHS, epochs)
        self._tdds = Tdds(n_samples, n_classes, device, window=window, compiled=compiled)

    def begin_epoch(self, epoch: int) -> None:
        """See ``Tdds.begin_epoch``."""
        self._tdds.begin_epoch(epoch)

    def update(self, logits: Tensor, presented: SampleStats, ids: Tensor) -> None:  # noqa: ARG002 - one of several
        """See ``Tdds.update``."""
        self._tdds.update(logits, ids)

    def end_epoch(self, epoch: int) -> None:
        """See ``Tdds.end_epoch``."""
        self._tdds.end_epoch(epoch)

    def state(self) -> dict[str, Tensor]:
        """See ``Tdds.state``."""
        return self._tdds.state()

    def load_state(self, state: Mapping[str, Tensor], epochs: int) -> None:
        """See ``Tdds.load_state``."""
        self._tdds.load_state(state, epochs)

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """See ``Tdds.scores``."""
        return self._tdds.scores()
