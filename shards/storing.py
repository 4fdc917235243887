"""One found file becomes one stored sample, or a refusal."""

import xxhash

from shards.errors import DataError
from shards.plan import Plan
from shards.probe import Probe, Reason, Refusal, glance, misnamed, probe, refuse_long_file
from shards.records import Row
from shards.reencode import reencode
from shards.sources.base import Sample, Source
from shards.tar import Member, ShardWriter


def store_sample(plan: Plan, position: int, writer: ShardWriter) -> Row:
    """Append one file to its shard; the row of a refused file has a reason.

    The bytes are read once: hashed, checked, written or re-encoded from the same buffer.
    """
    source = plan.source
    sample = source.sample(position)
    row: Row = {"key": sample.key, "source": sample.name, "bytes": sample.size}
    try:
        _refuse_unreadable(source, sample)
        data = source.contents.read(sample.row)
        row["content_hash"] = xxhash.xxh3_128_hexdigest(data)
        data, image = _stored(plan, sample, data, row["content_hash"])
    except Refusal as refusal:
        if not plan.tolerant:
            raise DataError(
                f"{sample.name} of {source.place} cannot be packed ({refusal}); mend or remove it, "
                "or list such files with --on-bad quarantine"
            ) from refusal
        row |= {"position": position, "class": source.classes[sample.label]}
        row["content_hash"] = row.get("content_hash")
        return row | {"reason": str(refusal.reason), "detail": refusal.detail}
    label = int(plan.labels[position])
    member = writer.add(position, image.format, data, label)
    row |= {"label": label, "class": source.classes[label], "folder_label": sample.label}
    row["source_hash"] = row["content_hash"]
    if plan.resize is not None:
        row["content_hash"] = xxhash.xxh3_128_hexdigest(data)
    return row | _image_columns(member, image)


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


def _image_columns(member: Member, image: Probe) -> Row:
    return {
        "member": member.name,
        "offset": member.offset,
        "bytes": member.size,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "flags": int(image.flags),
    }
