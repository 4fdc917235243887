"""Encoding of source files for a shard: read, check, resize, or refuse them."""

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import xxhash
from numpy.typing import NDArray

from coreset.kernels.jpeg import pixel_memory
from coreset.shards.errors import DataError
from coreset.shards.format.records import Row
from coreset.shards.format.tar import sample_parts
from coreset.shards.images.flags import MAX_FILE_BYTES, Flag, Reason, Refusal, refusing
from coreset.shards.images.probe import Probe, as_rgb, glance, misnamed, opened, probe
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import Sample, Source

MAX_JPEG_SIDE = 65_500  # JPEG_MAX_DIMENSION in libjpeg-turbo's jmorecfg.h


class Block(NamedTuple):
    """Rows of consecutive source files; content hashes are hexadecimal."""

    positions: list[int]
    """Positions of the stored files in the source."""
    samples: dict[str, list[Any]]
    """Columns of ``SAMPLES_SCHEMA`` but ``id``, ``shard``, ``member`` and ``offset``."""
    refused: list[Row]
    """Rows of ``QUARANTINE_SCHEMA``."""
    parts: list[bytes]


def encode_block(
    plan: Plan, positions: range, stopped: Callable[[], bool] = lambda: False
) -> Block:
    """Encode consecutive source files one by one.

    Raises:
        UsageError: A file cannot be read, or changed since the source was listed.
        DataError: A file cannot be packed, and the plan tolerates none.
        CancelledError: ``stopped``, which is called before every sample, returned True.
    """
    stored: list[int] = []
    rows: list[Row] = []
    refused: list[Row] = []
    parts: list[bytes] = []
    for position, sample in zip(positions, plan.source.samples(positions), strict=True):
        if stopped():
            raise CancelledError
        row, data = _encode(plan, position, sample)
        if data is None:
            refused.append(row)
            continue
        parts += sample_parts(position, row["format"], data, row["label"])
        stored.append(position)
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return Block(stored, columns, refused, parts)


def _encode(plan: Plan, position: int, sample: Sample) -> tuple[Row, bytes | None]:
    """Return the row and the stored bytes of a file; None for the bytes if it is refused."""
    source_hash = None
    try:
        data = _read(plan.source, sample)
        source_hash = content_hash = xxhash.xxh3_128_hexdigest(data)
        image = _identify(plan, sample, data, source_hash)
        if plan.short_side is not None:
            original = data
            data, image = reencode(data, image, short_side=plan.short_side, quality=plan.quality)
            if plan.check and data is original:  # small enough as it is, so not decoded yet
                probe(data)
            content_hash = xxhash.xxh3_128_hexdigest(data)
    except Refusal as refusal:
        return _refused_row(plan, position, sample, source_hash, refusal), None
    label = int(plan.labels[position])
    row = {
        "bytes": len(data),
        "format": image.format,
        "label": label,
        "class": plan.source.classes[label],
        "folder_label": sample.label,
        "key": sample.key,
        "source": sample.name,
        "width": image.width,
        "height": image.height,
        "content_hash": content_hash,
        "source_hash": source_hash,
        "flags": int(image.flags),
    }
    return row, data


def _read(source: Source, sample: Sample) -> bytes:
    if sample.row in source.unreadable:
        raise Refusal(Reason.NOT_A_FILE, source.unreadable[sample.row])
    if sample.size > MAX_FILE_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"{sample.size:,} bytes, limit {MAX_FILE_BYTES:,}")
    return source.contents.read(sample)


def _identify(plan: Plan, sample: Sample, data: bytes, content_hash: str) -> Probe:
    if plan.source.facts is not None:
        stored_hash, image = plan.source.facts(sample.row)
        if stored_hash.hex() != content_hash:
            raise DataError(
                f"{sample.name} in {plan.source.place} is not what was packed there; run "
                f"`coreset verify {plan.source.place}`"
            )
        return image
    # Resizing decodes the image in full anyway.
    image = probe(data) if plan.check and plan.short_side is None else glance(data)
    return misnamed(image, sample.name)


def _refused_row(
    plan: Plan, position: int, sample: Sample, source_hash: str | None, refusal: Refusal
) -> Row:
    if not plan.skip_damaged:
        raise DataError(
            f"{sample.name} of {plan.source.place} cannot be packed ({refusal}); mend or remove "
            "it, or list such files with --on-bad quarantine"
        ) from refusal
    return {
        "position": position,
        "source": sample.name,
        "key": sample.key,
        "class": plan.source.classes[sample.label],
        "bytes": sample.size,
        "content_hash": source_hash,
        "reason": str(refusal.reason),
        "detail": refusal.detail,
    }


@refusing
def reencode(data: bytes, image: Probe, *, short_side: int, quality: int) -> tuple[bytes, Probe]:
    """Re-encode an image as a JPEG whose short side has at most ``short_side`` pixels.

    A plain JPEG (grey or colour) that is small enough is returned unchanged, other formats are
    re-encoded at any size. EXIF orientation is ignored and lost; grey stays grey.
    """
    if min(image.width, image.height) <= short_side and _is_plain_jpeg(image):
        return data, image
    width, height = target_size(image.width, image.height, short_side)
    if max(width, height) > MAX_JPEG_SIDE:
        limit = f"limit {MAX_JPEG_SIDE:,} a side as JPEG"
        raise Refusal(Reason.TOO_LARGE, f"{width} x {height} pixels, {limit}")
    pixels_hwc = resized_pixels(data, image, short_side=short_side)
    colours = ("GRAY", "Gray") if pixels_hwc.shape[2] == 1 else ("RGB", "420")
    encoded = simplejpeg.encode_jpeg(pixels_hwc, quality, *colours)
    return encoded, Probe("jpg", width, height, image.flags & Flag.GREY)


@refusing
def resized_pixels(data: bytes, image: Probe, *, short_side: int) -> NDArray[np.uint8]:
    """Decode ``data`` and shrink it as `reencode` does: uint8, (h, w, 3), or (h, w, 1) if grey.

    The pixels are valid until the next call in this thread.
    """
    # Numba takes a second to import, which only resizing needs.
    from coreset.kernels.jpeg.resize import resize

    pixels_hwc = _decode(data, image)
    height, width, _ = pixels_hwc.shape
    target = target_size(width, height, short_side)
    return pixels_hwc if target == (width, height) else resize(pixels_hwc, *target)


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the size by the rule of torchvision's ``Resize(short_side)``, never enlarged."""
    if min(width, height) <= short_side:
        return width, height
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _is_plain_jpeg(image: Probe) -> bool:
    return image.format == "jpg" and not image.flags & (Flag.CMYK | Flag.ODD_SAMPLING)


def _decode(data: bytes, image: Probe) -> NDArray[np.uint8]:
    is_grey = bool(image.flags & Flag.GREY)
    if _is_plain_jpeg(image):
        memory = pixel_memory(image.width * image.height * (1 if is_grey else 3))
        colours = "GRAY" if is_grey else "RGB"
        return simplejpeg.decode_jpeg(data, colours, buffer=memory, strict=True)
    with opened(data, (image.width, image.height)) as opened_image:
        pixels_hwc = np.array(as_rgb(opened_image))
    return pixels_hwc[:, :, :1].copy() if is_grey else pixels_hwc
