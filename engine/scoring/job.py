"""Scoring by all processes of a job: the main one keeps the artifact, the others train along."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.scoring.checkpoint import finish, is_finished, last_commit
from coreset.engine.scoring.run import DivergedError, ScoringRun, final_scores
from coreset.engine.scoring.setup import Setup
from coreset.shards.errors import CoresetError, UsageError


def make_scores(
    setup: Setup,
    out: Path,
    data: Path,
    provenance_of: Callable[[Mapping[str, Path]], Provenance],
    *,
    final: bool,
) -> ArtifactWriter:
    """Make the scores artifact ``out`` by all processes, from the last checkpoint on.

    Args:
        setup: What to train.
        out: The artifact.
        data: Packed data set.
        provenance_of: Describes the artifact by its inputs, which are paths by role.
        final: Whether to evaluate the trained proxy once more.
    """
    ranks = setup.ranks
    inputs = {"data": data} | ranks.run_on_main(setup.inputs)
    with ExitStack() as stack:

        def start() -> ArtifactWriter:
            writer = create_artifact(
                out,
                provenance_of(inputs),
                inputs=list(inputs.values()),
                device=str(setup.device),
                resumable=True,
            )
            return stack.enter_context(writer)

        work = ranks.run_on_main(start)
        if ranks.run_on_main(lambda: not (work.done or is_finished(work.scratch))):
            work.meter.bytes_read = setup.bytes_read()
            _fill(work, setup, final=final)
    return work


def _fill(work: ArtifactWriter, setup: Setup, *, final: bool) -> None:
    if not setup.ranks.is_main:
        _train(setup, work.scratch, work.meter, final=final)
        return
    try:
        run, scores = _train(setup, work.scratch, work.meter, final=final)
    except (UsageError, DivergedError, MemoryError, RuntimeError) as error:
        # Only another configuration helps: the checkpoints would lead here again. They are kept
        # where memory ran out, for another program may have taken it.
        if isinstance(error, CoresetError) or last_commit(work.scratch) is None:
            shutil.rmtree(work.scratch)
        raise
    if run.position.undecodable:
        work.meter.notes["undecodable"] = len(run.position.undecodable)
    finish(work.scratch, run.position, run.trainer, scores, work.provenance.binds)


def _train(
    setup: Setup, scratch: Path, meter: Meter, *, final: bool
) -> tuple[ScoringRun, dict[str, NDArray[Any]]]:
    run = setup.begin(scratch, meter)
    run.run()
    scores = run.scores()
    if final:
        n, n_classes = len(setup.dataset), run.n_classes
        scores |= final_scores(
            run.proxy, run.trainer, n, n_classes=n_classes, ranks=setup.ranks, meter=meter
        )
        run.share_undecodable()
    return run, scores
