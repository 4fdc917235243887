"""Registry of the methods that build synthetic images."""

from coreset.engine.condensed.methods.base import Method
from coreset.engine.condensed.methods.kmeans import KmeansParameters, kmeans_images

METHODS: dict[str, Method] = {
    "kmeans": Method(
        summary="the pixels of a class are clustered into --ipc groups, and the centroid of each "
        "becomes an image: the plainest distilled set, a floor for every other",
        images=kmeans_images,
        parameters=KmeansParameters,
    )
}
"""Methods by name."""
