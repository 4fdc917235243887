"""Checkpoints of a scoring run, and the scores that it publishes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
        document = parse(listed.read_bytes()) if listed.is_file() else {}
        undecodable = {int(sample): str(reason) for sample, reason in document.items()}
    except (OSError, ValueError) as error:
        raise StoreError(f"{listed} cannot be read ({error}); score again") from error
    if undecodable and not 0 <= min(undecodable) <= max(undecodable) < 1 << 62:
        raise StoreError(f"{listed} cannot be read (a sample id is out of range); score again")
    return undecodable


@dataclass(slots=True, kw_only=True)
class Position:
    """Progress of a training: the next batch, and the samples that could not be decoded so far."""

    epoch: int = 0
    """Ended epochs."""
    batch: int = 0
    """Trained batches of the epoch under way."""
    steps: int = 0
    undecodable: dict[int, str] = field(default_factory=dict[int, str])

    def document(self) -> dict[str, Any]:
        """Return the JSON document."""
        return asdict(self) | {"undecodable": named(self.undecodable)}

    @staticmethod
    def read(directory: Path) -> "Position":
        """Read the position of a checkpoint."""
        document = json.loads((directory / STATE_NAME).read_bytes())
        lost = {int(sample): reason for sample, reason in document["undecodable"].items()}
        return Position(**document | {"undecodable": lost})


def commit(
    scratch: Path,
    position: Position,
    trainer: "Trainer",
    accumulators: Mapping[str, Mapping[str, "Tensor"]],
) -> None:
    """Commit weights, momentum and the states of accumulators, by name, as of ``position``."""
    from safetensors.torch import save_file

    from coreset.engine.runtime.device import give_back_memory

    def write(directory: Path) -> None:
        trainer.save(directory)
        for name, state in accumulators.items():
            save_file(dict(state), directory / f"{name}.safetensors")
        write_atomically(directory / STATE_NAME, json_bytes(position.document()))

    give_back_memory()  # of the batches; safetensors copies everything first
    Checkpoints(scratch).commit(position.steps, write)
    give_back_memory()


def last_commit(scratch: Path) -> tuple[Position, Path] | None:
    """Return the newest checkpoint and its directory, if there is any."""
    newest = Checkpoints(scratch).latest()
    return newest and (Position.read(newest[1]), newest[1])


def accumulator_state(directory: Path, name: str) -> dict[str, "Tensor"]:
    """Read the state of an accumulator from a checkpoint."""
    from safetensors.torch import load_file

    return load_file(directory / f"{name}.safetensors")


def finish(
    scratch: Path,
    position: Position,
    trainer: "Trainer",
    scores: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
) -> None:
    """Commit the results of a scoring: the scores and the weights of the proxy.

    Raises:
        DataError: A score of a sample that was decoded in every epoch is not finite.
    """
    from coreset.engine.runtime.device import give_back_memory

    give_back_memory()  # of the final evaluation
    decodable = np.ones(len(scores["visits"]), np.bool_)
    decodable[list(position.undecodable)] = False
    for name, values in scores.items():
        odd = np.flatnonzero(decodable & ~np.isfinite(values))
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
    """Test whether `finish` committed; if so, remove everything else."""
    from coreset.engine.models.feature_rows import FEATURE_ROWS_NAME

    checkpoints = Checkpoints(scratch)
    newest = checkpoints.latest()
    if newest is None or not (newest[1] / SCORES_NAME).exists():
        return False
    checkpoints.finish()
    (scratch / FEATURE_ROWS_NAME).unlink(missing_ok=True)
    return True


def named(undecodable: Mapping[int, str]) -> dict[str, str]:
    """Return the JSON form of undecodable samples, by id."""
    return {str(sample): undecodable[sample] for sample in sorted(undecodable)}
