"""torchvision in three ways: Pillow in workers, and ``torchvision.io`` in workers or in threads.

torchvision and Pillow are dependencies of the project: nothing to install. Workers are those of
torch's ``DataLoader``, which stay from epoch to epoch.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from coreset.bench.peers.loaders import Epoch, Numbered, Task, in_threads, numbered, versions_of
from coreset.bench.peers.transforms import loader_options, transform_of

versions = partial(
    versions_of, ["torchvision", "pillow"], ["torchvision.io", "torchvision.transforms.v2"]
)


@contextmanager
def pillow_in_workers(task: Task) -> Generator[Epoch]:
    """Yield ``ImageFolder`` with its default loader."""
    yield _image_folder(task, {})


@contextmanager
def io_in_workers(task: Task) -> Generator[Epoch]:
    """Yield ``ImageFolder`` with the decoder of ``torchvision.io``."""
    yield _image_folder(task, {"loader": _decoded})


@contextmanager
def io_in_threads(task: Task) -> Generator[Epoch]:
    """Yield the decoder of ``torchvision.io`` and the transforms in threads."""
    import torch

    torch.set_num_threads(1)  # the threads of the pool are the parallelism
    transform = transform_of(task)

    def decode(path: Path, into: Any) -> None:  # noqa: ANN401 - a tensor
        into.copy_(transform(_decoded(path)))

    yield partial(in_threads, task, decode)


def _image_folder(task: Task, options: dict[str, Any]) -> Epoch:
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    folder = ImageFolder(str(task.tree), transform=transform_of(task), **options)
    places = {path: place for place, (path, _) in enumerate(folder.samples)}
    ordered = Subset(folder, [places[str(path)] for path in task.files])
    loader: DataLoader[Any] = DataLoader(ordered, **loader_options(task))

    def epoch() -> Iterator[Numbered]:
        return numbered((images for images, _ in loader), len(task.files))

    return epoch


def _decoded(path: str | Path) -> Any:  # noqa: ANN401 - a tensor
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
