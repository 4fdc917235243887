"""NVIDIA DALI: hardware JPEG decoding on a GPU, and the same graphs on a CPU.

DALI only decodes: its own reader shuffles within a buffer only, gives no sample ids, and reads a
cut tar as a shorter epoch.
"""

import logging
import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.decoders import EncodedBatch, Normalisation, UndecodableImagesError
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.decoders.tuning import DEFAULT_LOAD, best_load
from coreset.engine.data.geometry import Geometry, Pixels
from coreset.engine.data.reader import LazyBytes
from coreset.engine.runtime.device import memory_shortage
from coreset.kernels.augment import normalised
from coreset.kernels.jpeg.headers import addresses_of, as_arrays, plain_jpegs
from coreset.shards.errors import MachineError, ManifestError

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

logger = logging.getLogger(__name__)

GPU_SETTINGS: dict[str, Any] = {
    "jpeg_fancy_upsampling": True,  # of chroma, as libjpeg and so Pillow; nvJPEG repeats it
    "preallocate_width_hint": 1024,
    "preallocate_height_hint": 1024,
}
"""JPEG engines have memory from the start for so many pixels, 3 MB an image: 2 % of ImageNet's are
larger, which costs an allocation."""
MOST_IN_USE = 2
"""Batches whose stored bytes a GPU may still be reading."""


def define_pipeline(
    size: int,
    decode_device: Literal["cpu", "mixed"],
    *,
    batch: int,
    workers: int,
    device_id: int | None,
    crops: bool = False,
    bicubic: bool = False,
    normalisation: Normalisation | None = None,
    hw_load: float = DEFAULT_LOAD,
) -> "Pipeline":
    """Define a graph, not built: stored bytes and a region of each image in, a square out.

    Without ``crops`` the region is one of the resize, whose filter sees what lies around it. With
    ``crops`` it is one of the decoder, in whole pixels, as in torchvision, which crops first.
    """
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

    pixels = DALIDataType.INT32 if crops else DALIDataType.FLOAT
    on_gpu = decode_device == "mixed"
    settings: dict[str, Any] = GPU_SETTINGS | {"hw_decoder_load": hw_load} if on_gpu else {}
    # Depth 1 still overlaps: the next batch is read meanwhile, and comes in the order of a stream.
    pipeline = Pipeline(batch, workers, device_id, prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1, no_copy=True)
        start = fn.external_source(name="region_start", dtype=pixels, ndim=1)
        end = fn.external_source(name="region_end", dtype=pixels, ndim=1)
        cut: dict[str, Any] = {"start": start, "end": end, "axis_names": "HW"} if crops else {}
        part: dict[str, Any] = {} if crops else {"roi_start": start, "roi_end": end}
        decode = fn.decoders.image_slice if crops else fn.decoders.image
        rgb = {"output_type": DALIImageType.RGB, "adjust_orientation": False}
        decoded: Any = decode(encoded, device=decode_device, **rgb, **cut, **settings)
        kind = DALIInterpType.INTERP_CUBIC if bicubic else DALIInterpType.INTERP_LINEAR
        square: Any = fn.resize(decoded, size=[size] * 2, interp_type=kind, antialias=True, **part)
        if normalisation is not None:
            mean, std = 255 * np.array([normalisation.mean, normalisation.std])
            square = fn.crop_mirror_normalize(square, mean=mean.tolist(), std=std.tolist())
        pipeline.set_outputs(square)
    return pipeline


