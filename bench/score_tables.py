"""Tables of what scoring is worth as a whole, for ``bench.docs``: one function per block."""

from collections.abc import Iterable, Sequence
from typing import Any

from coreset.bench.record import read
from coreset.bench.score_labels import OURS, THEIRS
from coreset.bench.score_parts import PIPELINE, RESIDENT
from coreset.bench.score_waiting import CHOSEN
from coreset.engine.runtime.text import readable_seconds

Row = dict[str, Any]
SHOWN = ("aum", "aum_logit", "el2n", "forgetting_toneva", "loss_mean", "dual", "loss_final")
"""Scores of the tables of areas and agreements that have a column; the records hold all."""


def score_pipeline() -> str:
    """The whole pipeline beside one resident batch."""
    rows = _of("pipeline")
    resident = {one["size"]: one for one in rows if one["name"] == RESIDENT}
    table = [
        (
            f"{one['size']} px",
            f"{one['images_per_second']:,.0f}",
            f"{resident[one['size']]['images_per_second']:,.0f}",
            f"{one['share']:.1%} ({min(one['shares']):.1%}-{max(one['shares']):.1%})",
            f"at least {one['goal']:.0%}",
        )
        for one in rows
        if one["name"] == PIPELINE
    ]
    header = ("crops", f"images/s {PIPELINE}", f"images/s of {RESIDENT}", "share", "goal")
    return _markdown(header, table)


def score_parts() -> str:
    """Each part alone."""
    rows = [one for one in _of("pipeline") if one["name"] not in {PIPELINE, RESIDENT}]
    sizes = sorted({one["size"] for one in rows})
    costs = {(one["name"], one["size"]): one["us_per_image"] for one in rows}
    table = [
        (name, *(f"{costs[name, size]:,.1f}" for size in sizes))
        for name in dict.fromkeys(one["name"] for one in rows)
    ]
    return _markdown(("part alone, us per image", *(f"{size} px" for size in sizes)), table)


def score_usual_speed() -> str:
    """Images/s of ours and of the usual loop."""
    rows = [one for one in _of("usual-loop") if one["what"] == "speed"]
    table = [
        (
            one["contender"],
            f"{one['images_per_second']:,.1f}",
            f"{speed:.2f}" if (speed := one["speed_over"].get("usual loop")) else "",
            f"at least {one['goal']}" if one["role"] == "ours" else "",
        )
        for one in rows
    ]
    about = f"{rows[0]['images']:,} images a turn, crops of {rows[0]['size']} px."
    return _markdown(("", "images/s", "times the usual loop", "goal"), table) + f"\n\n{about}"


def score_usual_agreement() -> str:
    """Rank correlations of both loops' AUM."""
    (one,) = [one for one in _of("usual-loop") if one["what"] == "agreement"]
    found = [(pair["kind"], f"{pair['spearman']:.3f}") for pair in one["pairs"]]
    about = (
        f"`{one['score']}` of {one['images']:,} images, {one['epochs']} epochs at {one['size']} "
        f"px, batch {one['batch']}; goal {'met' if one['met'] else 'missed'}: means "
        + ", ".join(f"{mean:.3f} {kind}" for kind, mean in one["means"].items())
    )
    return _markdown(("pair", "Spearman"), found) + f"\n\n{about}."


def score_waiting() -> str:
    """Each way, and times the speed of the way that is not chosen."""
    table = [
        (
            one["contender"],
            f"{one['images_per_second']:,.1f}",
            f"{one['speed_over'][other]:.2f}" if (other := CHOSEN.get(one["contender"])) else "",
        )
        for one in _of("waiting")
    ]
    return _markdown(("", "images/s", "chosen: times the other"), table)


def score_noise() -> str:
    """Areas by noise and proxy: of the linear one the median of its seeds."""
    rows = [one for one in _of("noise") if "seeds" in one or one["proxy"] != "linear"]
    names = [name for name in SHOWN if name in rows[0]["areas"]]
    table = [
        (
            f"{one['percent']} %",
            _training(one),
            *(f"{one['areas'][name]:.4f}" for name in names),
            f"aum at least {one['goal']}" if "goal" in one else "",
        )
        for one in rows
    ]
    return _markdown(("flipped", "training", *(f"`{name}`" for name in names), "goal"), table)


def score_noise_spread() -> str:
    """AUM's area seed by seed, and the seconds of a scoring."""
    rows = [one for one in _of("noise") if "seed" in one and one["proxy"] == "linear"]
    table = [
        (f"{percent} %", *(f"{one['areas']['aum']:.4f} (seed {one['seed']})" for one in mine))
        for percent in dict.fromkeys(one["percent"] for one in rows)
        if (mine := [one for one in rows if one["percent"] == percent])
    ]
    header = ("flipped", *["area of `aum`"] * (len(table[0]) - 1))
    seconds = sorted(one["wall_seconds"] for one in rows)
    cost = f"{readable_seconds(seconds[0])} to {readable_seconds(seconds[-1])}"
    return _markdown(header, table) + f"\n\nA scoring by the linear proxy took {cost}."


