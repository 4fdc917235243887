"""How torch's threads wait for each other, which OpenMP reads but once: when torch is imported."""

import os
import sys

POLICY = "OMP_WAIT_POLICY"


def use_passive_wait() -> None:
    """Leave the cores to others, such as a decoder, between two parallel regions of torch.

    By default threads of libgomp wait busily for milliseconds, which is faster where nobody else
    has work, and takes the cores from whoever has. Nothing happens where torch is imported already,
    or where the user has chosen (``OMP_WAIT_POLICY``, OpenMP 5.0 section 6.7).
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(POLICY, "PASSIVE")
