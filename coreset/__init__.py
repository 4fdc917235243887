"""Which few images of a data set are worth training on, and do they beat synthetic ones?

Other programs use the names in ``__all__``. Each is imported when it is first asked for: reading
scores and choosing images need no torch. The command line starts with this file, which therefore
imports nothing.
"""

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from coreset.api.images import as_dataset, loader
    from coreset.api.scores import scores, select
    from coreset.engine.condensed.condensed_set import open_set
    from coreset.engine.data.datasets import as_webdataset
    from coreset.engine.data.decoders import Normalisation
    from coreset.engine.data.geometry import Crops

__all__ = [
    "Crops",
    "Normalisation",
    "as_dataset",
    "as_webdataset",
    "loader",
    "open_set",
    "scores",
    "select",
]

_MODULES = {
    "Crops": "coreset.engine.data.geometry",
    "Normalisation": "coreset.engine.data.decoders",
    "as_dataset": "coreset.api.images",
    "as_webdataset": "coreset.engine.data.datasets",
    "loader": "coreset.api.images",
    "open_set": "coreset.engine.condensed.condensed_set",
    "scores": "coreset.api.scores",
    "select": "coreset.api.scores",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
