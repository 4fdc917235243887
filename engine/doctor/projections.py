"""Projection of measured speeds to hours for ImageNet."""

from collections.abc import Iterator, Sequence

from coreset.engine.doctor.machine import Check, Verdict
from coreset.engine.doctor.speeds import (
    COPY,
    DECODE,
    FAST_EPOCHS,
    FAST_STEPS,
    FORWARD,
    IMAGENET_IMAGES,
    SCORING_EPOCHS,
    TRAIN,
    rounded,
)

PASSES: dict[str, list[tuple[int, tuple[str, ...]]]] = {
    "decode once": [(1, (DECODE,))],
    "embed once": [(1, (DECODE, FORWARD))],
    "score": [(1, (DECODE,)), (SCORING_EPOCHS, (COPY, TRAIN))],
    "score by the fast recipe": [
        (1, (DECODE,)),
        *((FAST_EPOCHS[side], (COPY, step)) for side, step in FAST_STEPS.items()),
    ],
}
"""Spans to project, one after another: epochs over ImageNet, and parts that overlap."""


def projections(checks: Sequence[Check]) -> Iterator[Check]:
    """Project speeds to hours for ImageNet: images x epochs / speed, span by span.

    The parts of a span overlap, so that the slowest bounds it; the hours in turn are beside it.
    """
    speeds = {
        check.name: float(check.facts["images_per_second"])
        for check in checks
        if "images_per_second" in check.facts
    }
    for title, spans in PASSES.items():
        name = f"projection: {title}"
        missing = [part for _, parts in spans for part in parts if part not in speeds]
        if missing:
            value = f"no speed of: {', '.join(dict.fromkeys(missing))}"
            yield Check(name, value, Verdict.WARN, "see the row that failed")
            continue
        bounds, terms, hours, in_turn = list[str](), list[str](), 0.0, 0.0
        for epochs, parts in spans:
            bounds.append(min(parts, key=speeds.__getitem__))
            speed, times = speeds[bounds[-1]], f" x {epochs} epochs" if epochs > 1 else ""
            terms.append(f"{IMAGENET_IMAGES:,} images{times} / {rounded(speed)} per s")
            hours += IMAGENET_IMAGES * epochs / speed / 3600
            in_turn += sum(IMAGENET_IMAGES * epochs / speeds[part] / 3600 for part in parts)
        bound_by = ", ".join(dict.fromkeys(bounds))
        value = f"{hours:,.2f} h = {' + '.join(terms)}, bound by {bound_by}"
        value += f"; {in_turn:,.2f} h if nothing overlapped"
        n_epochs = sum(epochs for epochs, _ in spans)
        facts = {"hours": hours, "hours_in_turn": in_turn, "bound_by": bound_by}
        facts |= {"epochs": n_epochs}
        yield Check(name, value, facts=facts | {"images": IMAGENET_IMAGES})