def score_labels() -> str:
    """Areas of out-of-fold confidence and of cleanlab's, by noise."""
    rows = _of("labels")
    table = [
        (
            f"{one['percent']} %",
            f"{one['areas'][OURS]:.4f}",
            f"{one['peer_areas'][THEIRS]:.4f}",
            f"{one['worst_difference']:+.4f}",
            f"at least {one['goal']}",
            *(f"{one['areas'][name]:.4f}" for name in ("margin_oof", "el2n", "aum")),
        )
        for one in rows
        if "seeds" in one
    ]
    header = ("flipped", f"`{OURS}`", "cleanlab", "worst difference", "goal")
    lines = _markdown((*header, "`margin_oof`", "`el2n`", "`aum`"), table)
    runs = [one for one in rows if "seed" in one]
    peer = ", ".join(f"{name} {number}" for name, number in runs[0]["peer"].items())
    about = (
        f"Medians of {len({one['seed'] for one in runs})} seeds, {runs[0]['folds']} folds; {peer}"
    )
    return f"{lines}\n\n{about}; {_circumstances(runs[0])}"


def score_labels_issues() -> str:
    """How many of the labels that each takes for wrong are wrong, and of the wrong ones found."""
    table = [
        (
            f"{one['percent']} %",
            *(
                f"{one[kind][name]:.1%}"
                for kind in ("issues", "peer_issues")
                for name in ("precision", "recall")
            ),
        )
        for one in _of("labels")
        if "seeds" in one
    ]
    header = ("precision", "recall", "precision of cleanlab", "recall of cleanlab")
    return _markdown(("flipped", *header), table)


def score_recipes() -> str:
    """Agreement of cheaper recipes with the full one, by score."""
    rows = _of("recipes")
    table: list[Sequence[str]] = []
    for one in rows:
        by_score = {entry["score"]: entry for entry in one["agreement"]}
        table += [
            (
                one["name"],
                f"`{name}`",
                *_numbers(by_score[name], "spearman", "spearman_within_class"),
                *_numbers(by_score[name], "roc_area", "other_roc_area"),
            )
            for name in SHOWN
            if name in by_score
        ]
    header = ("recipe", "score", "Spearman", "within classes", "area of full", "area of this")
    return _markdown(header, table)


def score_recipes_coresets() -> str:
    """Overlap of coresets with the full recipe's, and what each scoring cost."""
    table: list[Sequence[str]] = []
    for one in _of("recipes"):
        full, other = one["costs"]
        table += [
            (
                one["name"],
                str(each["ipc"]),
                *(f"{each[name]:.1%}" for name in ("share", "unrelated", "chance")),
                readable_seconds(other["wall_seconds"]),
                readable_seconds(other["wall_seconds_with_inputs"]),
                f"{full['wall_seconds_with_inputs'] / other['wall_seconds_with_inputs']:.1f}",
            )
            for each in one["coresets"]
        ]
    shares = ("shared with full", "if unrelated, same seed", "if drawn apart")
    costs = ("scoring", "with its inputs", "times as fast as full")
    header = ("recipe", "IPC", *shares, *costs)
    return _markdown(header, table)


def score_circumstances() -> str:
    """Where it was measured."""
    return _circumstances(_of("noise")[0])


def _circumstances(one: Row) -> str:
    hardware, versions = one["hardware"], one["versions"]
    features = f", {', '.join(hardware['bfloat16'])}" if hardware["bfloat16"] else ""
    return (
        f"{hardware['cores']} cores ({hardware['processor']}{features}), "
        f"{hardware['memory_gib']} GiB, no GPU, torch {versions['torch']}, {one['date']}, "
        f"commit {one['commit']}."
    )


SCORE_BLOCKS = (
    score_pipeline,
    score_parts,
    score_usual_speed,
    score_usual_agreement,
    score_waiting,
    score_noise,
    score_noise_spread,
    score_labels,
    score_labels_issues,
    score_recipes,
    score_recipes_coresets,
    score_circumstances,
)


def _training(one: Row) -> str:
    if "seeds" in one:
        return f"{one['recipe']}, median of {len(one['seeds'])} seeds"
    return f"{one['recipe']}, {one['epochs']} epochs at {one['size']} px, one seed"


def _numbers(entry: Row, *names: str) -> list[str]:
    return ["" if (value := entry[name]) is None else f"{value:.3f}" for name in names]


def _of(part: str) -> list[Row]:
    return [one for one in read("score") if one["bench"] == f"score.{part}"]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
