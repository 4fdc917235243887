"""Manifest of a packed data set, ``manifest.json``, and its two digests.

``identity`` covers the ordered (sample key, label) list: scores and coresets depend on it.
``content`` covers the stored bytes in the same order: features and decoded pixels depend on it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.files import build, json_bytes, missing, parse
from coreset.shards.format.tar import shard_name

FORMAT = "coreset-shards"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One tar file, of the source files ``first_position`` .. ``first_position + found - 1``."""

    name: str
    first_position: int
    found: int
    samples: int
    bytes: int
    index_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of ``manifest.json``; ``found`` is the sum of packed and refused files."""

    name: str
    split: str
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    """Options that shaped the bytes: order, order seed, samples per shard, label replacement."""
    n_found: int
    n_samples: int
    n_quarantined: int
    kinds: Mapping[str, int]
    shards: tuple[ShardEntry, ...]
    identity: str
    content: str
    classes_sha256: str
    samples_sha256: str
    quarantine_sha256: str
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Write the manifest as canonical JSON."""
        return json_bytes(asdict(self))

    @property
    def digest(self) -> str:
        """Sha256 of the manifest, by which a lineage names the data set."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @staticmethod
    def read(data: Path) -> "Manifest":
        """Read and check the manifest of the packed data set ``data``.

        Raises:
            UsageError: ``data`` does not exist or is not a packed data set.
            ManifestError: The manifest cannot be parsed or is of another format version.
        """
        path = data / MANIFEST_NAME
        if not path.is_file():
            remedy = f"run `coreset pack SRC {data}` first"
            if not data.exists():
                raise missing(data, remedy)
            raise UsageError(f"{data} is not a packed data set (no manifest.json); {remedy}")
        try:
            document = parse(path.read_bytes())
            version = document.get("format"), document.get("format_version")
            if version[0] is not None and version != (FORMAT, FORMAT_VERSION):
                raise ManifestError(
                    f"{path} has format {version[0]} version {version[1]}, this program reads "
                    f"{FORMAT} version {FORMAT_VERSION}; pack the data set again"
                )
            manifest = build(Manifest, document)
            _check_values(manifest)
        except (OSError, ValueError) as error:
            raise ManifestError(
                f"{path} cannot be read ({error}); pack the data set again"
            ) from error
        return manifest


def _check_values(manifest: Manifest) -> None:
    if manifest.n_samples < 1:
        raise ValueError(f"n_samples is {manifest.n_samples}")
    if len(set(manifest.classes)) != len(manifest.classes):
        raise ValueError("two classes have one name")
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            raise ValueError(f"shard {number} is called {shard.name[:40]!r}")
        if min(shard.samples, shard.bytes, shard.index_bytes, shard.found) < 0:
            raise ValueError(f"{shard.name} has a size or a count below 0")
    n_stored = sum(shard.samples for shard in manifest.shards)
    if n_stored != manifest.n_samples:
        raise ValueError(f"n_samples is {manifest.n_samples}, the shards hold {n_stored}")


def identity_bytes(keys: Sequence[str], labels: Sequence[int]) -> bytes:
    """Write ``key TAB label NEWLINE`` for each sample."""
    lines = (f"{key}\t{label}\n" for key, label in zip(keys, labels, strict=True))
    return "".join(lines).encode()


def identity_digest(keys: Sequence[str], labels: Sequence[int]) -> str:
    """Return the sha256 over ``key TAB label NEWLINE`` in id order."""
    return hashlib.sha256(identity_bytes(keys, labels)).hexdigest()


def content_digest(content_hashes: Iterable[bytes]) -> str:
    """Return the sha256 over the 16-byte content hashes of the stored images in id order."""
    return hashlib.sha256(b"".join(content_hashes)).hexdigest()


def classes_digest(classes: Sequence[str]) -> str:
    """Return the sha256 over the class names, one a line."""
    return hashlib.sha256("".join(f"{name}\n" for name in classes).encode()).hexdigest()
