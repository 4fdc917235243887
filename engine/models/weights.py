"""Reader of weights from ``.safetensors`` and ``.pth`` files.

Checkpoints of training scripts hold the state dict among other things, and wrappers of a network
put prefixes before its names; both are removed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from coreset.shards.errors import UsageError
from coreset.shards.format.files import sha256_of_file

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Keys of state dicts in checkpoints, averaged weights first, as timm reads them."""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""Prefixes that data-parallel, compiled and enclosing networks put before names."""
_PREFIX = re.compile("|".join(f"^{re.escape(prefix)}" for prefix in PREFIXES))
_MOST_NESTED = 4
# Options of the training script in timm's checkpoints, read as a plain record.
_HARMLESS = ((SimpleNamespace, "argparse.Namespace"),)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, also one of ``WRAPPERS`` in a checkpoint.

    A ``.pth`` file is a pickle: it is read with ``weights_only=True``, which refuses everything but
    tensors and plain values, and this is the only place that does so.

    Raises:
        UsageError: The file does not exist, cannot be read, or holds no flat dictionary of tensors.
    """
    _require_file(path)
    try:
        state = _state_of(path)
    except Exception as error:  # damaged files end in any error of zip, pickle and safetensors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if code := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds {code[1]}, which only code could make; save its state dict alone"
        raise UsageError(
            f"weights {path} cannot be read as tensors ({reason}); name a .safetensors or .pth file"
        ) from error
    tensors = _unwrapped(state)
    if isinstance(tensors, Mapping) and all(
        isinstance(value, Tensor) for value in tensors.values()
    ):
        return {str(name): value for name, value in tensors.items()}
    names = ", ".join(map(repr, list(state)[:5])) if isinstance(state, Mapping) else "none"
    raise UsageError(
        f"weights {path} holds no flat dictionary of tensors, itself or as {', '.join(WRAPPERS)} "
        f"(its names: {names}); save the state dict alone, as safetensors"
    )


def _unwrapped(state: object) -> object:
    for _ in range(_MOST_NESTED):  # a hostile file may hold itself
        if isinstance(state, Mapping):
            inner = (state.get(name) for name in WRAPPERS)
            state = next((value for value in inner if isinstance(value, Mapping)), state)
    return state


def _state_of(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with torch.serialization.safe_globals(list(_HARMLESS)):
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - see above


def by_own_names(network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove ``PREFIXES`` from the names of a state dict until most are names of the network.

    Names of the network stay: its own may begin with a prefix too.
    """
    own = network.state_dict().keys()
    best = shorter = state
    for _ in range(_MOST_NESTED):
        shorter = {_PREFIX.sub("", name): tensor for name, tensor in shorter.items()}
        if len(own & shorter.keys()) > len(own & best.keys()):
            best = shorter
    return best


def load_by_name(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load weights by name; layers that the network lacks, such as a head, are skipped.

    Batch norm's count of batches may be missing, as it is in files from before torch 0.4.1 (among
    them torchvision's ImageNet weights); evaluation does not use it.

    Raises:
        UsageError: A tensor of the network is missing or has another shape; names the first one.
    """
    counts = {name for name in network.state_dict() if name.endswith(".num_batches_tracked")}
    own = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name in state or name not in counts
    }
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            saved = tuple(state[name].shape) if name in state else "nothing"
            raise UsageError(
                f"weights {source} has {saved} for {name}, the network needs {tuple(tensor.shape)};"
                " name the file of this very backbone"
            )
    network.load_state_dict({name: state[name] for name in own}, strict=False)


def load_by_position(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load weights that have the network's order but other names.

    Raises:
        UsageError: The number of tensors or a shape differs.
    """
    own = network.state_dict()
    shapes = [tuple(tensor.shape) for tensor in own.values()]
    if shapes != [tuple(tensor.shape) for tensor in state.values()][: len(shapes)]:
        raise UsageError(f"weights {source} does not fit this backbone; name the file of this one")
    network.load_state_dict(dict(zip(own, state.values(), strict=False)))


def weights_digest(path: Path) -> str:
    """Return the sha256 of a weights file, a part of the key under which features are cached.

    Raises:
        UsageError: The file does not exist.
    """
    _require_file(path)
    return sha256_of_file(path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"weights {path} does not exist; name a .safetensors or .pth file")
