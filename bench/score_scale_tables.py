"""Tables of how scoring grows with the data set, for ``bench.docs``: one function per block."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from coreset.bench.record import read

Row = dict[str, Any]


def score_scale_pixels() -> str:
    """Synthetic images through ``synth``, ``decode`` and ``score``."""
    return _grown(_of("pixels"))


def score_scale_linear() -> str:
    """Records through the linear proxy."""
    return _grown(_of("linear"))


def score_scale_goal() -> str:
    """The most memory beside the data, and what is allowed."""
    rows = [one for one in _of("pixels") + _of("linear") if not one["failed"]]
    most = max(rows, key=lambda one: one["peak_anonymous_bytes"])
    most_of_all = max(one["peak_above_bytes"] for one in rows)
    return (
        f"The most anonymous memory beside the data is {_mb(most['peak_anonymous_bytes'])} MB "
        f"(`{most['verb']}`, {most['images']:,} images), the most with programs and libraries "
        f"{_mb(most_of_all)} MB; the goal is under {_mb(most['goal_bytes'])} MB above "
        "the data."
    )


def score_scale_circumstances() -> str:
    """What was run, on what."""
    small = next(one for one in _of("pixels") if one["verb"] == "score")
    large = _of("linear")[-1]
    hardware, versions = large["hardware"], large["versions"]
    return (
        f"{hardware['cores']} cores ({hardware['processor']}), {hardware['memory_gib']} GiB, no "
        f"GPU, torch {versions['torch']}, {large['date']}, commit {large['commit']}; one run each. "
        f"ResNet-18: crops of {small['size']} px, {_training(small)}. Linear proxy: "
        f"{large['columns']} features, {large['classes']:,} classes, {_training(large)}."
    )


SCORE_SCALE_BLOCKS = (
    score_scale_pixels,
    score_scale_linear,
    score_scale_goal,
    score_scale_circumstances,
)


def _training(one: Row) -> str:
    epochs = f"{one['epochs']} epoch{'s' if one['epochs'] > 1 else ''}"
    final = " and the final look" if one["final"] else ""
    return f"{epochs}{final}, batches of {one['batch']:,}"


def _grown(rows: Sequence[Row]) -> str:
    table: list[Sequence[str]] = []
    ordered = sorted(rows, key=_verb)  # stable: sizes stay in their order
    for _, group in groupby(ordered, key=_verb):
        before: Row | None = None
        for one in group:
            table.append(_cells(one, before))
            before = None if one["failed"] else one
    header = (
        "command", "images", "seconds", "us per image", "us per further image",
        "anonymous memory, MB", "with libraries, MB", "data in memory, MB",
        "scratch, MB", "written, MB", "bytes per image",
    )  # fmt: skip
    return _markdown(header, table)


def _cells(one: Row, before: Row | None) -> tuple[str, ...]:
    start = f"`{one['verb']}`", f"{one['images']:,}"
    if one["failed"]:
        return (*start, f"failed: {one['failed']}", *[""] * 8)
    kept = one.get("scores_bytes", one["artifact_bytes"])
    return (
        *start,
        f"{one['wall_seconds']:.1f}",
        f"{1e6 * one['wall_seconds'] / one['images']:,.0f}",
        "" if before is None else f"{1e6 * _slope(before, one):,.0f}",
        _mb(one["peak_anonymous_bytes"]),
        _mb(one["peak_above_bytes"]),
        _data(one),
        _mb(one["peak_scratch_bytes"]),
        f"{kept / 1e6:,.1f}",
        f"{kept / one['images']:,.1f}",
    )


def _slope(before: Row, one: Row) -> float:
    """Seconds for each image by which two runs differ: free of what every start costs."""
    return (one["wall_seconds"] - before["wall_seconds"]) / (one["images"] - before["images"])


def _data(one: Row) -> str:
    if one.get("features") == "resident":
        return f"{_mb(one['features_bytes'])}, resident"
    return f"{_mb(one['peak_data_bytes'])}, mapped" if one["peak_data_bytes"] else "0"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _verb(one: Row) -> int:
    return ("synth", "decode", "score").index(one["verb"])


def _of(part: str) -> list[Row]:
    return [one for one in read("score_scale") if one["bench"] == f"score_scale.{part}"]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
