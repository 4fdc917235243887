"""Commits of a scoring: weights, raw accumulators, the scores so far, and what was left out."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.artifact import Work
from engine.generations import Generations
from engine.store import SCORES_NAME, write_columns
from shards.atomic import json_bytes, write_atomically
from shards.errors import DataError

if TYPE_CHECKING:
    from engine.training import Trainer
    from kernels.dynamics import Dynamics

DYNAMICS_NAME, STATE_NAME = "dynamics.safetensors", "state.json"
UNDECODABLE_NAME = "undecodable.json"
"""In a scores artifact, if there are any: samples that could not be decoded, by id, and why."""


def undecodable_of(scores: Path) -> dict[int, str]:
    """What a scores artifact lists as undecodable."""
    listed = scores / UNDECODABLE_NAME
    there = json.loads(listed.read_bytes()) if listed.is_file() else {}
    return {int(sample): str(reason) for sample, reason in there.items()}


def commit(
    work: Work,
    epoch: int,
    trainer: "Trainer",
    dynamics: "Dynamics",
    undecodable: Mapping[int, str],
) -> None:
    """Commit weights, momentum, raw accumulators and the scores as of ``epoch`` finished epochs.

    Raises:
        DataError: A score is not finite: the training diverged.
    """
    from safetensors.torch import save_file

    scores = dynamics.scores()
    shown = np.ones(dynamics.n_samples, np.bool_)
    shown[list(undecodable)] = False
    for name, values in scores.items():
        odd = np.flatnonzero(shown & ~np.isfinite(values))
        if odd.size:
            # What was committed leads here again, and the remedy is another configuration.
            shutil.rmtree(work.scratch)
            raise DataError(
                f"score {name} of sample {odd[0]} is {values[odd[0]]} after epoch {epoch}: the "
                "training diverged; use a smaller --lr"
            )
    missed = int((shown & (scores["visits"] != epoch)).sum())
    if missed:
        raise DataError(f"{missed} images were not seen once per epoch; run `coreset verify` first")

    def write(directory: Path) -> None:
        trainer.save(directory)
        save_file({"rows": dynamics.rows.cpu()}, directory / DYNAMICS_NAME)
        write_columns(directory / SCORES_NAME, scores, {"epochs": epoch, **work.provenance.binds})
        state = {"epoch": epoch, "steps": trainer.steps, "undecodable": named(undecodable)}
        write_atomically(directory / STATE_NAME, json_bytes(state))

    Generations(work.scratch).commit(epoch, write)
    work.meter.checkpoint(work.scratch)


def named(undecodable: Mapping[int, str]) -> dict[str, str]:
    """Samples and reasons as JSON has them, by id."""
    return {str(sample): undecodable[sample] for sample in sorted(undecodable)}


def resume(
    generations: Generations, trainer: "Trainer", dynamics: "Dynamics"
) -> tuple[int, dict[int, str]]:
    """Load the last commit, if any; returns the finished epochs and what they left out."""
    from safetensors.torch import load_file

    newest = generations.latest()
    if newest is None:
        return 0, {}
    epoch, directory = newest
    state = json.loads((directory / STATE_NAME).read_bytes())
    trainer.load(directory, state["steps"])
    dynamics.load_rows(load_file(directory / DYNAMICS_NAME)["rows"])
    return epoch, {int(sample): reason for sample, reason in state["undecodable"].items()}
