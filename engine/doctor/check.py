"""Checks of a device on a few hundred samples of a packed data set."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from coreset.engine.data.geometry import Geometry
from coreset.engine.data.images import DecodedImages, load_into_memory
from coreset.engine.data.stream import ImageStream
from coreset.engine.doctor.machine import Check, Verdict
from coreset.engine.runtime.device import memory_shortage
from coreset.shards.errors import DataError, InterruptedRunError, UsageError
from coreset.shards.format.dataset import Dataset

SIZE = 224
"""Side in pixels of decoded images and of what networks see: the default of `embed` and `score`."""
BATCHES = {"cpu": 64, "cuda": 256}
"""Images per step of the networks: a CPU takes seconds for a batch of the GPU's."""
REPORT = "report it with the output of --json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A device and the samples that it is tried on."""

    dataset: Dataset
    device: torch.device
    ids: NDArray[np.int64]
    """Samples, shape (n,)."""
    seconds: float
    """How long each speed is measured."""

    @property
    def batch(self) -> int:
        """Images per step of the networks."""
        return min(BATCHES[self.device.type], self.ids.size)

    def source(
        self, geometry: Geometry, ids: NDArray[np.int64] | None = None, decoder: str = "auto"
    ) -> ImageStream:
        """Samples (all of ``ids`` by default) decoded for the device as stages decode them."""
        chosen = self.ids if ids is None else ids
        device = str(self.device)
        return ImageStream(self.dataset, geometry, decoder=decoder, device=device, ids=chosen)

    def pixels(self, geometry: Geometry) -> DecodedImages:
        """One batch of decoded images that lies on the device."""
        with self.source(geometry, self.ids[: self.batch]) as source:
            return load_into_memory(source)


def context_of(dataset: Dataset, device: torch.device, *, samples: int, seconds: float) -> Context:
    """Take up to ``samples`` samples, spread evenly over the data set.

    Raises:
        UsageError: The data set has no sample.
    """
    n = len(dataset)
    if n == 0:
        raise UsageError(f"{dataset.path} has no samples; name a data set that has some")
    ids = np.arange(min(n, samples), dtype=np.int64) * n // min(n, samples)
    return Context(dataset=dataset, device=device, ids=ids, seconds=seconds)


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """One thing to find out about a context."""

    name: str
    """Name of its failure, should it break down before it finds anything."""
    run: "ProofFunction"

    def findings(self, context: Context) -> Iterator[Check]:
        """Yield what is found; whatever is raised becomes the last finding.

        Raises:
            InterruptedRunError: Nothing is found out any more.
        """
        try:
            yield from self.run(context)
        except InterruptedRunError:
            raise
        except Exception as error:  # noqa: BLE001 - a broken driver or package may raise anything
            message = " ".join(str(error).split()) or type(error).__name__
            remedy = REPORT
            if isinstance(error, DataError):
                remedy = f"run `coreset verify {context.dataset.path}`"
            elif (shortage := memory_shortage(error)) is not None:
                message, remedy = shortage[0], "end other programs on it, or use fewer --samples"
            facts = {"error": type(error).__name__}
            yield Check(self.name, message, Verdict.FAIL, remedy, facts)


ProofFunction: TypeAlias = Callable[[Context], Iterator[Check]]


def result(
    name: str, value: str, *, holds: bool, facts: Mapping[str, Any], remedy: str = REPORT
) -> Check:
    """A finding that is ok or a failure."""
    if holds:
        return Check(name, value, facts=facts)
    return Check(name, value, Verdict.FAIL, remedy, facts)
