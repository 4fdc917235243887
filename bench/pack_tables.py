"""Tables of the recorded packing, for ``coreset.bench.docs``: one function per block."""

from collections.abc import Iterable, Sequence
from typing import Any

from coreset.bench.record import read

Row = dict[str, Any]
_OURS = "coreset pack"


def pack_original() -> str:
    """Packing with every image decoded, beside ``ShardWriter`` and the decoder alone."""
    return _race("pack.original")


def pack_nocheck() -> str:
    """Packing undecoded, beside ``ShardWriter``, hashing and copying."""
    return _race("pack.nocheck")


def pack_resized() -> str:
    """Packing at a short side of 256 pixels, beside three resizers and the codec alone."""
    return _race("pack.resized")


def pack_memory() -> str:
    """Peak memory of packing and verifying."""
    table = [
        (
            one["contender"],
            f"{one['images']:,} ({one['input']})",
            one["failed"] or f"{one['peak_pss_bytes'] / 1e6:.0f} MB",
            f"{one['allowed_bytes'] / 1e6:.0f} MB",
        )
        for one in _of("pack.memory")
    ]
    return _markdown(("command", "images", "peak memory", "allowed"), table)


def pack_open() -> str:
    """How long it takes to open a large data set, and to look at all its files."""
    table = [
        (
            one["contender"],
            _absence(one) or _seconds(one),
            f"{one['limit_seconds']:.0f} s" if one["limit_seconds"] else "",
        )
        for one in _of("pack.open")
    ]
    return _markdown(("what", "seconds", "allowed"), table)


def pack_circumstances() -> str:
    """What was packed, on what."""
    one = _of("pack.original")[0]
    notes = dict.fromkeys(f"{row['input']}: {row['input_note']}" for row in _of("pack.original"))
    hardware = one["hardware"]
    return (
        f"{'; '.join(notes)}. {one['threads']} threads or processes of every contender, "
        f"{len(one['seconds'])} rounds by turns ({hardware['processor']}, "
        f"{hardware['memory_gib']} GiB), {one['date']}, commit {one['commit']}. Peers: "
        f"{_versions()}."
    )


PACK_BLOCKS = (
    pack_original,
    pack_nocheck,
    pack_resized,
    pack_memory,
    pack_open,
    pack_circumstances,
)


def _race(bench: str) -> str:
    rows = _of(bench)
    targets = {one["input"]: one["targets"] for one in rows if "targets" in one}
    ours = {one["input"]: one for one in rows if one["contender"] == _OURS}
    table: list[Sequence[str]] = []
    for one in rows:
        start = one["input"], _name(one)
        if absence := _absence(one):
            table.append((*start, absence, "", "", "", ""))
            continue
        ratio = ours[one["input"]].get("speed_over", {}).get(one["contender"])
        target = targets[one["input"]].get(one["contender"])
        table.append(
            (
                *start,
                f"{one['images_per_second']:,.0f}",
                f"{one['mb_per_second']:,.0f}",
                _seconds(one),
                "" if ratio is None else f"{ratio:.2f}",
                "" if target is None else f"{target:.2f}",
            )
        )
    header = ("input", "contender", "images/s", "MB/s", "seconds", "ours / it", "target")
    return _markdown(header, table)


def _name(one: Row) -> str:
    return f"*{one['contender']}* (limit)" if one["role"] == "limit" else one["contender"]


def _absence(one: Row) -> str:
    if "absent" in one:
        return f"absent: {one['absent']}"
    return f"failed: {one['failed']}" if "failed" in one else ""


def _seconds(one: Row) -> str:
    low, middle, high = one["min_seconds"], one["median_seconds"], one["max_seconds"]
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _versions() -> str:
    found: dict[str, str] = {}
    for one in (*_of("pack.original"), *_of("pack.resized")):
        found |= one.get("peer_versions", {})
    return ", ".join(f"{name} {found[name]}" for name in sorted(found))


def _of(bench: str) -> list[Row]:
    return [one for one in read("pack") if one["bench"] == bench]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
