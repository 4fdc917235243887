"""Metrics of a condensed set: numbers from its images, or the features of them and of a reference.

``coreset measure``, the results and the report loop over `METRICS`. A metric that is a mean over
classes gives the value of each, NaN where there is none: a set of one image a class has no pairs.
Importing this loads no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreset.engine.evaluation.copies import share_of_copies
from coreset.engine.evaluation.subject import CURVE, ByClass, Subject
from coreset.engine.models.inception import frechet_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that says how good a condensed set is without training on it."""

    stamp: str
    """Name and version in the rows of RESULTS: ``diversity_d1@1``; `named` fills in what it may
    tell of the backbone."""
    axis: str
    measure: Callable[[Subject], float | ByClass]
    """Give the value of each class, or one of the whole set."""
    group: str = "coverage"
    """Name for ``--metrics``."""
    backbone: tuple[str, int] | None = None
    """Backbone and pixels that it is defined on; None takes those of the command."""
    by_class: bool = True
    """Is a mean over classes, and not one number of the whole set."""
    higher_is_better: bool = True

    def named(self, backbone: str, weights_sha256: str) -> str:
        """Return the stamp for a backbone: FID is the name of the published Inception's alone."""
        frechet = frechet_name(backbone, weights_sha256)
        kid = frechet.replace("frechet", "kid").replace("fid", "kid")
        return self.stamp.format(frechet=frechet, kid=kid)


def _coverage(short: str, name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"{name}_{short}@1",
        axis=f"{short.upper()}, {axis}",
        measure=lambda subject: subject.coverage[short],
    )


def _pooled(short: str, name: str) -> Metric:
    return Metric(
        stamp=f"{name}_{short}_pooled@1",
        axis=f"{short.upper()}, all classes pooled",
        measure=lambda subject: subject.pooled[short],
        group="pooled",
        by_class=False,
    )


def _at(n: int) -> Metric:
    return Metric(
        stamp=f"representativeness_r2_at_{n}@1",
        axis=f"R2 of the first {n} images",
        measure=lambda subject: subject.curve.get(n, np.nan),
        group="curve",
    )


def _manifold(name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"prdc_{name}@1",
        axis=axis,
        measure=lambda subject: subject.manifold[name],
        group="prdc",
    )


def _distance(stamp: str, group: str, axis: str, measure: Callable[[Subject], Any]) -> Metric:
    return Metric(
        stamp=f"{stamp}@1",
        axis=axis,
        measure=measure,
        group=group,
        by_class=stamp.endswith("class"),
        higher_is_better=False,
    )


def _copies(kind: str, place: str, axis: str) -> Metric:
    return Metric(
        stamp=f"copies_{kind}_{place}@1",
        axis=axis,
        measure=lambda subject: share_of_copies(subject, kind, place),
        group="duplicates",
        by_class=False,
        higher_is_better=False,
    )


def _pixels(name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"{name}@1",
        axis=axis,
        measure=lambda subject: subject.pixels[name],
        group="quality",
        by_class=False,
        higher_is_better=name not in {"near_constant", "blurred"},
    )


METRICS: dict[str, Metric] = {
    "r1": _coverage("r1", "representativeness", "worst match of the set"),
    "d1": _coverage("d1", "diversity", "1 - cosine of the nearest pair"),
    "r2": _coverage("r2", "representativeness", "mean match of the validation images"),
    "d2": _coverage("d2", "diversity", "1 - mean cosine of pairs"),
    **{
        f"{short}_pooled": _pooled(short, {"r": "representativeness", "d": "diversity"}[short[0]])
        for short in ("r1", "d1", "r2", "d2")
    },
    **{f"r2_at_{n}": _at(n) for n in CURVE},
    "precision": _manifold("precision", "share of the set within the reference"),
    "recall": _manifold("recall", "share of the reference within the set"),
    "density": _manifold("density", "reference neighbourhoods around an image of the set"),
    "coverage": _manifold("coverage", "share of the reference with an image of the set near"),
    "frechet": _distance(
        "{frechet}", "fid", "Frechet distance of all features", lambda subject: subject.frechet
    ),
    "frechet_class": _distance(
        "{frechet}_class", "fid", "Frechet distance of a class", lambda s: s.frechet_by_class
    ),
    "kid": _distance("{kid}", "kid", "kernel distance of all features", lambda s: s.kernel),
    **{
        f"{kind}_{place}": _copies(
            kind, place, f"share of images with {kind} copies in the {place}"
        )
        for kind in ("exact", "near")
        for place in ("set", "reference")
    },
    "pixels": _pixels("pixels", "pixels of an image, mean"),
    "jpeg": _pixels("jpeg", "share of images stored as JPEG"),
    "bytes_per_pixel": _pixels("bytes_per_pixel", "stored bytes per pixel"),
    "near_constant": _pixels("near_constant", "share of images of nearly one colour"),
    "blurred": _pixels("blurred", "share of images without sharp edges"),
}
PAIRS = (("r1", "d1"), ("r2", "d2"))
"""Metrics that a figure shows across and up."""


def groups() -> tuple[str, ...]:
    """Return the names that ``--metrics`` takes."""
    return tuple(dict.fromkeys(metric.group for metric in METRICS.values()))
