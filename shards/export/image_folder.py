"""Image folder, ``OUT/CLASS/STEM.EXTENSION``, for torchvision, timm and Hugging Face."""

from collections.abc import Iterable
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.export.names import (
    ExportPlan,
    ImageFormat,
    StoredSample,
    class_folder,
    image_name,
)

CLASSES_NAME = "classes.txt"


def write_image_folder(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write one file per sample, and ``classes.txt`` with the class names, one a line.

    timm sorts classes in another order (``class10`` after ``class9``) but accepts ``classes.txt``
    as its class map. A class without samples has an empty folder, so that torchvision refuses the
    folder, or gives the right labels with ``allow_empty=True``, instead of shifting the labels.

    Raises:
        UsageError: A class name or a key cannot be a file name, or two samples would have the same.
    """
    classes = [class_folder(name) for name in plan.classes]
    (out / CLASSES_NAME).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for name in classes:
        _make_folder(out / name)
    root = out.resolve()
    for sample in samples:
        name = image_name(sample)
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise UsageError(f"sample key {sample.key!a} leads to {path}, outside of {out}")
        _write_new(path, sample)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir()
    except FileExistsError as error:
        raise UsageError(
            f"class {path.name} has the name of another class or of {CLASSES_NAME} on this file "
            "system; rename it and pack again"
        ) from error


def _write_new(path: Path, sample: StoredSample) -> None:
    try:
        with path.open("xb") as file:
            file.write(sample.image)
    except FileExistsError as error:  # on some file systems a.jpg and A.jpg are one name
        raise UsageError(
            f"two samples of class {sample.class_name} would be called {path.name} on this file "
            "system; choose another place or use --to webdataset"
        ) from error


IMAGE_FOLDER = ImageFormat(
    summary="a folder per class (torchvision, timm, Hugging Face)",
    write=write_image_folder,
    reader='torchvision.datasets.ImageFolder("{out}")',
    class_folders=True,
)
