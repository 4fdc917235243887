"""Found files become stored samples, or refusals."""

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import xxhash
from numpy.typing import NDArray

from coreset.kernels.jpeg.buffers import pixel_memory
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.records import Row
from coreset.shards.format.tar import sample_parts
from coreset.shards.images.flags import Flag
from coreset.shards.images.pillow import as_rgb, opened
from coreset.shards.images.probe import (
    Probe,
    glance,
    misnamed,
    probe,
    refuse_long_file,
)
from coreset.shards.images.refusal import Reason, Refusal, refusing
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import Sample, Source


class Block(NamedTuple):
    """Consecutive found files, n of which are stored."""

    positions: list[int]
    """Of the n stored ones."""
    samples: dict[str, list[Any]]
    """Columns of ``SAMPLES_SCHEMA`` but ``id``, ``shard``, ``member`` and ``offset``, of n values;
    content hashes are hexadecimal."""
    refused: list[Row]
    """Rows of ``QUARANTINE_SCHEMA``; content hashes are hexadecimal."""


class _Stored(NamedTuple):
    row: Row
    """Of ``Block.samples`` or ``Block.refused``."""
    data: bytes | None
    """None: refused."""


def encode_block(
    plan: Plan,
    positions: range,
    put: Callable[[bytes], object],
    stopped: Callable[[], bool] = lambda: False,
) -> Block:
    """Make the stored form of consecutive found files, one by one.

    The bytes are read once: hashed, checked, kept or re-encoded from the same buffer.

    Args:
        plan: What is packed.
        positions: Of the files.
        put: Takes the samples' `sample_parts`, in order.
        stopped: Asked before every sample whether to give up.

    Raises:
        UsageError: A file cannot be read, or changed after it was found.
        DataError: It cannot be packed, and the plan tolerates none such.
        CancelledError: ``stopped`` says so.
    """
    stored: list[int] = []
    rows: list[Row] = []
    refused: list[Row] = []
    for position, sample in zip(positions, plan.source.samples(positions), strict=True):
        if stopped():
            raise CancelledError
        row, data = _store(plan, position, sample)
        if data is None:
            refused.append(row)
            continue
        for part in sample_parts(position, row["format"], data, row["label"]):
            put(part)
        stored.append(position)
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return Block(stored, columns, refused)


def _store(plan: Plan, position: int, sample: Sample) -> _Stored:
    source, source_hash = plan.source, None
    try:
        _refuse_unreadable(source, sample)
        data = source.contents.read(sample)
        source_hash = xxhash.xxh3_128_hexdigest(data)
        data, image = _stored(plan, sample, data, source_hash)
    except Refusal as refusal:
        if not plan.skip_damaged:
            raise DataError(
                f"{sample.name} of {source.place} cannot be packed ({refusal}); mend or remove it, "
                "or list such files with --on-bad quarantine"
            ) from refusal
        return _Stored(_refused_row(source, sample, position, source_hash, refusal), None)
    label = int(plan.labels[position])
    row = {
        "bytes": len(data),
        "format": image.format,
        "label": label,
        "class": source.classes[label],
        "folder_label": sample.label,
        "key": sample.key,
        "source": sample.name,
        "width": image.width,
        "height": image.height,
        "content_hash": source_hash if plan.resize is None else xxhash.xxh3_128_hexdigest(data),
        "source_hash": source_hash,
        "flags": int(image.flags),
    }
    return _Stored(row, data)


def _refused_row(
    source: Source, sample: Sample, position: int, source_hash: str | None, refusal: Refusal
) -> Row:
    return {
        "position": position,
        "source": sample.name,
        "key": sample.key,
        "class": source.classes[sample.label],
        "bytes": sample.size,
        "content_hash": source_hash,
        "reason": str(refusal.reason),
        "detail": refusal.detail,
    }


def _refuse_unreadable(source: Source, sample: Sample) -> None:
    if sample.row in source.unreadable:
        raise Refusal(Reason.NOT_A_FILE, source.unreadable[sample.row])
    refuse_long_file(sample.size)


def _stored(plan: Plan, sample: Sample, data: bytes, content_hash: str) -> tuple[bytes, Probe]:
    """The bytes to store and what they are."""
    image = _examined(plan, sample, data, content_hash)
    if plan.resize is None:
        return data, image
    size, quality = plan.resize.short_side, plan.resize.quality
    stored = reencode(data, image, short_side=size, quality=quality)
    if plan.check and stored.data is data:  # small enough as it is, so not decoded yet
        probe(data)
    return stored.data, Probe(stored.format, stored.width, stored.height, stored.flags)


