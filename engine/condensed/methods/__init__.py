"""Methods that build the images of a condensed set, by name."""

from coreset.engine.condensed.methods.base import Method
from coreset.engine.condensed.methods.kmeans import KMEANS, KMEDOID
from coreset.engine.condensed.methods.rded import RDED

METHODS: dict[str, Method] = {"kmeans": KMEANS, "kmedoid": KMEDOID, "rded": RDED}
