"""``provenance.json``: how an artifact was made, and out of what.

It holds no times and no absolute paths, so that the same run gives the same bytes. Each input is
recorded with its own provenance, so that a set that was mailed still knows its whole lineage.
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
"""What later stages read of an input, however far back."""
_LONGEST_LINEAGE = 100
VERSIONED = ("coreset", "numpy", "numba", "torch", "torchvision", "timm", "nvidia-dali-cuda130",
             "faiss-gpu", "simplejpeg", "pillow", "pyarrow", "zarr")  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Versions of what can change a number, from package metadata (nothing is imported)."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How one artifact was made.

    ``config`` is what shapes the result; ``runtime`` (device, threads) may change its last bits, so
    a resumed training must agree in both. ``binds`` names what later stages check: ``identity`` and
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
        """The JSON document."""
        return {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in self.__slots__},
            "inputs": list(self.inputs),
        }

    @property
    def config_digest(self) -> str:
        """sha256 of stage, configuration and inputs: what a ledger line and a result row cite."""
        return digest_of(self.fingerprint())

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two runs to make the same artifact."""
        return {
            "stage": self.stage,
            "config": dict(self.config),
            "inputs": {one["role"]: one["digest"] for one in self.inputs},
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
        """Check the whole lineage, which later stages walk along.

        Raises:
            ValueError: An input is not described, or the lineage is longer than any real one.
        """
        pending: list[tuple[int, Any]] = [(1, one) for one in self.inputs]
        while pending:
            depth, one = pending.pop()
            if depth > _LONGEST_LINEAGE:
                raise ValueError(f"its inputs go back over more than {_LONGEST_LINEAGE} artifacts")
            if not isinstance(one, dict) or not one.keys() >= _INPUT.keys():
                raise ValueError("one of its inputs is not described")
            known = cast("dict[str, Any]", one)
            odd = [name for name, kind in _INPUT.items() if not isinstance(known[name], kind)]
            if odd:
                raise ValueError(f"{odd[0]} of one of its inputs is of another type")
            pending += [(depth + 1, deeper) for deeper in known["inputs"]]

    def binding(self, name: str) -> Any:  # noqa: ANN401 - of JSON
        """One entry of ``binds``.

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

        Features are found again by content through the cache; their place says nothing.
        """
        cached = self.kind == "features"
        return {
            "role": role,
            "path": "" if cached else relpath(artifact.resolve(), child.resolve()),
            **{
                name: self.document()[name]
                for name in ("kind", "stage", "config", "binds", "digest")
            },
            "inputs": list(self.inputs),
        }

    def lineage(self) -> Iterator[Mapping[str, Any]]:
        """Yield every input, nearest first, through the whole lineage."""
        pending = list(self.inputs)
        while pending:
            one = pending.pop(0)
            yield one
            pending.extend(one["inputs"])

    def ancestor(self, kind: str) -> Mapping[str, Any] | None:
        """Nearest input of a kind, or None."""
        return next((one for one in self.lineage() if one["kind"] == kind), None)


def readable_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name every leaf in which two promises differ, as ``config.epochs: 60 there, 30 here``."""
    # Through JSON: what is read back has lists where the configuration has tuples.
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
    """Directory of the nearest input of a kind, found along the recorded relative paths."""
    pending = [(artifact, one) for one in Provenance.read(artifact).inputs]
    while pending:
        base, one = pending.pop(0)
        directory = (base / str(one["path"])).resolve()
        if one["kind"] == kind:
            return directory
        pending.extend((directory, deeper) for deeper in one["inputs"])
    return None
