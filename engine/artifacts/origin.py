"""Open the data set that an artifact was made from."""

from pathlib import Path

from coreset.engine.artifacts.provenance import locate
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import interruption
from coreset.shards.format.manifest import MANIFEST_NAME


def open_source(artifact: Path, data: Path | None) -> Dataset:
    """Open the data set that an artifact was made from.

    Raises:
        UsageError: The data set was moved and ``data`` does not name its place.
    """
    directory = data or locate(artifact, "dataset")
    if directory is not None and (message := interruption(directory)):
        raise UsageError(message)
    if directory is None or not (directory / MANIFEST_NAME).is_file():
        raise UsageError(
            f"the data set of {artifact} is not at {directory} any more; name its place with --data"
        )
    return Dataset.open(directory)


def require_same_data(dataset: Dataset, identity: str, what: str) -> None:
    """Raise ``UsageError`` unless ``what`` was made from ``dataset``."""
    if dataset.manifest.identity != identity:
        raise UsageError(
            f"{dataset.path} has identity {dataset.manifest.identity[:12]}, but {what} was made "
            f"from {identity[:12]}: another data set; name the right one with --data"
        )
