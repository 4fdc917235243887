"""Writer of artifacts: lock, resume or refuse, write to a scratch directory, publish, account.

The same command again does the same everywhere: nothing if it had finished, continue if it was
interrupted, refuse if its configuration changed.
"""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from coreset.engine.artifacts.ledger import (
    LEDGER_NAME,
    RUNNING_NAME,
    Meter,
    append_lines,
    collect_interrupted,
    read_ledger,
)
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance, readable_difference
from coreset.shards.errors import LockedError, MachineError, UsageError
from coreset.shards.format.files import (
    COMMAND_NAME,
    digest_of,
    exchange_directories,
    files_below,
    json_bytes,
    make_directory,
    new_directory,
    rename_directory,
    temporary_name,
    tree_digests,
    unlink_link,
    write_atomically,
)

COMMAND: ContextVar[str] = ContextVar("COMMAND", default="")
"""Command line of this process; an interrupted artifact keeps it as its remedy."""
_NO_SUCH_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(slots=True)
class ArtifactWriter:
    """Artifact that is being written."""

    out: Path
    scratch: Path
    """Directory to write into; becomes ``out`` when the block ends without an error."""
    provenance: Provenance
    meter: Meter
    done: bool = False
    """The artifact exists, made by the same configuration from the same inputs."""
    resumed: bool = False
    """``scratch`` holds the commits of an interrupted run of the same configuration."""
    inputs: Sequence[Path] = ()


def require_output(out: Path) -> None:
    """Raise ``UsageError`` before any work unless ``out`` exists or can be made."""
    if out.exists():
        return
    if out.is_symlink():
        raise UsageError(
            f"{out} is a symbolic link to nothing; remove it, or choose another output"
        )
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"{out} cannot be made: {above} is a file; choose another output")


@contextmanager
def output_folder(out: Path) -> Generator[None]:
    """Make the folder of ``out`` for the block to write into; say why if that cannot be done."""
    try:
        make_directory(out.parent)
        yield
    except OSError as error:
        message = f"{out} cannot be written ({error.strerror})"
        if error.errno in _NO_SUCH_PLACE:
            raise UsageError(f"{message}; choose another output") from error
        if error.errno in _NOT_WRITABLE:
            raise MachineError(f"{message}; make its folder writable, or choose another") from error
        raise


@contextmanager
def lock(out: Path, *, wait: bool = False) -> Generator[None]:
    """Hold the exclusive right to write ``out``; the kernel releases it also on ``kill -9``."""
    require_output(out)
    path = out.with_name(f".{out.name}.lock")
    with output_folder(out):
        while (file := _locked_file(path, wait=wait)) is None and wait:
            pass  # the holder removed it while we waited: lock the new one
    if file is None:
        owner = path.read_text().strip() if path.is_file() else ""
        raise LockedError(
            f"{out} is being written by {owner or 'another process'}; "
            "wait for it or choose another output"
        )
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked_file(path: Path, *, wait: bool) -> TextIO | None:
    """Open and lock the lock file; None if another process holds it, or removed it just now."""
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link, which nothing here makes; remove it")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        # A lock on a file that its owner has removed guards nothing.
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass  # any other error, such as a file system without locks, would never go away
    file.close()
    return None


@contextmanager
def create_artifact(
    out: Path,
    provenance: Provenance,
    *,
    inputs: Sequence[Path] = (),
    device: str = "cpu",
    resumable: bool = False,
) -> Generator[ArtifactWriter]:
    """Yield an ``ArtifactWriter`` whose scratch directory becomes ``out`` if the block succeeds.

    ``work.done`` says that there is nothing left to do. ``inputs`` are the directories of
    ``provenance.inputs``, in the same order.
    """
    meter = Meter(provenance.stage, provenance.config_digest, device)
    work = ArtifactWriter(out, temporary_name(out), provenance, meter, inputs=inputs)
    # An existing artifact is whole, so any number of processes may find it at once.
    if not out.exists():
        with lock(out):
            if not out.exists():
                _prepare(work, resumable=resumable)
                try:
                    yield work
                except BaseException:
                    if resumable:
                        with suppress(OSError):  # a full disk: the error on its way out counts
                            meter.checkpoint(work.scratch)
                    else:
                        shutil.rmtree(work.scratch, ignore_errors=True)
                    raise
                _finish(work)
                rename_directory(work.scratch, out)
                return
    _require_same_fingerprint(out, provenance, "was made by another configuration")
    work.done = True
    yield work


@contextmanager
def replace_artifact(out: Path, provenance: Provenance) -> Generator[ArtifactWriter]:
    """Yield a writer whose scratch replaces ``out`` in one step, unless the block sets ``done``."""
    with lock(out):
        meter = Meter(provenance.stage, provenance.config_digest)
        scratch = out.with_name(f".{out.name}.remade.partial")
        work = ArtifactWriter(out, scratch, provenance, meter)
        _prepare(work, resumable=False)
        try:
            yield work
            if not work.done:
                append_lines(scratch, read_ledger(out))
                _finish(work)
                exchange_directories(scratch, out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _require_same_fingerprint(
    directory: Path, provenance: Provenance, message: str, *, runtime: bool = False
) -> None:
    existing = Provenance.read(directory)
    if existing.kind != provenance.kind:
        raise UsageError(
            f"{directory} holds {existing.kind} made by `coreset {existing.stage}`, not "
            f"{provenance.kind}; choose another output"
        )
    old, new = (
        record.fingerprint() | ({"runtime": record.runtime} if runtime else {})
        for record in (existing, provenance)
    )
    if difference := readable_difference(old, new):
        raise UsageError(
            f"{directory} {message} ({difference}); repeat that configuration, or remove it, "
            "or choose another output"
        )


def _prepare(work: ArtifactWriter, *, resumable: bool) -> None:
    scratch = work.scratch
    unlink_link(scratch)
    if resumable and (scratch / PROVENANCE_NAME).is_file():
        message = "is an interrupted run of another configuration"
        _require_same_fingerprint(scratch, work.provenance, message, runtime=True)
        for leftover in sorted(scratch.glob(".*.partial")):  # of a kill during a write
            if leftover.is_file():
                leftover.unlink()
        collect_interrupted(scratch)
        work.resumed = True
    else:
        new_directory(scratch)
        write_atomically(scratch / PROVENANCE_NAME, json_bytes(work.provenance.document()))
    if command := COMMAND.get():
        write_atomically(scratch / COMMAND_NAME, command.encode(errors="replace"))


def _finish(work: ArtifactWriter) -> None:
    (work.scratch / COMMAND_NAME).unlink(missing_ok=True)
    digest = work.provenance.digest or output_digest(work.scratch)
    work.provenance = replace(work.provenance, digest=digest)
    write_atomically(work.scratch / PROVENANCE_NAME, json_bytes(work.provenance.document()))
    inherited = [
        {"artifact": entry["digest"], **line}
        for path, entry in zip(work.inputs, work.provenance.inputs, strict=True)
        for line in read_ledger(path)
    ]
    work.meter.bytes_written = work.meter.bytes_written or sum(
        file.stat().st_size for file in files_below(work.scratch)
    )
    append_lines(work.scratch, [*inherited, work.meter.line()])
    (work.scratch / RUNNING_NAME).unlink(missing_ok=True)  # only now: a kill here pays once


def output_digest(directory: Path) -> str:
    """Compute the digest over every file of an artifact but its provenance and its ledger."""
    own = (PROVENANCE_NAME, LEDGER_NAME, RUNNING_NAME)
    return digest_of({n: sha for n, sha in tree_digests(directory).items() if n not in own})
