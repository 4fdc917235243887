"""What a scoring keeps: generations of its state while it runs, and the scores it ends with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.store import SCORES_NAME, write_columns
from coreset.shards.errors import DataError, StoreError
from coreset.shards.format.documents import parse
from coreset.shards.format.files import json_bytes, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from coreset.engine.training.trainer import Trainer

STATE_NAME = "state.json"
PREDICTED, PREDICTED_OOF, ISSUE_OOF = "predicted", "predicted_oof", "label_issue_oof"
"""Columns beside the scores: predicted classes, and whether a label is taken for wrong."""
UNDECODABLE_NAME = "undecodable.json"
"""In a scores artifact, if there are any: samples that could not be decoded, by id, and why."""


def undecodable_of(scores: Path) -> dict[int, str]:
    """Read what a scores artifact lists as undecodable.

    Raises:
        StoreError: The list is damaged.
    """
    listed = scores / UNDECODABLE_NAME
    try:
        there = parse(listed.read_bytes()) if listed.is_file() else {}
        lost = {int(sample): str(reason) for sample, reason in there.items()}
    except (OSError, ValueError) as error:
        raise StoreError(f"{listed} cannot be read ({error}); score again") from error
    if lost and not 0 <= min(lost) <= max(lost) < 1 << 62:
        raise StoreError(f"{listed} cannot be read (a sample id is out of range); score again")
    return lost


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a training stands: the next batch, and the samples that were left out so far."""

    epoch: int = 0
    """Ended epochs."""
    batch: int = 0
    """Batches of the next epoch that were trained on already."""
    steps: int = 0
    undecodable: dict[int, str] = field(default_factory=dict[int, str])

    def document(self) -> dict[str, Any]:
        """As JSON keeps it."""
        lost = named(self.undecodable)
        return {"epoch": self.epoch, "batch": self.batch, "steps": self.steps, "undecodable": lost}

    @staticmethod
    def read(directory: Path) -> "Position":
        """Where the training of a generation stood."""
        found = json.loads((directory / STATE_NAME).read_bytes())
        lost = {int(sample): reason for sample, reason in found.pop("undecodable").items()}
        return Position(**found, undecodable=lost)


def commit(
    scratch: Path,
    position: Position,
    trainer: "Trainer",
    parts: Mapping[str, Mapping[str, "Tensor"]],
) -> None:
    """Commit weights, momentum and accumulators (by file name) as of ``position``."""
    from safetensors.torch import save_file

    from coreset.engine.runtime.device import give_back_memory

    def write(directory: Path) -> None:
        trainer.save(directory)
        for name, state in parts.items():
            save_file(dict(state), directory / _file_of(name))
        write_atomically(directory / STATE_NAME, json_bytes(position.document()))

    give_back_memory()  # what a batch needs; safetensors copies everything first
    Checkpoints(scratch).commit(position.steps, write)
    give_back_memory()


def last_commit(scratch: Path) -> tuple[Position, Path] | None:
    """The newest commit and where it lies, if there is any."""
    newest = Checkpoints(scratch).latest()
    return newest and (Position.read(newest[1]), newest[1])


def part_of(directory: Path, name: str) -> dict[str, "Tensor"]:
    """An accumulator of a commit."""
    from safetensors.torch import load_file

    return load_file(directory / _file_of(name))


def finish(
    scratch: Path,
    position: Position,
    trainer: "Trainer",
    scores: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
) -> None:
    """Commit what a scoring leaves: the scores and the weights of the proxy.

    Raises:
        DataError: A score of a sample that was decoded in every epoch is not finite.
    """
    from coreset.engine.runtime.device import give_back_memory

    give_back_memory()  # of the last look
    shown = np.ones(len(scores["visits"]), np.bool_)
    shown[list(position.undecodable)] = False
    for name, values in scores.items():
        odd = np.flatnonzero(shown & ~np.isfinite(values))
        if odd.size:
            raise DataError(
                f"score {name} of sample {odd[0]} is {values[odd[0]]} after {position.epoch} "
                "epochs: the training diverged; use a smaller --lr"
            )

    def write(directory: Path) -> None:
        trainer.save_weights(directory)
        write_columns(directory / SCORES_NAME, scores, {"epochs": position.epoch, **attributes})

    if position.undecodable:
        write_atomically(scratch / UNDECODABLE_NAME, json_bytes(named(position.undecodable)))
    Checkpoints(scratch).commit(position.steps + 1, write)
    is_finished(scratch)


def is_finished(scratch: Path) -> bool:
    """Whether `finish` got as far as its commit; then nothing else is left there."""
    from coreset.engine.models.feature_rows import FEATURE_ROWS_NAME

    generations = Checkpoints(scratch)
    newest = generations.latest()
    if newest is None or not (newest[1] / SCORES_NAME).exists():
        return False
    generations.finish()
    (scratch / FEATURE_ROWS_NAME).unlink(missing_ok=True)
    return True


def named(undecodable: Mapping[int, str]) -> dict[str, str]:
    """Samples and reasons as JSON has them, by id."""
    return {str(sample): undecodable[sample] for sample in sorted(undecodable)}


def _file_of(part: str) -> str:
    return f"{part}.safetensors"
