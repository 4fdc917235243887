"""Wait policy of OpenMP's threads, which OpenMP reads once: when torch is imported."""

import os
import sys

POLICY = "OMP_WAIT_POLICY"


def use_passive_wait(device: str) -> None:
    """Let torch's threads sleep between two parallel regions, unless work runs on a GPU alone.

    By default threads of libgomp wait busily for milliseconds and so take the cores from decoders
    and from other programs. Nothing happens where torch is imported already, or where the user has
    chosen (``OMP_WAIT_POLICY``, OpenMP 5.0 section 6.7).

    Args:
        device: Device that was asked for: auto, cpu or cuda.
    """
    if device != "cuda" and "torch" not in sys.modules:
        os.environ.setdefault(POLICY, "PASSIVE")
