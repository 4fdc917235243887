"""Tables of the recorded loading, for ``coreset.bench.docs``: one function per block."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from coreset.bench.decode_parts import BEST, RACES
from coreset.bench.record import read

Row = dict[str, Any]
_WORK = {
    ("imagenet", "centre"): "original size, resize 256 + centre crop 224",
    ("imagenet", "random"): "original size, random resized crop 224",
    ("packed256", "centre"): "packed at 256 px, centre crop 224",
    ("packed256", "random"): "packed at 256 px, random resized crop 224",
    ("imagenette", "whole"): "224-px JPEGs as they are",
}
_OUTPUT = {"float32": "float", "uint8": "uint8"}


def decode_goals() -> str:
    """What was to be reached, and what was."""
    table: list[Sequence[str]] = []
    for race in RACES:
        rows = _of(f"decode.{race}")
        table += [line for one in rows if "targets" in one for line in _goals(one, rows)]
    header = ("work", "loader", "images/s", "beside", "images/s", "ours / it", "goal")
    return _markdown(header, table)


def decode_original() -> str:
    """Original-size JPEGs, resized and cropped."""
    return _races("original-float", "original-uint8")


def decode_packed() -> str:
    """The same images, packed at a short side of 256 pixels."""
    return _races("packed256")


def decode_imagenette() -> str:
    """Small JPEGs that need no resize."""
    return _races("imagenette224")


def decode_cached() -> str:
    """Epochs from pixels that were decoded before."""
    return _races("cached")


def decode_random() -> str:
    """Random resized crops."""
    return _races("rrc-original", "rrc-packed256")


def decode_threads() -> str:
    """One thread and all."""
    table = [
        (str(one["threads"]), _name(one).replace(f", threads: {one['threads']}", ""), *_speed(one))
        for one in _of("decode.threads")
    ]
    return _markdown(("threads", "what", "images/s", "seconds"), table)


def decode_start() -> str:
    """How long it takes to make a loader, and to its first batch."""
    table = [
        (
            one["input"],
            one["contender"],
            *(
                (one["absent"], "")
                if "absent" in one
                else (_within(one, "open_seconds", 1), _within(one, "first_batch_seconds", 3))
            ),
        )
        for one in _of("decode.start")
    ]
    return _markdown(("input", "loader", "making it, s", "first batch of 256, s"), table)


def decode_memory() -> str:
    """Memory of each loader."""
    table = [
        (
            one["contender"],
            one.get("absent") or f"{one['peak_bytes'] / 1e6:.0f} MB",
            f"{one['allowed_bytes'] / 1e6:.0f} MB" if "allowed_bytes" in one else "",
        )
        for one in _of("decode.memory")
    ]
    return _markdown(("loader", "memory above torch's", "goal"), table)


def decode_circumstances() -> str:
    """What was read, on what."""
    rows = [row for race in RACES for row in _of(f"decode.{race}")]
    notes = dict.fromkeys(f"{row['input']}: {row['input_note']}" for row in rows)
    one = next(row for row in rows if "seconds" in row)
    hardware = one["hardware"]
    found: dict[str, str] = {}
    for row in rows:
        found |= row.get("peer_versions", {})
    peers = ", ".join(f"{name} {found[name]}" for name in sorted(found))
    return (
        f"{'; '.join(notes)}. {one['threads']} threads or workers of every loader, "
        f"{len(one['seconds'])} rounds by turns ({hardware['processor']}, {hardware['cores']} "
        f"cores, {hardware['memory_gib']} GiB), {one['date']}, commit {one['commit']}, torch "
        f"{one['versions']['torch']}. Peers: {peers}."
    )


DECODE_BLOCKS = (
    decode_goals,
    decode_original,
    decode_packed,
    decode_imagenette,
    decode_cached,
    decode_random,
    decode_threads,
    decode_start,
    decode_memory,
    decode_circumstances,
)


def _goals(ours: Row, rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    work = f"{_WORK[ours['input'], ours['crop']]}, {_OUTPUT[ours['pixels']]}"
    for beside, goal in ours["targets"].items():
        name = ours["best_peer"] if beside == BEST else beside
        other = next((one for one in rows if _same(one, ours) and one["contender"] == name), {})
        share = ours["reached"][beside]
        yield (
            work,
            ours["contender"],
            *_speed(ours)[:1],
            f"{name} ({'limit' if other.get('role') == 'limit' else 'peer'})",
            *(_speed(other)[:1] if other else ("",)),
            "" if share is None else f"{share:.2f}",
            f"{goal:.2f}",
        )


def _races(*names: str) -> str:
    rows = [row for name in names for row in _of(f"decode.{name}")]
    table: list[Sequence[str]] = []
    for one in rows:
        ours = next(row for row in rows if _same(row, one) and "targets" in row)
        ratio = ours.get("speed_over", {}).get(one["contender"])
        share = None if one["role"] == "limit" else one.get("speed_over", {}).get("decode")
        table.append(
            (
                _WORK[one["input"], one["crop"]],
                _OUTPUT[one["pixels"]],
                _name(one),
                *_speed(one),
                "" if ratio is None else f"{ratio:.2f}",
                "" if share is None else f"{share:.2f}",
                f"{one['pixels_max']:.0f} / {one['pixels_mean']:.2f}"
                if "pixels_max" in one
                else "",
            )
        )
    header = (
        "work", "output", "loader", "images/s", "seconds", "coreset / it", "share of decode",
        "from Pillow: most / mean",
    )  # fmt: skip
    return _markdown(header, table)


def _same(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in ("bench", "input", "crop", "pixels"))


def _name(one: Row) -> str:
    return f"*{one['contender']}* (limit)" if one["role"] == "limit" else one["contender"]


def _speed(one: Row) -> tuple[str, str]:
    """Images per second and seconds with their spread, or why there are none."""
    if "absent" in one or "failed" in one:
        reason = one.get("absent") or one["failed"]
        return f"{'absent' if 'absent' in one else 'failed'}: {reason}", ""
    low, middle, high = one["min_seconds"], one["median_seconds"], one["max_seconds"]
    return f"{one['images_per_second']:,.0f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _within(one: Row, name: str, digits: int) -> str:
    goal = f" (goal {one['allowed'][name]:g})" if "allowed" in one else ""
    return f"{one[name]:.{digits}f}{goal}"


def _of(bench: str) -> list[Row]:
    return [one for one in read("decode") if one["bench"] == bench]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
