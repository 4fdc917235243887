"""Operations that make the host wait for a device, counted while something runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"})
INDEXING = frozenset({"index", "index_put", "index_put_"})


class HostReads(TorchDispatchMode):
    """Names of the operations in its block that need a value, or a size, from the device.

    They are reads of one number (``item``, ``float``, ``if tensor``), sizes that depend on values
    (``nonzero``, boolean masks) and copies to the host. On a CPU no copy is one, but the rest shows
    there as well; tensors on ``meta``, which have no values, show the copies too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator overload
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the operator returns
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if (
            name in WAITING
            or (name in INDEXING and _has_mask(args))
            or (_leaves_the_device(args) and _is_on_the_host(result))
        ):
            self.found.append(name)
        return result


def _has_mask(args: Sequence[Any]) -> bool:
    """Whether an index is a boolean mask, whose number of true values decides a size."""
    return any(one is not None and one.dtype in {torch.bool, torch.uint8} for one in args[1])


def _leaves_the_device(args: Sequence[Any]) -> bool:
    return any(isinstance(one, torch.Tensor) and one.device.type != "cpu" for one in args)


def _is_on_the_host(result: object) -> bool:
    return isinstance(result, torch.Tensor) and result.device.type == "cpu"