class DaliDecoder:
    """Decodes with DALI on ``device``; plain JPEGs there, everything else through Pillow."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        device: str,
        workers: int,
        normalisation: Normalisation | None = None,
    ) -> None:
        """Prepare to decode on ``device``: ``cpu``, ``cuda`` or ``cuda:N``."""
        try:
            import_module("nvidia.dali")
        except ImportError as error:
            raise MachineError(
                f"decoder dali needs the package nvidia-dali-cuda130 ({error}); use --decoder turbo"
            ) from error
        self._geometry, self._normalisation = geometry, normalisation
        # A tensor knows the number of its GPU, which DALI needs, where `device` says `cuda`.
        self._device = torch.empty(0, device=device).device
        self._workers = workers
        self._batch = 1
        # By whether batches have crops; each is built when the first such batch comes.
        self._pipelines: dict[bool, Pipeline] = {}
        self._lock = threading.Lock()
        self._memory = BatchMemory(self._device)
        self._in_use: deque[tuple[Any, list[Pixels]]] = deque()

    def read_ahead(self, batch: EncodedBatch) -> EncodedBatch:
        """Read the stored bytes into one piece of memory, from which DALI takes them."""
        if isinstance(batch.data, LazyBytes):
            with suppress(ManifestError):  # `decode` will meet it again
                return replace(batch, data=batch.data.read_together(self._memory))
        return batch

    def decode(self, batch: EncodedBatch) -> Tensor:
        """Decode a batch as `Decoder.decode` says; thread safe, one batch at a time."""
        stored = batch.data
        if isinstance(stored, LazyBytes):
            stored = stored.read_together(self._memory)
        data = as_arrays(stored)
        lengths = np.array([file.size for file in data])
        is_plain = plain_jpegs(addresses_of(data), lengths, batch.widths, batch.heights)
        images = self._empty(len(batch))
        with self._lock:
            refused = self._decode_plain(batch, data, np.flatnonzero(is_plain).tolist(), images)
        rest = sorted([*np.flatnonzero(~is_plain).tolist(), *refused])
        if reasons := self._decode_rest(batch, rest, images):
            raise UndecodableImagesError(reasons, images)
        return images

    def close(self) -> None:
        """Delete the pipelines: an idle one keeps its threads and memory."""
        with self._lock:
            self._pipelines.clear()
            self._in_use.clear()

    def _empty(self, n: int) -> Tensor:
        shape = (n, 3, self._geometry.size, self._geometry.size)
        if self._normalisation is not None:
            return torch.empty(shape, device=self._device)
        layout = torch.channels_last
        return torch.empty(shape, dtype=torch.uint8, device=self._device, memory_format=layout)

    def _decode_plain(
        self, batch: EncodedBatch, data: list[Pixels], positions: list[int], images: Tensor
    ) -> list[int]:
        """Fill the rows ``positions``; return those that DALI refuses.

        One bad image makes DALI lose the batch: it is halved until the bad ones are alone.
        """
        if not positions:
            return []
        crops = batch.crops is not None
        pipeline = self._ready_pipeline(len(positions), crops=crops)
        try:
            self._run(pipeline, batch, data, positions, images)
        except RuntimeError as error:
            del self._pipelines[crops]  # not to be used after an error
            if len(positions) == 1:
                if memory_shortage(error) is not None:  # not the image's fault, nor Pillow's work
                    raise
                logger.debug("DALI refuses an image: %s", error)
                return positions
            middle = len(positions) // 2
            left = self._decode_plain(batch, data, positions[:middle], images)
            return left + self._decode_plain(batch, data, positions[middle:], images)
        return []

    def _ready_pipeline(self, n: int, *, crops: bool) -> "Pipeline":
        if n > self._batch:
            self._batch = n
            self._pipelines.clear()
        if crops not in self._pipelines:
            gpu = self._device.type == "cuda"
            pipeline = define_pipeline(
                self._geometry.size,
                "mixed" if gpu else "cpu",
                batch=self._batch,
                workers=self._workers,
                device_id=self._device.index if gpu else None,
                crops=crops,
                bicubic=self._geometry.bicubic,
                normalisation=self._normalisation,
                hw_load=best_load(torch.cuda.get_device_name(self._device)) if gpu else 0.0,
            )
            try:
                pipeline.build()
            except RuntimeError as error:
                if memory_shortage(error) is not None:
                    raise
                reason = " ".join(str(error).split())
                raise MachineError(
                    f"DALI cannot start on {self._device} ({reason}); update the driver, or use "
                    "--decoder turbo"
                ) from error
            self._pipelines[crops] = pipeline
        return self._pipelines[crops]

    def _run(
        self,
        pipeline: "Pipeline",
        batch: EncodedBatch,
        data: list[Pixels],
        positions: list[int],
        images: Tensor,
    ) -> None:
        """Fill rows of ``images`` in the order of the current stream, without waiting for it."""
        crops = None if batch.crops is None else batch.crops[positions]
        regions = self._geometry.regions(batch.widths[positions], batch.heights[positions], crops)
        regions = regions.astype(np.float32 if crops is None else np.int32)
        streams = torch.get_device_module(self._device)
        stream = streams.current_stream(self._device) if images.is_cuda else None
        taken = [data[position] for position in positions]
        starts, ends = map(np.ascontiguousarray, regions.swapaxes(0, 1))
        inputs = {"encoded": taken, "region_start": starts, "region_end": ends}
        (decoded,) = pipeline.run(stream, **inputs)
        # Copied, because DALI reuses its memory without asking the consumer's stream.
        squares = torch.from_dlpack(decoded.as_tensor())
        images_bchw = squares.permute(0, 3, 1, 2) if self._normalisation is None else squares
        whole = len(positions) == len(images)
        images[slice(None) if whole else torch.tensor(positions)] = images_bchw
        if stream is not None:
            self._in_use.append((stream.record_event(), taken))
            if len(self._in_use) > MOST_IN_USE:
                self._in_use.popleft()[0].synchronize()

    def _decode_rest(
        self, batch: EncodedBatch, positions: list[int], images: Tensor
    ) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for position in positions:
            data, size = bytes(batch.data[position]), batch.stored_size(position)
            try:
                pixels = decode_with_pillow(data, self._geometry, size, batch.crop(position))
            except ValueError as error:
                reasons[position] = str(error)
                continue
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            if self._normalisation is not None:
                image = normalised(image, self._normalisation.mean, self._normalisation.std)
            images[position].copy_(image)
        return reasons
