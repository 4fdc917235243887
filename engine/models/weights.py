"""Reading of weights files: tensors alone, whatever a training script wrapped them in."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coreset.shards.errors import UsageError

USUAL_FILES = "a .safetensors or .pth file"
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Keys of state dicts in checkpoints, averaged weights first, as timm reads them."""
# What data-parallel, compiled and enclosing networks put before names.
_PREFIX = re.compile(r"^(module|_orig_mod|model|backbone)\.")
_MOST_NESTED = 4


def read_weights(path: Path, wanted: str = USUAL_FILES) -> dict[str, Tensor]:
    """Read a state dict, also one of ``WRAPPERS`` in a checkpoint, or refuse the file.

    The refusal tells what is ``wanted`` instead.
    """
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            # A pickle, of which only tensors and plain values are read, here alone. timm's hold the
            # options of the training script, which become a plain record.
            plain = torch.serialization.safe_globals([(SimpleNamespace, "argparse.Namespace")])
            with plain, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they tell of is refused below
                state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - see above
    except Exception as error:  # damaged files end in any error of zip, pickle and safetensors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if code := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds {code[1]}, which only code could make; save its state dict alone"
        if "TorchScript" in reason:  # torch advises to run its code
            reason = "it is a TorchScript archive, which holds code"
        elif "weights_only" in reason:  # likewise
            reason = "it holds more than tensors, which only code could make"
        raise UsageError(
            f"weights {path} cannot be read as tensors ({reason}); name {wanted}"
        ) from error
    tensors = state
    for _ in range(_MOST_NESTED):  # a hostile file may hold itself
        if isinstance(tensors, Mapping):
            inner = (tensors.get(name) for name in WRAPPERS)
            tensors = next((value for value in inner if isinstance(value, Mapping)), tensors)
    if isinstance(tensors, Mapping) and all(isinstance(one, Tensor) for one in tensors.values()):
        return {str(name): value for name, value in tensors.items()}
    names = ", ".join(map(repr, list(state)[:5])) if isinstance(state, Mapping) else "none"
    raise UsageError(
        f"weights {path} holds no flat dictionary of tensors, itself or as {', '.join(WRAPPERS)} "
        f"(its names: {names}); save the state dict alone, as safetensors"
    )


def by_own_names(network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove prefixes from names until most are those of the network, which may begin alike."""
    own = network.state_dict().keys()
    best = shorter = state
    for _ in range(_MOST_NESTED):
        shorter = {_PREFIX.sub("", name): tensor for name, tensor in shorter.items()}
        if len(own & shorter.keys()) > len(own & best.keys()):
            best = shorter
    return best


def load_by_name(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load weights by name; layers that the network lacks, such as a head, are skipped."""
    # Evaluation needs no count of batches; torchvision's weights are from before there was one.
    own = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name in state or not name.endswith(".num_batches_tracked")
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
    """Load weights that have the network's order but other names."""
    own = network.state_dict()
    shapes = [tuple(tensor.shape) for tensor in own.values()]
    if shapes != [tuple(tensor.shape) for tensor in state.values()][: len(shapes)]:
        raise UsageError(f"weights {source} does not fit this backbone; name the file of this one")
    network.load_state_dict(dict(zip(own, state.values(), strict=False)))
