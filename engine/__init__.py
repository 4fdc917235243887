"""Decoders, models, training, protocols, stages, report, command line.

``engine.loader`` and ``engine.as_webdataset`` are for training loops of others, together with the
two classes that their options take. They are imported when they are asked for: most commands need
no torch. The command line begins with this file, which therefore imports nothing.
"""

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from engine.decode.crops import Crops
    from engine.decode.decoder import Normalisation
    from engine.loading import Loader
    from engine.webdataset_pipeline import as_webdataset

    loader = Loader

__all__ = ["Crops", "Normalisation", "as_webdataset", "loader"]

_PLACES = {
    "Crops": ("engine.decode.crops", "Crops"),
    "Normalisation": ("engine.decode.decoder", "Normalisation"),
    "as_webdataset": ("engine.webdataset_pipeline", "as_webdataset"),
    "loader": ("engine.loading", "Loader"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
