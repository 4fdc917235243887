"""Best share of images for the JPEG engines of a GPU, measured once and kept for later runs."""

from pathlib import Path
from typing import Any

from coreset.kernels.jit import cache_folder
from coreset.shards.format.files import json_bytes, parse, write_atomically

DEFAULT_LOAD = 0.65
"""DALI's."""
_NAME = "hw_decoder_load.json"


def best_load(gpu: str) -> float:
    """Return the share that `coreset doctor` found the fastest on a GPU of this name, or DALI's."""
    load = _known_loads().get(gpu)
    return load if isinstance(load, float) and 0 <= load <= 1 else DEFAULT_LOAD


def keep_best_load(gpu: str, load: float) -> Path:
    """Write down the fastest share for GPUs of this name; returns the file."""
    path = cache_folder() / _NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json_bytes(_known_loads() | {gpu: load}))
    return path


def _known_loads() -> dict[str, Any]:
    try:
        return parse((cache_folder() / _NAME).read_bytes())
    except (OSError, ValueError):
        return {}
