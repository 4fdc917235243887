"""Open a packed data set, or a condensed set, for a training loop of torch."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from coreset.engine.condensed.condensed_set import SET_NAME, open_set
from coreset.engine.data.datasets import ImageDataset
from coreset.engine.data.loader import Loader
from coreset.engine.data.reader import Images

P = ParamSpec("P")
T = TypeVar("T")


def _from_any_directory(
    make: Callable[Concatenate[Images, P], T],
) -> Callable[Concatenate[Images, P], T]:
    """Let ``make`` take the directory of a condensed set, too."""

    @wraps(make)
    def made(data: Images, *args: P.args, **options: P.kwargs) -> T:
        if isinstance(data, str | Path) and (Path(data) / SET_NAME).is_file():
            data = open_set(Path(data))
        return make(data, *args, **options)

    return made


loader = _from_any_directory(Loader)
as_dataset = _from_any_directory(ImageDataset)
