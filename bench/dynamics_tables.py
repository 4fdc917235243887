"""Tables of what the accumulation of scores costs, for ``bench.docs``: one function per block."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from coreset.bench.dynamics_counts import GROUPS, OTHER
from coreset.bench.record import read

Row = dict[str, Any]
_SECONDS_PER_MINUTE = 60


def dynamics_circumstances() -> str:
    """Where it was measured."""
    one = _of("step")[0]
    hardware, versions = one["hardware"], one["versions"]
    features = f", {', '.join(hardware['bfloat16'])}" if hardware["bfloat16"] else ""
    return (
        f"{hardware['cores']} cores ({hardware['processor']}{features}), "
        f"{hardware['memory_gib']} GiB, no GPU, {one['threads']} threads, torch "
        f"{versions['torch']}, {one['date']}, commit {one['commit']}. {one['samples']:,} samples, "
        f"{one['classes']:,} classes, batches of {one['batch']}."
    )


def dynamics_step() -> str:
    """The accumulation of a batch beside the training step."""
    table = [
        (
            one["name"],
            _within(one),
            f"{one['share']:.2%}" if "share" in one else "",
            f"at most {one['goal']:.0%}" if "goal" in one else "",
        )
        for one in _of("step")
    ]
    return _markdown(("what", "ms per batch", "share of the step", "goal"), table)


def dynamics_peers() -> str:
    """Everybody on the same logits."""
    table = [_peer(one) for one in _of("peers")]
    header = ("what", "samples/s", "ms per batch", "times the speed of `aum`", "goal")
    return _markdown(header, table)


def dynamics_epoch() -> str:
    """One epoch of ImageNet's size."""
    table = [
        (
            one["name"],
            one["failed"] or f"{one['median_ms'] / 1e3:.2f} ({_range(one, 1e3)})",
            f"{one['microseconds_per_sample']:.2f}",
        )
        for one in _of("epoch")
    ]
    return _markdown(("what", "seconds", "us per sample"), table)


def dynamics_state() -> str:
    """Bytes that are kept, beside the logits that others keep."""
    one = _of("epoch")[0]
    return (
        f"The state of {one['samples']:,} samples is {one['state_bytes'] / 1e6:.1f} MB (goal: "
        f"under {one['bytes_goal'] / 1e6:.0f} MB), whatever the classes and epochs. The logits of "
        f"60 epochs, which CCS's code writes to files as float16, are "
        f"{one['reference_bytes'] / 1e9:.0f} GB."
    )


def dynamics_graph() -> str:
    """What is counted in the compiled accumulation and step."""
    rows = {one["name"]: one for one in _of("graph")}
    compiled, network = rows["compiled accumulation"], rows["compiled network"]
    waits = [
        (f"host synchronisations of the {name}, per batch", str(len(one["host_reads"])), "0")
        for name in ("accumulation", "training step")
        if (one := rows[f"waits of the {name}"])
    ]
    table = [
        ("passes over the logits", str(compiled["passes"]), "at most 3"),
        ("graphs of the accumulation", str(compiled["graphs"]), "1"),
        ("the same, if the last batch is short", str(compiled["graphs_with_short_batch"]), ""),
        ("fused groups of loops (`generated_kernel_count`)", str(compiled["kernels"]), "a handful"),
        ("functions that they are generated into, for a CPU", str(compiled["functions"]), ""),
        ("operators that are not compiled", str(len(compiled["fallbacks"])), "0"),
        ("graph breaks of the accumulation", str(compiled["graph_breaks"]), "0"),
        ("graphs of ResNet-18", str(network["graphs"]), "1"),
        ("graph breaks of ResNet-18", str(network["graph_breaks"]), "0"),
        *waits,
    ]
    return _markdown(("what", "counted", "goal"), table)


def dynamics_profile() -> str:
    """Shares of self CPU time by kind of work."""
    rows = _of("profile")
    totals = [sum(one["seconds_by_group"].values()) for one in rows]
    table = [
        (
            group,
            *(
                f"{one['seconds_by_group'].get(group, 0) / total:.1%}"
                for one, total in zip(rows, totals, strict=True)
            ),
        )
        for group in (*_order(), OTHER)
    ]
    outside = [
        f"{1 - one['seconds_by_group'].get('matrix arithmetic', 0) / total:.1%}"
        for one, total in zip(rows, totals, strict=True)
    ]
    table.append(("all but matrix arithmetic", *outside))
    steps = [f"{one['wall_seconds'] / one['steps']:.2f} s" for one in rows]
    table.append(("the whole step, profiled", *steps))
    return _markdown(("kind of work", *(f"{one['size']} px" for one in rows)), table)


