"""The development kit of ILSVRC2012: labels of the validation images, as distributed.

Line i of ``data/ILSVRC2012_validation_ground_truth.txt`` is the ILSVRC id of image i, and
``data/meta.mat`` (a MATLAB file) has the WordNet id of each ILSVRC id. These ids are not in sorted
order: 1 is n02119789, which is class 278. Of the tar, two members are read in memory; nothing is
extracted.
"""

import re
import tarfile
import zlib
from io import BytesIO
from pathlib import Path

from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.matlab import MatlabError, struct_fields

TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"
META_NAME = "meta.mat"
ILSVRC_CLASSES = 1000
"""Ids above are those of groups, such as mammals."""
WNID = re.compile(r"n\d{8}")
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_FORMAT = zlib.MAX_WBITS | 16
# The kit has 2.5 MB, the two files less than 1 MB; nothing larger is decompressed.
_KIT_LIMIT_BYTES = 1 << 26
_FILE_LIMIT_BYTES = 1 << 22
_REMEDY = "download ILSVRC2012_devkit_t12 again"


def is_kit(truth: Path) -> bool:
    """Whether this is the kit, or its ground truth beside its ``meta.mat``, and no other file."""
    if truth.is_dir() or (truth.name == TRUTH_NAME and (truth.parent / META_NAME).is_file()):
        return True
    with truth.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC or truth.suffix == ".tar"


def kit_labels(truth: Path) -> list[str]:
    """WordNet id of each validation image, in the order of their numbers.

    Args:
        truth: The kit as a folder or as a tar, possibly compressed by gzip.

    Raises:
        UsageError: A file is missing.
        DataError: A file is damaged, or the two do not belong together.
    """
    if truth.is_file() and truth.name != TRUTH_NAME:
        lines, meta = _from_tar(truth)
    else:
        lines, meta = _from_folder(truth.parent if truth.is_file() else truth)
    wnids = _wnids(meta, truth)
    labels: list[str] = []
    for number, line in enumerate(lines.split(), 1):
        wnid = wnids.get(int(line)) if line.isdigit() and len(line) <= 4 else None
        if wnid is None:
            raise DataError(
                f"{TRUTH_NAME} of {truth} has {line[:20]!r} in line {number:,} where an ILSVRC id "
                f"of {META_NAME} in [1, {ILSVRC_CLASSES}] is expected; {_REMEDY}"
            )
        labels.append(wnid)
    return labels


def _from_folder(kit: Path) -> tuple[bytes, bytes]:
    folder = next((one for one in (kit / "data", kit) if (one / META_NAME).is_file()), None)
    if folder is None or not (folder / TRUTH_NAME).is_file():
        raise _incomplete(kit)
    with (folder / TRUTH_NAME).open("rb") as lines, (folder / META_NAME).open("rb") as meta:
        return lines.read(_FILE_LIMIT_BYTES), meta.read(_FILE_LIMIT_BYTES)


def _from_tar(kit: Path) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    try:
        # From memory: tarfile believes the sizes that headers of a compressed stream announce.
        with tarfile.open(fileobj=BytesIO(_decompressed(kit)), mode="r:") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in {TRUTH_NAME, META_NAME} and member.isreg():
                    file = tar.extractfile(member)
                    found[name] = file.read(_FILE_LIMIT_BYTES) if file else b""
    except tarfile.TarError as error:
        raise DataError(f"{kit} is no whole tar ({error}); {_REMEDY}") from error
    if len(found) < 2:
        raise _incomplete(kit)
    return found[TRUTH_NAME], found[META_NAME]


def _decompressed(kit: Path) -> bytes:
    with kit.open("rb") as file:
        stored = file.read(_KIT_LIMIT_BYTES + 1)
    whole = True
    if stored.startswith(_GZIP_MAGIC):
        stream = zlib.decompressobj(_GZIP_FORMAT)
        try:
            stored = stream.decompress(stored, _KIT_LIMIT_BYTES + 1)
        except zlib.error as error:
            raise DataError(f"{kit} is damaged ({error}); {_REMEDY}") from error
        whole = stream.eof
    if len(stored) > _KIT_LIMIT_BYTES:
        raise DataError(f"{kit} holds more than {_KIT_LIMIT_BYTES:,} bytes; {_REMEDY}")
    if not whole:
        raise DataError(f"{kit} is cut; {_REMEDY}")
    return stored


def _wnids(meta: bytes, kit: Path) -> dict[int, str]:
    """WordNet id by ILSVRC id, of classes and not of groups."""
    try:
        synsets = struct_fields(meta, "synsets", ("ILSVRC2012_ID", "WNID"))
    except MatlabError as error:
        raise DataError(
            f"{META_NAME} of {kit} is no table of synsets ({error}); {_REMEDY}"
        ) from error
    return {
        int(number): wnid
        for number, wnid in synsets
        if isinstance(number, int | float)
        and isinstance(wnid, str)
        and 1 <= number <= ILSVRC_CLASSES
        and WNID.fullmatch(wnid)
    }


def _incomplete(kit: Path) -> UsageError:
    return UsageError(
        f"{kit} does not hold data/{TRUTH_NAME} and data/{META_NAME}; name "
        "ILSVRC2012_devkit_t12 (folder or tar.gz)"
    )
