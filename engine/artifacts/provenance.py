"""Provenance of an artifact in ``provenance.json``: its configuration and its inputs' provenance.

It holds no times and no absolute paths, so that the same run gives the same bytes.
"""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from os.path import relpath
from pathlib import Path
from typing import Any

from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import build, digest_of, interruption, json_bytes, missing, parse

PROVENANCE_NAME = "provenance.json"
FORMAT_VERSION = 1
_INPUT = {"role": str, "path": str, "kind": str, "digest": str, "inputs": list}
"""Fields of an input, however far back, that later stages read."""
_LONGEST_LINEAGE = 100
VERSIONED = ("coreset", "numpy", "numba", "torch", "torchvision", "timm", "nvidia-dali-cuda130",
             "faiss-gpu", "simplejpeg", "pillow", "pyarrow", "zarr", "open_clip_torch",
             "transformers")  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Return versions of what can change a number, from the metadata of packages."""
    known = {"python": platform.python_version(), **dict.fromkeys(VERSIONED, "absent")}
    for name in VERSIONED:
        with suppress(PackageNotFoundError):
            known[name] = version(name)
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Record of how one artifact (``kind``: dataset, scores, features, set) was made.

    ``config`` shapes the result, ``runtime`` perhaps its last bits; later stages check ``binds``.
    """

    kind: str
    stage: str
    config: Mapping[str, Any]
    runtime: Mapping[str, Any] = field(default_factory=dict[str, Any])
    binds: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: tuple[Mapping[str, Any], ...] = ()
    digest: str = ""
    """Digest of the finished artifact; empty while it is being made."""
    versions: Mapping[str, str] = field(default_factory=versions)

    def document(self) -> dict[str, Any]:
        """Return the JSON document."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {"format_version": FORMAT_VERSION, **fields, "inputs": list(self.inputs)}

    @property
    def config_digest(self) -> str:
        """sha256 of stage, configuration and inputs."""
        return digest_of(self.fingerprint())

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal for two runs to make the same artifact."""
        return {
            "stage": self.stage,
            "config": dict(self.config),
            "inputs": {entry["role"]: entry["digest"] for entry in self.inputs},
        }

    @staticmethod
    def read(artifact: Path) -> "Provenance":
        """Read ``provenance.json`` of a finished artifact; without one, the path was wrong."""
        path, remedy = artifact / PROVENANCE_NAME, "name the output of a finished coreset command"
        if not path.is_file():
            raise missing(artifact, remedy, otherwise=f"has no {PROVENANCE_NAME}")
        return Provenance.parse(path)

    @staticmethod
    def parse(path: Path) -> "Provenance":
        """Read a provenance file, finished or not."""
        try:
            document = parse(path.read_bytes())
            if document.pop("format_version", None) != FORMAT_VERSION:
                raise StoreError(f"{path} is of another version; make the artifact again")
            provenance = build(Provenance, document)
            _require_sound(provenance.inputs)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); make the artifact again") from error
        return provenance

    def binding(self, name: str) -> Any:  # noqa: ANN401 - of JSON
        """Return one entry of ``binds``; an artifact without it is damaged."""
        if name not in self.binds:
            raise StoreError(
                f"{PROVENANCE_NAME} of {self.kind} by {self.stage} names no {name}; make it again"
            )
        return self.binds[name]

    def as_input(self, role: str, artifact: Path, child: Path) -> dict[str, Any]:
        """Record this artifact and its lineage as an input; cached features have no path."""
        cached, document = self.kind == "features", self.document()
        kept = ("kind", "stage", "config", "binds", "digest", "inputs")
        return {
            "role": role,
            "path": "" if cached else relpath(artifact.resolve(), child.resolve()),
            **{name: document[name] for name in kept},
        }

    @staticmethod
    def inputs_of(child: Path, artifacts: Mapping[str, Path]) -> tuple[Mapping[str, Any], ...]:
        """Record artifacts by role as the inputs of ``child``."""
        return tuple(Provenance.read(p).as_input(r, p, child) for r, p in artifacts.items())

    def lineage(self, artifact: Path = Path()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Yield every input, nearest first, with its directory as seen from that of this one."""
        pending = [(artifact, entry) for entry in self.inputs]
        while pending:
            base, entry = pending.pop(0)
            directory = (base / entry["path"]).resolve()
            yield directory, entry
            pending.extend((directory, parent) for parent in entry["inputs"])

    def ancestor(self, kind: str) -> Mapping[str, Any] | None:
        """Return the nearest input of a kind, or None."""
        return next((entry for _, entry in self.lineage() if entry["kind"] == kind), None)


def _require_sound(inputs: Sequence[Any]) -> None:
    """Raise ``ValueError`` unless the whole lineage, which later stages follow, is described."""
    for _ in range(_LONGEST_LINEAGE):
        for entry in inputs:
            fields = entry if isinstance(entry, dict) else {}
            wrong = [name for name, kind in _INPUT.items() if type(fields.get(name)) is not kind]
            if wrong:
                raise ValueError(f"one of its inputs has no {wrong[0]}")
        inputs = [parent for entry in inputs for parent in entry["inputs"]]
    if inputs:
        raise ValueError(f"its inputs go back over more than {_LONGEST_LINEAGE} artifacts")


def readable_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name every leaf in which fingerprints differ, as ``config.epochs: 60 there, 30 here``."""
    # Through JSON, which makes lists of the configuration's tuples.
    before, after = (_leaves(json.loads(json_bytes(fingerprint))) for fingerprint in (old, new))
    names = sorted(before.keys() | after.keys())
    pairs = ((name, before.get(name, "absent"), after.get(name, "absent")) for name in names)
    return "; ".join(f"{name}: {a} there, {b} here" for name, a, b in pairs if a != b)


def _leaves(document: object, name: str = "") -> dict[str, Any]:
    if not isinstance(document, dict):
        return {name[1:]: document}
    leaves = (_leaves(value, f"{name}.{key}") for key, value in document.items())
    return {path: value for part in leaves for path, value in part.items()}


def locate(artifact: Path, kind: str) -> Path | None:
    """Find the directory of the nearest input of a kind, along the recorded relative paths."""
    inputs = Provenance.read(artifact).lineage(artifact)
    return next((directory for directory, entry in inputs if entry["kind"] == kind), None)


def open_source(artifact: Path, data: Path | None) -> Dataset:
    """Open the data set that an artifact was made from, at ``data`` if it was moved."""
    directory = data or locate(artifact, "dataset")
    if directory and (message := interruption(directory)):
        raise UsageError(message)
    if directory is None:
        raise UsageError(f"{artifact} does not say what data set it is of; name that with --data")
    if not (directory / MANIFEST_NAME).is_file():
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
