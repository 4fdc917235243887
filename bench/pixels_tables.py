"""Tables of the recorded pixel contract, for ``coreset.bench.docs``: one function per block."""

from collections.abc import Iterable, Sequence
from typing import Any

from coreset.bench.record import read
from coreset.engine.data.decoders.tolerances import TOLERANCES

Row = dict[str, Any]
_RESIZED = "imagenet, packed resized"


def pixels_tolerances() -> str:
    """What is promised of each decoder, beside the worst that was measured."""
    bounds = ("largest", "largest_at_edge", "mean")
    table: list[Sequence[str]] = []
    for name, tolerance in TOLERANCES.items():
        found = [one["decoders"][name]["judged"] for one in _contract()]
        largest, edge, mean = (
            f"{getattr(tolerance, bound):.3g} ({max(one[bound] for one in found):.3g})"
            for bound in bounds
        )
        outer = f"{edge} in the outer {tolerance.edge} pixels" if tolerance.edge else "the same"
        table.append((_name(name), largest, outer, mean))
    return _markdown(("decoder", "largest", "at the edge", "mean of an image"), table)


def pixels_differences() -> str:
    """Every decoder beside the reference on the same files."""
    return _differences(_contract())


def pixels_resized() -> str:
    """Every decoder on re-encoded files beside the reference on the originals."""
    return _differences([one for one in _of("pixels") if one["input"] == _RESIZED])


def pixels_edge() -> str:
    """Where the differences of DALI are."""
    rows = [(one["input"], one["transform"], one["decoders"]["dali"]) for one in _contract()]
    table = [
        (
            *line,
            *(
                f"{found[zone]['largest']} / {found[zone]['mean']:.2f}"
                for zone in ("inside", "edge")
            ),
            *(_percent(found["edge"][f"over_{bound}"]) for bound in (1, 4, 16)),
        )
        for *line, found in rows
    ]
    shares = (f"of these over {bound}" for bound in (1, 4, 16))
    return _markdown(("images", "transform", "inside", "outer 2 pixels", *shares), table)


def pixels_rounding() -> str:
    """How far the reference and the decoders are from the resize in floating point."""
    table = [
        (_name(one["decoder"]), f"{one['largest']:.2f}", f"{one['mean']:.3f}")
        for one in _of("rounding")
    ]
    return _markdown(("pixels of", "largest", "mean"), table)


def pixels_features() -> str:
    """Cosine between the features of the same image through a decoder and the reference."""
    table = [
        (
            one["input"],
            _name(one["decoder"]),
            f"{one['min_cosine']:.5f}",
            f"{one['mean_cosine']:.6f}",
        )
        for one in _of("features")
    ]
    return _markdown(("images", "decoder", "smallest cosine", "mean cosine"), table)


def pixels_scores() -> str:
    """Rank correlation of AUM through a decoder and the reference."""
    rows = sorted(_of("scores"), key=lambda one: -one["spearman"])
    table = [(_name(one["decoder"]), f"{one['spearman']:.5f}") for one in rows]
    return _markdown(("decoder", "Spearman rank correlation"), table)


def pixels_circumstances() -> str:
    """What was measured with which versions."""
    one, versions = _of("pixels")[0], _of("pixels")[0]["versions"]
    names = ("simplejpeg", "nvidia-dali-cuda130", "pillow", "torchvision", "torch")
    used = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    counts = {row["input"]: row["images"] for row in _contract()}
    images = ", ".join(f"{name} {n}" for name, n in counts.items())
    return f"Images: {images}. {used}; {one['date']}, commit {one['commit']}."


PIXEL_BLOCKS = (
    pixels_tolerances,
    pixels_differences,
    pixels_resized,
    pixels_edge,
    pixels_rounding,
    pixels_features,
    pixels_scores,
    pixels_circumstances,
)


def _differences(rows: Sequence[Row]) -> str:
    """Largest / mean difference and share of the values that differ, a column per decoder."""
    table = [
        (
            one["input"],
            one["transform"],
            *(_cell(found["all"]) for found in one["decoders"].values()),
        )
        for one in rows
    ]
    header = ("images", "transform", *(_name(name) for name in rows[0]["decoders"]))
    return _markdown(header, table)


def _cell(found: Row) -> str:
    if found["largest"] == 0:
        return "0"
    return f"{found['largest']} / {found['mean']:.2f} / {_percent(found['over_0'])}"


def _name(decoder: str) -> str:
    return "pillow (exact)" if decoder == "pillow" else decoder


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def _contract() -> list[Row]:
    return [one for one in _of("pixels") if one["input"] != _RESIZED]


def _of(part: str) -> list[Row]:
    return [one for one in read("pixels") if one["bench"] == f"pixels.{part}"]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
