"""NVIDIA DALI: hardware JPEG decoding on a GPU, and the same graph on a CPU.

DALI only decodes: which sample comes when, reading and error handling are ours, because DALI's own
reader shuffles within a buffer only, gives no sample ids, and reads a cut tar as a shorter epoch.
The only module that imports ``nvidia.dali``.

Measured on a CPU against torchvision on Pillow images (300 ImageNet files of original size):
decoded pixels are equal; after a resize the largest difference is 1 and the mean 0.08 to 0.16. In
the outermost two pixels, where the crop reaches the edge of an image that is reduced several times,
it is up to 27 (500 to 64 pixels; at most 1.2 on average over an image): DALI repeats the edge where
Pillow shortens the filter. nvJPEG on a GPU may differ more.
"""

import logging
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.decode.decoder import EncodedBatch, UndecodableImagesError
from engine.decode.geometry import Geometry
from engine.decode.pillow import decode_with_pillow
from shards.errors import MachineError

if TYPE_CHECKING:
    from nvidia.dali.backend import TensorListCPU, TensorListGPU
    from nvidia.dali.pipeline import Pipeline

logger = logging.getLogger(__name__)


def require_dali() -> None:
    """Check that DALI is installed.

    Raises:
        MachineError: It is not; the message names the other decoder.
    """
    try:
        import_module("nvidia.dali")
    except ImportError as error:
        raise MachineError(
            f"decoder dali needs the package nvidia-dali-cuda130 ({error}); use --decoder turbo"
        ) from error


def define_pipeline(
    size: int,
    decode_device: Literal["cpu", "mixed"],
    *,
    batch: int,
    workers: int,
    device_id: int | None,
) -> "Pipeline":
    """Define the graph, not built: stored bytes and a region of each image in, a square out.

    The crop is the region of the resize, so that only the pixels that are kept are computed.
    Defined for ``mixed`` with ``device_id`` None, the graph can still be serialised, which checks
    every operator and argument on a machine without a GPU.
    """
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

    # Depth 1: batches are fed by hand, and what is read ahead is decided by the source.
    pipeline = Pipeline(
        batch_size=batch, num_threads=workers, device_id=device_id, prefetch_queue_depth=1
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1)
        region_start = fn.external_source(name="region_start", dtype=DALIDataType.FLOAT, ndim=1)
        region_end = fn.external_source(name="region_end", dtype=DALIDataType.FLOAT, ndim=1)
        decoded = fn.decoders.image(
            encoded, device=decode_device, output_type=DALIImageType.RGB, adjust_orientation=False
        )
        pipeline.set_outputs(
            fn.resize(
                decoded,
                size=[size, size],
                roi_start=region_start,
                roi_end=region_end,
                interp_type=DALIInterpType.INTERP_LINEAR,
                antialias=True,
            )
        )
    return pipeline


class DaliDecoder:
    """Decodes with DALI on ``device``; plain JPEGs there, everything else through Pillow."""

    def __init__(self, geometry: Geometry, *, device: str, workers: int, batch: int = 1) -> None:
        """Prepare for batches of up to ``batch``; the first larger one rebuilds the pipeline.

        Args:
            geometry: Output size and crop.
            device: ``cpu``, ``cuda`` or ``cuda:N``; decoded batches stay there.
            workers: Threads of DALI.
            batch: Images.

        Raises:
            MachineError: DALI is not installed.
        """
        require_dali()
        self._geometry = geometry
        # A tensor knows the number of its GPU, which DALI needs, where `device` says `cuda`.
        self._device = torch.empty(0, device=device).device
        self._workers = workers
        self._batch = batch
        self._pipeline: Pipeline | None = None
        self._lock = threading.Lock()

    def decode(self, batch: EncodedBatch) -> Tensor:
        """See ``Decoder.decode``; thread safe, one batch at a time."""
        plain = [position for position in range(len(batch)) if batch.is_plain_jpeg(position)]
        images = self._empty(len(batch))
        with self._lock:
            refused = self._decode_plain(batch, plain, images)
        rest = sorted(refused + list(set(range(len(batch))) - set(plain)))
        reasons = self._decode_rest(batch, rest, images)
        images_bchw = images.permute(0, 3, 1, 2)
        if reasons:
            raise UndecodableImagesError(reasons, images_bchw)
        return images_bchw

    def close(self) -> None:
        """Delete the pipeline: an idle one keeps its threads and memory."""
        with self._lock:
            self._pipeline = None

    def _empty(self, n: int) -> Tensor:
        size = self._geometry.size
        return torch.empty((n, size, size, 3), dtype=torch.uint8, device=self._device)

    def _decode_plain(self, batch: EncodedBatch, positions: list[int], images: Tensor) -> list[int]:
        """Fill the rows ``positions``; return those that DALI refuses.

        One bad image makes DALI lose the whole batch, so a batch that fails is halved until the bad
        ones are alone. A pipeline is not used again after an error.
        """
        if not positions:
            return []
        pipeline = self._ready_pipeline(len(positions))
        try:
            (decoded,) = pipeline.run(**self._inputs(batch, positions))
        except RuntimeError as error:
            self._pipeline = None
            if len(positions) == 1:
                logger.debug("DALI refuses an image: %s", error)
                return positions
            middle = len(positions) // 2
            left = self._decode_plain(batch, positions[:middle], images)
            return left + self._decode_plain(batch, positions[middle:], images)
        self._copy(decoded, positions, images)
        return []

    def _ready_pipeline(self, n: int) -> "Pipeline":
        if self._pipeline is None or n > self._batch:
            self._batch = max(n, self._batch)
            gpu = self._device.type == "cuda"
            device_id = self._device.index if gpu else None
            self._pipeline = define_pipeline(
                self._geometry.size,
                "mixed" if gpu else "cpu",
                batch=self._batch,
                workers=self._workers,
                device_id=device_id,
            )
            self._pipeline.build()
        return self._pipeline

    def _inputs(self, batch: EncodedBatch, positions: list[int]) -> dict[str, list[NDArray[Any]]]:
        regions = [region(self._geometry, *batch.stored_size(position)) for position in positions]
        return {
            "encoded": [np.frombuffer(batch.data[position], np.uint8) for position in positions],
            "region_start": [start for start, _ in regions],
            "region_end": [end for _, end in regions],
        }

    def _copy(
        self, decoded: "TensorListCPU | TensorListGPU", positions: list[int], images: Tensor
    ) -> None:
        """Copy DALI's buffers, which the next run overwrites, into the rows ``positions``."""
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        whole = len(positions) == len(images)
        target = images if whole else self._empty(len(positions))
        stream = torch.cuda.current_stream(self._device) if images.is_cuda else None
        feed_ndarray(decoded.as_tensor(), target, cuda_stream=stream)
        if stream is not None:
            stream.synchronize()
        if not whole:
            images[torch.tensor(positions, device=images.device)] = target

    def _decode_rest(
        self, batch: EncodedBatch, positions: list[int], images: Tensor
    ) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for position in positions:
            try:
                image = decode_with_pillow(
                    batch.data[position], self._geometry, batch.stored_size(position)
                )
            except ValueError as error:
                reasons[position] = str(error)
            else:
                images[position] = torch.from_numpy(image).to(images.device)
        return reasons


def region(
    geometry: Geometry, width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The crop in pixels of the stored image: (top, left) and (bottom, right)."""
    place = geometry.place(width, height)
    scale = np.array([height / place.height, width / place.width])
    start = np.array([place.top, place.left])
    return (start * scale).astype(np.float32), ((start + geometry.size) * scale).astype(np.float32)
