"""Small synthetic photos in a folder per class, and their packed data set, for every test file."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

from coreset.engine.runtime.progress import Display

CLASSES = ("n01440764", "n02102040", "n02979186")
ORIENTATION = 0x0112
# No test asserts a time: the first example imports or compiles, and machines are busy.
settings.register_profile("any time", deadline=None)
settings.load_profile("any time")


def draw_photo(label: int, index: int, seed: int = 0) -> Image.Image:
    """A noisy coloured ellipse on a gradient: colour and place tell the class, sizes differ."""
    rng = np.random.default_rng([seed, label, index])
    width, height = (int(side) for side in rng.integers(40, 97, size=2))
    ramp = np.linspace(0, 120, width)[None, :, None] + rng.normal(60, 12, (height, width, 3))
    image = Image.fromarray(ramp.clip(0, 255).astype(np.uint8))
    corner = (width * label // 5, height * (2 - label) // 5)
    box = (*corner, corner[0] + width // 2, corner[1] + height // 2)
    colour = tuple(220 if channel == label else 30 for channel in range(3))
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def save_photo(image: Image.Image, folder: Path, index: int) -> None:
    """Save as one of seven kinds by ``index``; most are plain JPEG."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    kinds: dict[int, tuple[str, str, dict[str, Any]]] = {
        0: ("RGB", "png", {}),
        1: ("RGB", "webp", {"quality": 90}),
        2: ("L", "JPEG", {}),
        3: ("CMYK", "jpg", {}),
        4: ("RGB", "jpg", {"exif": exif}),
        5: ("RGB", "jpg", {"progressive": True}),
    }
    mode, extension, options = kinds.get(index % 10, ("RGB", "JPEG", {}))
    path = folder / f"photo_{index:03d}.{extension}"
    image.convert(mode).save(path, **{**options, "quality": options.get("quality", 92)})


def make_photo_folder(root: Path, *, per_class: int = 20, seed: int = 0) -> Path:
    """Fill ``root`` with ``per_class`` photos of each class and return it."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            save_photo(draw_photo(label, index, seed), root / name, index)
    return root


@pytest.fixture(scope="session")
def make_photos() -> Callable[..., Path]:
    """``make_photos(root, per_class=20, seed=0)``: a folder of photos that a test may change."""
    return make_photo_folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of 3 classes: JPEG (grey, CMYK, progressive, rotated ...), PNG, WebP; read only."""
    return make_photo_folder(tmp_path_factory.mktemp("photos") / "train")


@pytest.fixture(scope="session")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos`` packed into 4 shards; read only."""
    from coreset.engine.stages.pack import Pack

    data = tmp_path_factory.mktemp("packed") / "DATA"
    Pack(src=photos, data=data, samples_per_shard=16).run()
    return data


@pytest.fixture(scope="session")
def stored_samples() -> Callable[[Path], list[tuple[dict[str, Any], bytes]]]:
    """``stored_samples(data)``: row and stored bytes of every sample, read by shard and offset."""
    from coreset.shards.format.dataset import Dataset

    def read(data: Path) -> list[tuple[dict[str, Any], bytes]]:
        dataset = Dataset.open(data)
        shards = [path.read_bytes() for path in dataset.shard_paths()]
        return [
            (row, shards[row["shard"]][row["offset"] : row["offset"] + row["bytes"]])
            for row in dataset.samples.to_pylist()
        ]

    return read


@pytest.fixture(scope="session")
def refused_files() -> Callable[[Path], list[dict[str, Any]]]:
    """``refused_files(data)``: rows of the files that could not be packed."""
    from coreset.shards.format.records import read_refused

    return lambda data: read_refused(data).to_pylist()


@dataclass(frozen=True)
class Naming:
    """What a power cut would leave in the moment when a file or directory got its name."""

    path: Path
    survivors: dict[str, bytes]
    """Contents by name below the root."""
    beside: dict[str, bytes | None]
    """Contents by name beside ``path``, had the names reached the disk; None: no content did."""


class Disk:
    """What a power cut would leave below a directory: contents and names as of their last fsync.

    POSIX promises no more. A file system may bring a rename to the disk at once, and the bytes of
    the file later.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.namings: list[Naming] = []
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self.settle()

    def settle(self) -> None:
        """Bring everything to the disk, as time does."""
        for path in (self.root, *self.root.rglob("*")):
            self._keep(path, path.lstat())

    def synced(self, descriptor: int) -> None:
        """A file or directory was synced."""
        self._keep(Path(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor))

    def named(self, path: Path) -> None:
        """A file or directory got the name ``path``."""
        with os.scandir(path.parent) as entries:
            inodes = {entry.name: entry.inode() for entry in entries}
        beside = {name: self._contents.get(inode) for name, inode in inodes.items()}
        self.namings.append(Naming(path, self.survivors(), beside))

    def naming(self, name: str) -> Naming:
        """The last time that a file or directory got this name."""
        return [naming for naming in self.namings if naming.path.name == name][-1]

    def survivors(self) -> dict[str, bytes]:
        """Files that are there after a power cut, with their contents, by name below the root."""
        return dict(self._below(self.root.stat().st_ino, ""))

    def _below(self, directory: int, prefix: str) -> list[tuple[str, bytes]]:
        files: list[tuple[str, bytes]] = []
        for name, inode in self._names.get(directory, {}).items():
            files += self._below(inode, f"{prefix}{name}/")
            if inode in self._contents:
                files.append((f"{prefix}{name}", self._contents[inode]))
        return files

    def _keep(self, path: Path, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                self._names[status.st_ino] = {entry.name: entry.inode() for entry in entries}
        elif stat.S_ISREG(status.st_mode):
            self._contents[status.st_ino] = path.read_bytes()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A spy on what this process syncs and renames, and in which order, below ``tmp_path``."""
    spy, fsync, rename = Disk(tmp_path), os.fsync, os.rename

    def spied_fsync(descriptor: int) -> None:
        fsync(descriptor)
        spy.synced(descriptor)

    def spied_rename(source: Path, target: Path) -> None:
        rename(source, target)
        spy.named(Path(target))

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "rename", spied_rename)
    return spy


@pytest.fixture(autouse=True)
def _display_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A display that a command chooses ends with its test."""
    monkeypatch.setattr("coreset.engine.runtime.progress._display", Display.AUTO)
