"""The last look of a trained proxy at every image as it is: final loss, entropy and prediction."""

import numpy as np
import torch
from numpy.typing import NDArray

from engine.device import half_precision
from engine.ledger import Meter
from engine.progress import progress
from engine.proxy import Proxy
from engine.ranks import Ranks
from engine.scoring import PREDICTED
from engine.training import Trainer
from kernels.margins import presentations


@torch.inference_mode()
def final_scores(
    proxy: Proxy, trainer: Trainer, n: int, *, n_classes: int, ranks: Ranks, meter: Meter
) -> dict[str, NDArray[np.float32] | NDArray[np.int32]]:
    """Evaluate the proxy on all images without augmentation.

    CCS takes loss and entropy so (``generate_importance_score.py``), with 1e-10 added to the
    probabilities inside the logarithm and, for CIFAR, without the normalisation that it trained
    with; here the images are what training saw, less the augmentation, and nothing is added.

    Args:
        proxy: What was trained.
        trainer: Its network and device.
        n: Samples of the data set.
        n_classes: Its classes.
        ranks: The processes that share the images; all get all results.
        meter: Counts the images.

    Returns:
        ``loss_final`` and ``entropy_final`` in nats, float32 of shape (n,), NaN for samples that
        could not be decoded, and ``predicted``, the class of the largest logit, int32, -1 for them.
    """
    found = torch.zeros((n, 4), device=trainer.device)  # zero where another process sees the sample
    trainer.network.eval()
    with progress("score, final", n) as bar:
        for inputs, labels, ids in proxy.originals():
            with half_precision(trainer.device):
                logits = trainer.network(inputs)[:, :n_classes].float()
            presented = presentations(logits, labels)
            columns = (presented.loss, presented.entropy, logits.argmax(1).float())
            found[ids] = torch.stack((torch.ones_like(presented.loss), *columns), dim=1)
            meter.images += len(ids)
            bar.advance(min(len(ids) * ranks.world, n - bar.done))
    ranks.add_up(found)
    seen, loss, entropy, predicted = found.cpu().numpy().T
    absent = np.where(seen > 0, np.float32(0), np.float32(np.nan))
    return {
        "loss_final": loss + absent,
        "entropy_final": entropy + absent,
        PREDICTED: np.where(seen > 0, predicted, -1).astype(np.int32),
    }