def _examined(plan: Plan, sample: Sample, data: bytes, content_hash: str) -> Probe:
    facts = plan.source.facts
    if facts is not None:
        known = facts.stored(sample.row)
        if known.content_hash.hex() != content_hash:
            raise DataError(
                f"{sample.name} in {plan.source.place} is not what was packed there; run "
                f"`coreset verify {plan.source.place}`"
            )
        return known.image
    # What is resized is decoded in full anyway.
    image = probe(data) if plan.check and plan.resize is None else glance(data)
    return misnamed(image, sample.name)


MAX_JPEG_SIDE = 65_500
"""``JPEG_MAX_DIMENSION`` of libjpeg-turbo (``jmorecfg.h``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reencoded:
    """An image as it is stored: what ``probe`` would say of ``data``, without a scan."""

    data: bytes
    format: str
    """Always jpg."""
    width: int
    height: int
    flags: Flag
    """What is true of ``data``, not of the source: a re-encoded image has no EXIF block, no alpha,
    no palette and 8 bits; grey stays grey."""


@refusing
def reencode(data: bytes, image: Probe, *, short_side: int, quality: int) -> Reencoded:
    """Bring an image to a short side of at most ``short_side`` pixels, as a JPEG.

    A plain JPEG (grey or colour) that is small enough is returned as it is, byte by byte. PNG,
    WebP, CMYK and odd samplings are encoded at any size. EXIF orientation is ignored, as by
    torchvision's ``ImageFolder``, and lost: the stored image is turned like its pixels. The bytes
    depend on the arguments and the version of libjpeg-turbo alone. Thread safe; releases the GIL.

    Args:
        data: A JPEG, PNG or WebP file.
        image: What `coreset.shards.images.probe.probe` found in ``data``.
        short_side: Pixels, at least 1; smaller images are not enlarged.
        quality: Of libjpeg, 1 .. 100; chroma is subsampled 4:2:0.

    Raises:
        UsageError: ``short_side`` or ``quality`` outside its range.
        Refusal: ``data`` cannot be decoded, or is too long for a JPEG.
    """
    _require_settings(short_side, quality)
    if min(image.width, image.height) <= short_side and _is_plain_jpeg(image):
        return Reencoded(
            data=data, format="jpg", width=image.width, height=image.height, flags=image.flags
        )
    width, height = target_size(image.width, image.height, short_side)
    if max(width, height) > MAX_JPEG_SIDE:
        limit = f"limit {MAX_JPEG_SIDE:,} a side as JPEG"
        raise Refusal(Reason.TOO_LARGE, f"{width} x {height} pixels, {limit}")
    encoded = _encoded(resized_pixels(data, image, short_side=short_side), quality)
    flags = image.flags & Flag.GREY
    return Reencoded(data=encoded, format="jpg", width=width, height=height, flags=flags)


@refusing
def resized_pixels(data: bytes, image: Probe, *, short_side: int) -> NDArray[np.uint8]:
    """Decode ``data`` and shrink it as `reencode` does: uint8, (h, w, 3), or (h, w, 1) if grey.

    The pixels hold until this thread calls it again.

    Raises:
        Refusal: ``data`` cannot be decoded.
    """
    # Numba takes a second to import, which only those pay who resize.
    from coreset.kernels.jpeg.resize import resize

    pixels_hwc = _decoded(data, image)
    height, width, _ = pixels_hwc.shape
    target = target_size(width, height, short_side)
    return pixels_hwc if target == (width, height) else resize(pixels_hwc, *target)


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height by the rule of torchvision's ``Resize(short_side)``, never enlarged.

    The long side is rounded down: ``int(short_side * long / short)``.
    """
    short = min(width, height)
    if short <= short_side:
        return width, height
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _require_settings(short_side: int, quality: int) -> None:
    if short_side < 1:
        raise UsageError(f"short_side must be at least 1 pixel, got {short_side}")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality must be in [1, 100], got {quality}")


def _is_plain_jpeg(image: Probe) -> bool:
    return image.format == "jpg" and not image.flags & (Flag.CMYK | Flag.ODD_SAMPLING)


def _decoded(data: bytes, image: Probe) -> NDArray[np.uint8]:
    grey = bool(image.flags & Flag.GREY)
    if _is_plain_jpeg(image):
        memory = pixel_memory(image.width * image.height * (1 if grey else 3))
        colours = "GRAY" if grey else "RGB"
        return simplejpeg.decode_jpeg(data, colours, buffer=memory, strict=True)
    with opened(data, (image.width, image.height)) as opened_image:
        pixels_hwc = np.array(as_rgb(opened_image))
    return pixels_hwc[:, :, :1].copy() if grey else pixels_hwc


def _encoded(pixels_hwc: NDArray[np.uint8], quality: int) -> bytes:
    if pixels_hwc.shape[2] == 1:
        return simplejpeg.encode_jpeg(pixels_hwc, quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(pixels_hwc, quality, "RGB", "420")
