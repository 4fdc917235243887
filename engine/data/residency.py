"""Place of decoded images between epochs: on the device, in host memory, in a file, or nowhere."""

import shutil
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import torch

from coreset.engine.runtime.limits import RESIDENT_SHARE, available_bytes
from coreset.engine.runtime.text import readable_bytes

DEVICE_SHARE = 0.9
"""Share of a GPU's free memory that images may take."""
TRAINING_BYTES = 12 * 10**9
"""Memory that a training on a GPU is left at least."""
ACTIVATION_BYTES = 400
"""Memory of a training per pixel of a batch, as stated, not measured: ResNet-18 keeps some 150
numbers of two bytes for the backward pass."""
FEWEST_FILE_EPOCHS = 3
"""Epochs from which on a file repays: the first decodes and writes it, all others only read."""
SPARE_DISK_BYTES = 2 * 10**9


class Place(StrEnum):
    """Where decoded images are kept."""

    DEVICE = "on the device"
    HOST = "in host memory"
    FILE = "in a file of the run"
    NOWHERE = "nowhere, but decoded every epoch"


class Capacity(NamedTuple):
    """Free memory in bytes; without a GPU the device has none of its own."""

    device: int
    host: int
    disk: int

    @classmethod
    def of(cls, device: torch.device, folder: Path | None) -> "Capacity":
        """Ask the device, the kernel and the disk of ``folder``, if images may be written there."""
        on_gpu = device_bytes(device) if device.type == "cuda" else 0
        disk = 0 if folder is None else shutil.disk_usage(folder).free
        return cls(on_gpu, available_bytes(), disk)

    def __str__(self) -> str:
        named = {"GPU": self.device, "host": self.host, "disk": self.disk}
        free = (f"{name} {readable_bytes(size)}" for name, size in named.items() if size)
        return ", ".join(free) + " free"


def device_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def choose_place(n_bytes: int, capacity: Capacity, *, epochs: int, batch_pixels: int = 0) -> Place:
    """Choose where ``n_bytes`` of images are kept for ``epochs``, the fastest place first.

    ``batch_pixels`` of the batches in training decide what a GPU needs beside the images.
    """
    training = max(TRAINING_BYTES, ACTIVATION_BYTES * batch_pixels)
    if n_bytes <= min(DEVICE_SHARE * capacity.device, capacity.device - training):
        return Place.DEVICE
    if n_bytes <= RESIDENT_SHARE * capacity.host:
        return Place.HOST
    if epochs >= FEWEST_FILE_EPOCHS and n_bytes + SPARE_DISK_BYTES <= capacity.disk:
        return Place.FILE
    return Place.NOWHERE
