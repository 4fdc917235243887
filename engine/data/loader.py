"""Loader: batches of a packed data set for anybody's training loop, resumable anywhere."""

import os
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from coreset.engine.data.decoders import DecoderName, Normalisation, choose_decoder, decoder_reason
from coreset.engine.data.decoders.threads import warm_up
from coreset.engine.data.geometry import Crops, Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.reader import Ids, Images, open_images
from coreset.engine.data.stream import Batch, ImageStream
from coreset.engine.runtime.distributed import Distributed
from coreset.shards.errors import UsageError

_WORKERS = (
    "a loader decodes in threads of the process that opened it and cannot be handed to another; "
    "leave num_workers at 0 and give the threads' number as workers of the loader"
)


class Loader(IterableDataset[Batch], AbstractContextManager["Loader"]):
    """Batches of a packed data set; an iterable and a context manager.

    ``for batch in loader`` hands over the rest of the current epoch, in an order that depends on
    the options alone; the next ``for`` goes on with the next epoch. Over all ranks every sample
    comes exactly once an epoch. There is one position: a new iteration ends the one under way, and
    one that is left early goes on at the next batch. Threads read and decode ahead.

    ``DataLoader(loader)``, without workers, hands over the same batches to code that wants one.
    """

    def __init__(
        self,
        data: Images,
        *,
        batch: int = 256,
        size: int = 224,
        resize: int | None = 256,
        crops: Crops | None = None,
        normalisation: Normalisation | None = None,
        shuffle: bool = True,
        block: int = 0,
        seed: int = 0,
        pad: bool = False,
        ids: Ids | None = None,
        rank: int | None = None,
        world: int | None = None,
        decoder: str = "auto",
        exact: bool = False,
        device: str = "auto",
        workers: int = 0,
        skip_damaged: bool = True,
    ) -> None:
        """Open a packed data set and compile what its decoder needs.

        Args:
            data: Directory of a packed data set, or an open condensed set.
            batch: Images per batch and rank; the last batch may be short.
            size: Pixels of the square images.
            resize: Short side in pixels before the central crop; None squashes the whole image.
            crops: Random resized crops instead, other ones every epoch.
            normalisation: Hand over float32, normalised, instead of uint8.
            shuffle: A new order every epoch instead of that of ``ids``.
            block: Shuffle blocks of so many neighbours, for disks that cannot seek; 0: globally.
            seed: Of order and crops.
            pad: Fill every batch up with rows of id and label -1: all ranks have equally many.
            ids: Samples to read, int64 of shape (n,); None means all.
            rank: This process among ``world``; None asks ``torch.distributed``.
            world: Processes.
            decoder: One of ``DecoderName``; `decoder` tells what was picked.
            exact: Pixels equal to the reference, several times slower.
            device: Of the batches: auto (the current GPU if there is one), cpu, cuda or cuda:N.
            workers: Decoding threads; 0 means one per core.
            skip_damaged: List up to ten or 0.1 % of damaged samples in `undecodable`, and go on.

        Raises:
            UsageError: An option is out of range, or ``data`` is not a packed data set.
            ManifestError: The data set is damaged.
            MachineError: The device or decoder is not available.
        """
        self.dataset, chosen = open_images(data, ids)
        ranks = _ranks(rank, world)
        self._order = BatchOrder(
            batch=batch, seed=seed, shuffle=shuffle, block=block, pad=pad,
            crops=crops, rank=ranks.rank, world=ranks.world,
        )  # fmt: skip
        self._ids_digest = "all" if chosen is None else sha256(chosen.tobytes()).hexdigest()
        self._epoch, self._next_batch = 0, 0
        self._under_way: weakref.ref[Generator[Batch]] | None = None
        self.device = _device(device)
        picked = choose_decoder(decoder, str(self.device), exact=exact)
        self.decoder = decoder_reason(picked, str(self.device))
        """Name of the decoder that was picked, and why."""
        self._stream = ImageStream(
            self.dataset, Geometry(size, resize), ids=chosen, device=str(self.device),
            decoder=decoder, exact=exact, workers=workers, normalisation=normalisation,
            skip_damaged=skip_damaged,
        )  # fmt: skip
        self._n_batches = -(-self._order.positions(len(self._stream)).size // batch)
        if picked in {DecoderName.TURBO, DecoderName.FAST}:
            warm_up(floats=normalisation is not None)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or sent to another process, such as a worker of a ``DataLoader``."""
        raise UsageError(_WORKERS)

    def __len__(self) -> int:
        """Count the batches of a whole epoch of this rank."""
        return self._n_batches

    def __iter__(self) -> Iterator[Batch]:
        """Hand over the rest of the current epoch.

        Raises:
            UsageError: In a worker of a ``DataLoader``, or another forked process.
            ManifestError: (While iterating) samples cannot be read or decoded; they are named.
        """
        if get_worker_info() is not None:
            raise UsageError(_WORKERS)
        self._go_to(self._epoch, self._next_batch)
        rest = self._rest_of_epoch()
        # Weakly, so that an iteration that is left early ends when its loop does.
        self._under_way = weakref.ref(rest)
        return rest

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        return self.dataset.classes

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0."""
        return self._epoch

    @property
    def undecodable(self) -> dict[int, str]:
        """Samples left out so far, by id, and why; also those found while reading ahead."""
        return dict(self._stream.undecodable)

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch, as loops written for torch's ``DistributedSampler`` do."""
        if epoch != self._epoch:
            self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, for JSON; ranks in step have equal ones."""
        return {**self._fixed_state(), "epoch": self._epoch, "next_batch": self._next_batch}

    def _fixed_state(self) -> dict[str, Any]:
        """Return all that decides which sample comes when; only an equal state can be loaded."""
        order = ("batch", "seed", "shuffle", "block", "pad", "world")
        return {
            "version": 1,
            "data_set": self.dataset.manifest.identity,
            "ids": self._ids_digest,
            "n": len(self._stream),
            **{name: getattr(self._order, name) for name in order},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called; the remaining batches are the same.

        Raises:
            UsageError: The state is that of another order: another data set, seed, batch size ...
        """
        for name, value in self._fixed_state().items():
            if state.get(name) != value:
                raise UsageError(
                    f"{name} is {state.get(name)} in the state, {value} in this loader; make the "
                    "loader with the options that it had when the state was saved"
                )
        place = state.get("epoch"), state.get("next_batch")
        if not all(isinstance(number, int) and number >= 0 for number in place):
            raise UsageError(
                f"epoch and next_batch must be numbers from 0 on, got {place[0]} and {place[1]}; "
                "the state is not one of a loader"
            )
        self._go_to(int(state["epoch"]), int(state["next_batch"]))

    def close(self) -> None:
        """End an iteration under way and all threads, and close the shards."""
        self._go_to(self._epoch, self._next_batch)
        self._stream.close()

    def _go_to(self, epoch: int, next_batch: int) -> None:
        if self._under_way is not None and (rest := self._under_way()) is not None:
            rest.close()
        self._under_way = None
        self._epoch, self._next_batch = epoch, next_batch

    def _rest_of_epoch(self) -> Generator[Batch]:
        epoch, first = self._epoch, self._next_batch
        order = replace(self._order, epoch=epoch, start=first)
        for number, batch in enumerate(self._stream.epoch(order, empty=True), first + 1):
            # Before the batch is handed over: a state saved while it is in use is past it.
            ended = number >= self._n_batches
            self._epoch, self._next_batch = (epoch + 1, 0) if ended else (epoch, number)
            if len(batch.ids):
                yield batch
        self._epoch, self._next_batch = epoch + 1, 0


def _joined(batches: Sequence[Batch], **_: object) -> Batch:
    """Join batches for a ``DataLoader``, which takes one at a time unless told otherwise."""
    if len(batches) == 1:
        return batches[0]
    return Batch(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


# The documented way to tell a ``DataLoader`` about a type of one's own.
default_collate_fn_map[Batch] = _joined


def _ranks(rank: int | None, world: int | None) -> Distributed:
    if rank is not None and world is not None:
        return Distributed(rank, world)
    if rank is not None or world is not None:
        raise UsageError(
            f"rank and world go together, got {rank} and {world}; give both, or neither"
        )
    if distributed.is_available() and distributed.is_initialized():
        return Distributed(distributed.get_rank(), distributed.get_world_size())
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"WORLD_SIZE is {processes}, but torch.distributed is not initialised, so that every "
            "process would read everything; initialise it first, or give rank and world"
        )
    return Distributed()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {name}") from error
    if device == torch.device("cuda") and torch.cuda.is_available():
        # By number: which GPU is current is a thread's own, and batches are made in other threads.
        return torch.device("cuda", torch.cuda.current_device())
    return device
