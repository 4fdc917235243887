"""Provenance of an artifact in ``provenance.json``: its configuration and its inputs.

It holds no times and no absolute paths, so that the same run gives the same bytes. Each input is
recorded with its own provenance, so that a set that was mailed still has its whole lineage.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from os.path import relpath
from pathlib import Path
from typing import Any, cast

from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.documents import build, parse
from coreset.shards.format.files import digest_of, json_bytes, missing

PROVENANCE_NAME = "provenance.json"
FORMAT_VERSION = 1
_INPUT = {"role": str, "path": str, "kind": str, "digest": str, "inputs": list}
"""Fields of an input, however far back, that later stages read."""
_LONGEST_LINEAGE = 100
VERSIONED = ("coreset", "numpy", "numba", "torch", "torchvision", "timm", "nvidia-dali-cuda130",
             "faiss-gpu", "simplejpeg", "pillow", "pyarrow", "zarr")  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Return versions of what can change a number, from package metadata, without imports."""
    known = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "absent"
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Record of how one artifact was made.

    ``config`` shapes the result; ``runtime`` (device, threads) may change its last bits, so a
    resumed training must agree in both. ``binds`` is what later stages check: ``identity`` and
    ``content`` of the data set, backbone, and so on.
    """

    kind: str
    """dataset, scores, features, set."""
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
        return {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in self.__slots__},
            "inputs": list(self.inputs),
        }

    @property
    def config_digest(self) -> str:
        """sha256 of stage, configuration and inputs, which ledger lines and result rows cite."""
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
        """Read ``provenance.json`` of a finished artifact.

        Raises:
            UsageError: ``artifact`` does not exist or has no provenance.
            StoreError: The file cannot be parsed or is of another version.
        """
        path = artifact / PROVENANCE_NAME
        if not path.is_file():
            remedy = "name the output of a finished coreset command"
            if not artifact.exists():
                raise missing(artifact, remedy)
            raise UsageError(f"{artifact} has no provenance.json; {remedy}")
        return Provenance.parse(path)

    @staticmethod
    def parse(path: Path) -> "Provenance":
        """Read a provenance file, finished or not."""
        try:
            document = parse(path.read_bytes())
            if document.pop("format_version", None) != FORMAT_VERSION:
                raise StoreError(f"{path} is of another version; make the artifact again")
            provenance = build(Provenance, document)
            provenance.require_sound()
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); make the artifact again") from error
        return provenance

    def require_sound(self) -> None:
        """Check the whole lineage, which later stages follow.

        Raises:
            ValueError: An input is not described, or the lineage is longer than any real one.
        """
        pending: list[tuple[int, Any]] = [(1, entry) for entry in self.inputs]
        while pending:
            depth, entry = pending.pop()
            if depth > _LONGEST_LINEAGE:
                raise ValueError(f"its inputs go back over more than {_LONGEST_LINEAGE} artifacts")
            if not isinstance(entry, dict) or not entry.keys() >= _INPUT.keys():
                raise ValueError("one of its inputs is not described")
            fields = cast("dict[str, Any]", entry)
            wrong = [name for name, kind in _INPUT.items() if not isinstance(fields[name], kind)]
            if wrong:
                raise ValueError(f"{wrong[0]} of one of its inputs is of another type")
            pending += [(depth + 1, parent) for parent in fields["inputs"]]

    def binding(self, name: str) -> Any:  # noqa: ANN401 - of JSON
        """Return one entry of ``binds``.

        Raises:
            StoreError: The artifact does not have it.
        """
        if name not in self.binds:
            raise StoreError(
                f"{PROVENANCE_NAME} of {self.kind} by {self.stage} names no {name}; make it again"
            )
        return self.binds[name]

    def as_input(self, role: str, artifact: Path, child: Path) -> dict[str, Any]:
        """Record this artifact as input ``role`` of ``child``, with its whole lineage.

        Features have no path: the cache finds them by content.
        """
        cached, document = self.kind == "features", self.document()
        kept = ("kind", "stage", "config", "binds", "digest", "inputs")
        return {
            "role": role,
            "path": "" if cached else relpath(artifact.resolve(), child.resolve()),
            **{name: document[name] for name in kept},
        }

    def lineage(self) -> Iterator[Mapping[str, Any]]:
        """Yield every input, nearest first, through the whole lineage."""
        pending = list(self.inputs)
        while pending:
            entry = pending.pop(0)
            yield entry
            pending.extend(entry["inputs"])

    def ancestor(self, kind: str) -> Mapping[str, Any] | None:
        """Return the nearest input of a kind, or None."""
        return next((entry for entry in self.lineage() if entry["kind"] == kind), None)


def readable_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name every leaf in which fingerprints differ, as ``config.epochs: 60 there, 30 here``."""
    # Through JSON, which makes lists of the configuration's tuples.
    before, after = (_leaves(json.loads(json_bytes(fingerprint))) for fingerprint in (old, new))
    changed = [
        f"{name}: {before.get(name, 'absent')} there, {after.get(name, 'absent')} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, "absent") != after.get(name, "absent")
    ]
    return "; ".join(changed)


def _leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def locate(artifact: Path, kind: str) -> Path | None:
    """Find the directory of the nearest input of a kind, along the recorded relative paths."""
    pending = [(artifact, entry) for entry in Provenance.read(artifact).inputs]
    while pending:
        base, entry = pending.pop(0)
        directory = (base / str(entry["path"])).resolve()
        if entry["kind"] == kind:
            return directory
        pending.extend((directory, parent) for parent in entry["inputs"])
    return None
