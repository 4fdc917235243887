"""Processes of one torchrun job: who this one is, and how all of them go on or stop together.

One process is the same code with nobody to ask: torch is imported only where there are several.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from coreset.shards.errors import CoresetError, InterruptedRunError, MachineError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_groups: list[Any] = []
"""Groups of this process for words on the host: an impatient and a patient one."""
TIMEOUT = "CORESET_RANK_TIMEOUT"
"""Environment variable: seconds without a sign, in a training, after which a rank is hung."""


@dataclass(frozen=True, slots=True)
class Distributed:
    """This process among ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that does what only one may do."""
        return self.rank == 0

    def gather(self, mine: T, *, failed: bool = False, patient: bool = False) -> list[T]:
        """Return what all ranks give, in their order; every rank has to call this.

        A ``patient`` one waits for work of hours, others take a rank without a sign for hung.
        """
        if self.world == 1:
            return [mine]
        from torch import distributed

        words: list[tuple[bool, T]] = [(failed, mine)] * self.world
        with self.watch():
            distributed.all_gather_object(words, (failed, mine), group=_groups[patient])
        failures = [rank for rank, (rank_failed, _) in enumerate(words) if rank_failed]
        if failures and not failed:
            raise MachineError(
                f"rank {failures[0]} of {self.world} failed; its own message says why; "
                "mend that, and the same command continues"
            )
        return [given for _, given in words]

    def run_on_all(self, part: Callable[[], T], *, patient: bool = False) -> T:
        """Do this rank's part of a step, wait for the others, and return this rank's result."""
        result = self._do(part, patient=patient)
        self.gather(None, patient=patient)
        return result

    def run_on_main(self, part: Callable[[], T], *, patient: bool = False) -> T:
        """Do a step on the main rank alone; the others get a copy of its result, or its failure."""
        if not self.is_main:
            return cast("T", self.gather(None, patient=patient)[0])
        result = self._do(part, patient=patient)
        self.gather(result, patient=patient)
        return result

    def run_main_first(self, part: Callable[[], T]) -> T:
        """Do a step on the main rank, then on the others, which find what it left on the disk."""
        if not self.is_main:
            self.gather(None, patient=True)
        result = self.run_on_all(part, patient=True)
        if self.is_main:
            self.gather(None, patient=True)
        return result

    def all_reduce(self, tensor: "Tensor") -> None:
        """Replace a tensor, on every rank, by its sum over all of them."""
        if self.world > 1:
            from torch import distributed

            with self.watch():
                distributed.all_reduce(tensor)

    @contextmanager
    def watch(self) -> Generator[None]:
        """Name another rank that is gone, or hung, where work in the block waits for it.

        Raises:
            InterruptedRunError: No sign came in time (NCCL on a GPU, gloo on the host).
            MachineError: The connection broke.
        """
        try:
            yield
        except RuntimeError as error:
            said = str(error).lower()
            if self.world == 1 or not any(name in said for name in ("gloo", "nccl")):
                raise
            if "timed out" in said or "timeout" in said:
                raise InterruptedRunError(
                    f"another of the {self.world} ranks gave no sign for {_seconds()} s "
                    f"({TIMEOUT}); end it, and the same command continues from the last commit"
                ) from error
            raise MachineError(
                f"another of the {self.world} ranks is gone; the same command continues"
            ) from error

    def _do(self, part: Callable[[], T], *, patient: bool) -> T:
        """Do a part; if it fails, so do the other ranks when they gather."""
        try:
            return part()
        except InterruptedRunError:
            raise
        except (CoresetError, OSError):
            self.gather(None, failed=True, patient=patient)
            raise


ALONE = Distributed()


@contextmanager
def join() -> Generator[Distributed]:
    """Join the other processes of a torchrun job (``RANK``, ``WORLD_SIZE``); alone without one."""
    rank, world = (_number(name, alone) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < world:
        raise UsageError(
            f"RANK must be in [0, WORLD_SIZE = {world}), got {rank}; start by torchrun"
        )
    if world == 1:
        yield Distributed()
        return
    import torch
    from torch import distributed

    # DistributedDataParallel imports it. If that happens once there is a group, default arguments
    # somewhere in it keep the group, and gloo's threads are alive when the interpreter ends: one
    # process in some hundred was aborted then.
    import_module("torch._dynamo")
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0))
    # Words go through the host, tensors of a GPU from GPU to GPU. NCCL's own watchdog, which can
    # only kill the process, comes after the host has noticed and said so.
    on_gpu, seconds = torch.cuda.is_available(), _seconds()
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=2 * seconds if on_gpu else seconds),
    )
    times = timedelta(seconds=seconds), timedelta(days=7)
    try:
        _groups[:] = [distributed.new_group(backend="gloo", timeout=time) for time in times]
        yield Distributed(rank, world)
    finally:
        _groups.clear()  # or their threads outlive the job
        distributed.destroy_process_group()


def _seconds() -> int:
    return max(1, _number(TIMEOUT, 600))


def _number(name: str, alone: int) -> int:
    text = os.environ.get(name, str(alone))
    if not text.isdecimal():
        raise UsageError(f"{name} must be a number, got {text!r}; start by torchrun or unset it")
    return int(text)
