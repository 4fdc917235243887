"""Processes of one torchrun job: who this one is, and how all of them go on or stop together.

One process is the same code with nobody to ask: torch is imported only where there are several.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from coreset.shards.errors import CoresetError, InterruptedRunError, MachineError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_FAILED = -1


@dataclass(frozen=True, slots=True)
class Distributed:
    """This process among ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    def run_on_all(self, part: Callable[[], int]) -> list[int]:
        """Do this rank's part of a step, then wait for the others.

        Args:
            part: Returns a number that all ranks get to know, 0 or more.

        Returns:
            The numbers of all ranks.

        Raises:
            MachineError: Another rank failed, or is gone.
        """
        try:
            said = part()
        except InterruptedRunError:
            raise
        except (CoresetError, OSError):
            self._gather(_FAILED)
            raise
        words = self._gather(said)
        if _FAILED in words:
            raise MachineError(
                f"rank {words.index(_FAILED)} of {self.world} failed; its own message says why; "
                "mend that, and the same command continues"
            )
        return words

    def wait(self) -> list[int]:
        """Take part in a step in which this rank has nothing to do."""
        return self.run_on_all(int)

    def any(self, mine: bool) -> bool:  # noqa: FBT001 - a vote
        """Whether any rank says so; every rank has to ask."""
        return 1 in self.run_on_all(lambda: int(mine))

    def all_reduce(self, tensor: "Tensor") -> None:
        """Replace a tensor, on every rank, by its sum over all of them.

        Raises:
            MachineError: Another rank is gone.
        """
        if self.world > 1:
            from torch import distributed

            with _told_if_gone(self.world):
                distributed.all_reduce(tensor)

    def all_gather_text(self, mine: str) -> list[str]:
        """The texts that all ranks give, in their order."""
        if self.world == 1:
            return [mine]
        import torch
        from torch import distributed

        data = mine.encode()
        longest = max(self.run_on_all(lambda: len(data)))
        padded = torch.tensor(list(data.ljust(longest)), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.world)]
        with _told_if_gone(self.world):
            distributed.all_gather(found, padded)
        return [bytes(one.tolist()).decode().rstrip() for one in found]

    def _gather(self, word: int) -> list[int]:
        if self.world == 1:
            return [word]
        import torch
        from torch import distributed

        words = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with _told_if_gone(self.world):
            distributed.all_gather(words, torch.tensor([word]))
        return [int(one) for one in words]


ALONE = Distributed()


@contextmanager
def _told_if_gone(world: int) -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        raise MachineError(
            f"another of the {world} ranks is gone; the same command continues"
        ) from error


@contextmanager
def join() -> Generator[Distributed]:
    """Join the other processes of a torchrun job (``RANK``, ``WORLD_SIZE``); alone without one.

    Raises:
        UsageError: The variables contradict each other.
    """
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
    # Words go through the host, tensors of a GPU from GPU to GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Distributed(rank, world)
    finally:
        distributed.destroy_process_group()


def _number(name: str, alone: int) -> int:
    text = os.environ.get(name, str(alone))
    if not text.isdecimal():
        raise UsageError(f"{name} must be a number, got {text!r}; start by torchrun or unset it")
    return int(text)
