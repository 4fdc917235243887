"""Methods that build the images of a condensed set, by name."""

from coreset.engine.condensed.methods.base import Method
from coreset.engine.condensed.methods.kmeans import KMEANS, KMEDOID
from coreset.engine.condensed.methods.rded import RDED
from coreset.engine.condensed.methods.recover import CDA, FADRM, FADRM_PLUS, SRE2L

METHODS: dict[str, Method] = {
    "kmeans": KMEANS,
    "kmedoid": KMEDOID,
    "rded": RDED,
    "sre2l": SRE2L,
    "cda": CDA,
    "fadrm": FADRM,
    "fadrm+": FADRM_PLUS,
}
