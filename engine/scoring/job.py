"""Scoring by all processes of a job: the main one keeps the artifact, the others train along."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.store import FEATURES_NAME, SCORES_NAME, write_columns
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.data.image_cache import KEPT_NAME
from coreset.engine.data.order import fixed_share
from coreset.engine.models.feature_rows import (
    FEATURE_ROWS_NAME,
    StandardRows,
    UnitRows,
    feature_rows,
)
from coreset.engine.models.features import cached_features
from coreset.engine.runtime.device import give_back_memory, half_precision, precision_note
from coreset.engine.runtime.progress import progress
from coreset.engine.scoring.accumulators import TrainingContext
from coreset.engine.scoring.feature_proxies import concept_proxy, linear_proxy
from coreset.engine.scoring.proxy import (
    Proxy,
    cached_images,
    convolutional_proxy,
    training_images,
)
from coreset.engine.scoring.pseudo_labels import ASSIGNED_NAME, kept_pseudo_labels
from coreset.engine.scoring.recipes import FEATURE_PROXIES
from coreset.engine.scoring.run import ScoringRun
from coreset.engine.scoring.score_table import ASSIGNED, PREDICTED, UNDECODABLE_NAME
from coreset.engine.scoring.setup import GIVEN, Setup
from coreset.engine.scoring.untrained import commit_untrained_scores
from coreset.engine.training.compilation import compilation, compile_where_it_pays
from coreset.engine.training.trainer import (
    DivergedError,
    Trainer,
    adam,
    cosine_schedule,
    replica_of,
    sgd,
)
from coreset.kernels.logits import per_sample_stats
from coreset.shards.errors import CoresetError, DataError, UsageError
from coreset.shards.format.files import json_bytes, write_atomically


def make_scores(setup: Setup, out: Path) -> ArtifactWriter:
    """Make the scores artifact ``out`` by all processes, from the last checkpoint on."""
    ranks = setup.ranks
    with ExitStack() as stack:

        def start() -> ArtifactWriter:
            inputs = setup.inputs()
            writer = create_artifact(
                out,
                setup.provenance(out, inputs),
                inputs=list(inputs.values()),
                device=str(setup.device),
                resumable=True,
            )
            return stack.enter_context(writer)

        work = ranks.run_on_main(start, patient=True)  # makes features that are missing
        if ranks.run_on_main(lambda: not (work.done or _is_finished(work.scratch))):
            work.meter.bytes_read = setup.bytes_read()
            work.meter.notes["ranks"] = ranks.world
            _fill(work, setup)
    return work


def _fill(work: ArtifactWriter, setup: Setup) -> None:
    is_main = setup.ranks.is_main
    try:
        if setup.recipe.proxy == "neighbours":
            setup.ranks.run_on_main(lambda: commit_untrained_scores(work, setup), patient=True)
            return
        run, scores = _train(setup, work.scratch, work.meter)
    except (UsageError, DivergedError, MemoryError, RuntimeError) as error:
        # Only another configuration helps: the checkpoints would lead here again. They are kept
        # where memory ran out, for another program may have taken it.
        hopeless = isinstance(error, CoresetError)
        if is_main and (hopeless or Checkpoints(work.scratch).latest() is None):
            shutil.rmtree(work.scratch)
        raise
    if is_main:
        _finish(run, scores, work.provenance.binds)


def _train(setup: Setup, scratch: Path, meter: Meter) -> tuple[ScoringRun, dict[str, NDArray[Any]]]:
    """Train from the last checkpoint in ``scratch``, or from the start, to the scores."""
    if setup.options.labels != GIVEN:
        assigned = setup.ranks.run_main_first(lambda: kept_pseudo_labels(setup, scratch))
        setup = replace(setup, assigned=assigned)
    proxy = setup.ranks.run_main_first(lambda: _proxy(setup, scratch))
    context = TrainingContext(setup=setup, proxy=proxy, scratch=scratch, meter=meter)
    if proxy.streamed:
        meter.notes["streamed"] = True
    run = ScoringRun(context, _trainer(context))
    with setup.ranks.watch(), compilation(setup.options.compile):
        scores = run.train()
    if setup.options.final:
        scores |= _final_scores(context, run.trainer)
        run.share_undecodable()
    if setup.assigned is not None:
        scores[ASSIGNED] = setup.assigned.astype(np.int32)
    return run, scores


def _proxy(setup: Setup, scratch: Path) -> Proxy:
    recipe = setup.recipe
    if recipe.proxy in FEATURE_PROXIES:
        return _proxy_of_features(setup, scratch)
    dataset, device, pixels = setup.dataset, setup.device, setup.options.pixels
    n, seed, ranks = len(dataset), setup.options.seed, setup.ranks
    share, folder = None, scratch
    if ranks.world > 1:  # a share is kept in no file
        share, folder = fixed_share(n, seed=seed, rank=ranks.rank, world=ranks.world), None
    if pixels is not None:
        images = cached_images(pixels, dataset, recipe.size, device, share)
    else:
        decoding = setup.features
        images = training_images(dataset, recipe, device, decoding, share=share, scratch=folder)
    return convolutional_proxy(
        images, setup.n_classes, recipe, seed=seed, device=device, total=n, ranks=ranks
    )


def _proxy_of_features(setup: Setup, scratch: Path) -> Proxy:
    recipe, n_classes, labels = setup.recipe, setup.n_classes, setup.labels
    store = cached_features(setup.dataset, setup.features) / FEATURES_NAME
    place: dict[str, Any] = {"scratch": scratch, "write": setup.ranks.is_main}
    training: dict[str, Any] = {"batch": recipe.batch, "seed": setup.options.seed}
    training |= {"device": setup.device, "ranks": setup.ranks}
    if setup.bank is None:
        features = feature_rows(StandardRows, store, setup.device, **place)
        n_folds = setup.options.folds or 0
        return linear_proxy(features, labels, n_classes, n_folds=n_folds, **training)
    rows, embeddings = feature_rows(UnitRows, store, setup.device, **place), setup.bank.embeddings
    training["scaled"] = recipe.scaling == "standardised"
    return concept_proxy(rows, labels, n_classes, embeddings=embeddings, **training)


def _trainer(context: TrainingContext) -> Trainer:
    setup, network = context.setup, context.proxy.network
    recipe, n = setup.recipe, len(setup.dataset)
    per_epoch = -(-n // (recipe.batch * setup.ranks.world))
    schedule = cosine_schedule(
        recipe.lr, recipe.min_lr, recipe.epochs * per_epoch, round(recipe.warmup * per_epoch)
    )
    make_optimiser = adam if recipe.optimiser == "adam" else sgd
    optimiser = make_optimiser(network, lr=recipe.lr, weight_decay=recipe.weight_decay)
    note = compile_where_it_pays(
        network,
        setup.options.compile,
        setup.device,
        image_passes=recipe.epochs * n if recipe.proxy == "resnet18" else 0,
        size=recipe.size,
        n_sizes=len(set(map(recipe.side_at, range(recipe.epochs)))),
    )
    context.meter.notes["note"] = "; ".join(filter(None, (note, precision_note(setup.device))))
    replica = replica_of(network, setup.device) if setup.ranks.world > 1 else None
    return Trainer(network, optimiser, schedule, setup.device, replica=replica)


@torch.inference_mode()
def _final_scores(context: TrainingContext, trainer: Trainer) -> dict[str, NDArray[Any]]:
    """Evaluate the proxy on all images without augmentation, in nats.

    As CCS does (``generate_importance_score.py``), but nothing is added inside the logarithm. What
    could not be decoded has NaN scores and the prediction -1.
    """
    ranks, n, n_classes = context.setup.ranks, len(context.setup.dataset), context.setup.n_classes
    columns = torch.zeros((n, 4), device=trainer.device)  # zero where another process sees it
    trainer.network.eval()
    with progress("score, final", n) as bar:
        for inputs, labels, ids in context.proxy.originals():
            with half_precision(trainer.device), trainer.whole_batches.of(inputs):
                logits = trainer.network(inputs)[:, :n_classes].float()
            stats, predicted = per_sample_stats(logits, labels), logits.argmax(1).float()
            seen = torch.ones_like(stats.loss)
            columns[ids] = torch.stack((seen, stats.loss, stats.entropy, predicted), dim=1)
            context.meter.images += len(ids)
            bar.advance(min(len(ids) * ranks.world, n - bar.done))
    ranks.all_reduce(columns)
    seen, loss, entropy, predicted = columns.cpu().numpy().T
    absent = np.where(seen > 0, np.float32(0), np.float32(np.nan))
    return {
        "loss_final": loss + absent,
        "entropy_final": entropy + absent,
        PREDICTED: np.where(seen > 0, predicted, -1).astype(np.int32),
    }


def _finish(
    run: ScoringRun, scores: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Commit the scores and the weights of the proxy, if every score that must be is finite."""
    give_back_memory()  # of the final evaluation
    decodable = np.ones(run.n, np.bool_)
    decodable[list(run.proxy.undecodable)] = False
    for name, values in scores.items():
        odd = np.flatnonzero(decodable & ~np.isfinite(values))
        if odd.size:
            raise DataError(
                f"score {name} of sample {odd[0]} is {values[odd[0]]} after {run.epochs} "
                "epochs: the training diverged; use a smaller --lr"
            )

    def write(directory: Path) -> None:
        run.trainer.save_weights(directory)
        write_columns(directory / SCORES_NAME, scores, {"epochs": run.epochs, **attributes})

    if run.proxy.undecodable:
        run.meter.notes["undecodable"] = len(run.proxy.undecodable)
        write_atomically(run.scratch / UNDECODABLE_NAME, json_bytes(run.undecodable))
    Checkpoints(run.scratch).commit(run.trainer.steps + 1, write)
    _is_finished(run.scratch)


def _is_finished(scratch: Path) -> bool:
    """Test whether the scores are committed; if so, remove what only a resume needs."""
    checkpoints = Checkpoints(scratch)
    newest = checkpoints.latest()
    if newest is None or not (newest[1] / SCORES_NAME).exists():
        return False
    checkpoints.finish()
    for name in (FEATURE_ROWS_NAME, ASSIGNED_NAME):
        (scratch / name).unlink(missing_ok=True)
    shutil.rmtree(scratch / KEPT_NAME, ignore_errors=True)
    return True