def dynamics_arithmetic() -> str:
    """Operations and bytes of a training step, counted."""
    table = [
        (
            f"{one['size']} px",
            f"{one['flops_per_image'] / 1e9:.2f}",
            f"{one['bytes_per_image'] / 1e6:.0f}",
            f"{one['flops_per_image'] / one['bytes_per_image']:.0f}",
            f"{one['pixel_bytes'] / 1e3:.1f}",
            f"{one['pixel_bytes'] * one['samples'] / 1e9:.0f}",
        )
        for one in _costs().values()
    ]
    header = ("size", "GFLOP per image", "MB moved per image", "FLOP per byte")
    return _markdown((*header, "kB of pixels", "GB of pixels in all"), table)


def dynamics_weights() -> str:
    """Bytes that do not depend on the batch."""
    one = next(iter(_costs().values()))
    return (
        f"Weights: {one['parameter_bytes'] / 1e6:.1f} MB in float32, momentum: "
        f"{one['optimiser_bytes'] / 1e6:.1f} MB; weights, gradients and the optimiser move "
        f"{one['bytes_per_step'] / 1e9:.2f} GB per step, whatever its batch."
    )


def dynamics_projection() -> str:
    """Minutes on one GPU that was not at hand: arithmetic."""
    table: list[Sequence[str]] = []
    for one in _projections():
        flops, n_bytes = _total(one)
        minutes = [
            f"{flops / (share * one['peak_flops']) / _SECONDS_PER_MINUTE:.0f}"
            for share in one["shares"]
        ]
        moving = f"{n_bytes / one['peak_bytes'] / _SECONDS_PER_MINUTE:.0f}"
        sizes = sorted(set(one["sizes"]))
        sides = f"{sizes[0]}-{sizes[-1]} px" if len(sizes) > 1 else f"{sizes[0]} px"
        epochs = f"{len(one['sizes'])} x {sides}"
        table.append((one["recipe"], epochs, f"{flops:.2g}", *minutes, moving))
    shares = [f"minutes at {share:.0%} of the peak" for share in _projections()[0]["shares"]]
    header = ("recipe", "epochs", "FLOP", *shares, "minutes if only memory bounds, nothing fused")
    return _markdown(header, table)


def dynamics_assumed() -> str:
    """The vendor's figures that the projection takes."""
    one = _projections()[0]
    return (
        f"Assumed of one {one['gpu']} (the vendor's figures, not ours): "
        f"{one['peak_flops'] / 1e12:.0f} TFLOP/s in dense bfloat16 and "
        f"{one['peak_bytes'] / 1e12:.1f} TB/s of memory; {one['samples']:,} images."
    )


DYNAMICS_BLOCKS = (
    dynamics_circumstances,
    dynamics_step,
    dynamics_peers,
    dynamics_epoch,
    dynamics_state,
    dynamics_graph,
    dynamics_profile,
    dynamics_arithmetic,
    dynamics_weights,
    dynamics_projection,
    dynamics_assumed,
)


def _projections() -> list[Row]:
    return [one for one in _of("arithmetic") if one["name"] == "projection"]


def _total(projection: Row) -> tuple[float, float]:
    """Operations and bytes of all epochs of a recipe."""
    costs, n = _costs(), projection["samples"]
    at = [costs[size] for size in projection["sizes"]]
    steps = -(-n // projection["batch"])
    flops = sum(n * one["flops_per_image"] for one in at)
    n_bytes = sum(n * one["bytes_per_image"] + steps * one["bytes_per_step"] for one in at)
    return flops, n_bytes


def _costs() -> dict[int, Row]:
    return {one["size"]: one for one in _of("arithmetic") if one["name"] == "arithmetic"}


def _order() -> list[str]:
    """Groups from the one that matters most elsewhere: matrix arithmetic first."""
    return sorted(GROUPS, key=lambda group: group != "matrix arithmetic")


def _peer(one: Row) -> Sequence[str]:
    name = f"{one['contender']} ({one['role']})"
    if "absent" in one or "failed" in one:
        return (name, one.get("absent") or f"wrong: {one['failed']}", "", "", "")
    per_batch = [1e3 * seconds * one["batch"] / one["images"] for seconds in one["seconds"]]
    speed = one["speed_over"].get("aum")
    return (
        name,
        f"{one['images_per_second']:,.0f}",
        f"{median(per_batch):.3f} ({min(per_batch):.3f}-{max(per_batch):.3f})",
        f"{speed:.1f}" if speed else "",
        f"{one['goal']:.0f}" if one["goal"] else "",
    )


def _within(one: Row) -> str:
    """Milliseconds with their range."""
    return f"{one['median_ms']:.2f} ({_range(one, 1)})"


def _range(one: Row, unit: float) -> str:
    return f"{one['min_ms'] / unit:.2f}-{one['max_ms'] / unit:.2f}"


def _of(part: str) -> list[Row]:
    return [one for one in read("dynamics") if one["bench"] == f"dynamics.{part}"]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
